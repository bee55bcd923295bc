"""A Debian base image with Python 3.11, made from the machine's own package mirror."""

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.onenode.packages import tool
from tests.needs import ToolMissing

PACKAGES = ("ca-certificates", "libgomp1", "libstdc++6", "python3", "python3-pip", "python3-venv")
SUITE = "bookworm"

# Not needed in a container, and a third of the size.
_DROP = (
    "./var/cache/apt",
    "./var/lib/apt/lists",
    "./var/log",
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./usr/share/info",
    "./dev",
    "./tmp",
)
# Without it pip installs as it does in the official Python images.
_PIP_LOCK = "./usr/lib/python3.11/EXTERNALLY-MANAGED"
# Copied from this machine by debootstrap.
_OF_THIS_MACHINE = ("./etc/resolv.conf", "./etc/hostname")


def write_layer(target: Path, work: Path) -> None:
    """Write the base image's only layer, a tar, to `target`; `work` is a scratch folder.

    Raises ToolMissing where apt knows no mirror of the suite.
    """
    root = work / "debian"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    command = [
        tool("debootstrap"),
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        SUITE,
        str(root),
        _mirror(),
    ]
    log = work / "debootstrap.log"
    with log.open("w") as output:
        done = subprocess.run(
            command, env={**os.environ, **_proxies()}, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        raise ToolMissing(
            "debootstrap", f"it failed; the end of its log:\n{log.read_text()[-2000:]}"
        )
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    partial = target.with_suffix(".partial")
    excludes = [f"--exclude={path}" for path in (_PIP_LOCK, *_OF_THIS_MACHINE)]
    excludes += [f"--exclude={folder}/*" for folder in _DROP]
    subprocess.run(
        [
            "tar",
            "--create",
            "--numeric-owner",
            "--sort=name",
            f"--file={partial}",
            f"--directory={root}",
            *excludes,
            ".",
        ],
        check=True,
    )
    partial.rename(target)
    shutil.rmtree(root)


def _mirror() -> str:
    """The mirror that this machine's apt uses for the suite."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    command += ["Created-By: Packages", "Origin: Debian", f"Release: {SUITE}"]
    found = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.split()
    if not found:
        raise ToolMissing(
            "a Debian mirror",
            f"apt on this machine ({platform.node()}) must have a source for {SUITE}",
        )
    return found[0]


def _proxies() -> Mapping[str, str]:
    """apt's own proxy settings, as the environment variables debootstrap's downloader reads."""
    command = ["apt-config", "shell", "http_proxy", "Acquire::http::Proxy"]
    command += ["https_proxy", "Acquire::https::Proxy"]
    lines = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    return dict(assignment.split("=", 1) for assignment in shlex.split(lines))
