"""Debian packages: those a node needs are installed, those a test needs only unpacked."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.onenode.build import cache_folder
from tests.cluster.onenode.locks import exclusive
from tests.needs import ToolMissing

# What to look for → the package that brings it.
NODE = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "mount": "mount",
}
IMAGES = {"debootstrap": "debootstrap", "buildah": "buildah"}

_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def require(wanted: dict[str, str]) -> None:
    """Install what is missing of `wanted` (NODE or IMAGES).

    Raises ToolMissing if this machine cannot: no root, or no apt.
    """
    if os.geteuid() != 0:
        raise ToolMissing("root", "kubelet mounts volumes and makes devices")
    missing = sorted({package for tool, package in wanted.items() if not _there(tool)})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise ToolMissing("apt-get", f"Debian packages must be installed: {missing}")
    print(f"== installing Debian packages: {' '.join(missing)}", file=sys.stderr, flush=True)
    _apt(["update", "-qq"])
    _apt(["install", "-qq", "-y", "--no-install-recommends", *missing])
    still = sorted(tool for tool in wanted if not _there(tool))
    if still:
        raise ToolMissing(", ".join(still), f"still missing after installing {missing}")


def unpacked(package: str) -> Path:
    """The folder with the files of a package, in the cache: nothing is installed, no service starts.

    Raises ToolMissing where there is no apt, or where it cannot download the package.
    """
    target = cache_folder() / "debian" / package
    with exclusive(cache_folder() / "debian.lock"):
        if not target.exists():
            _unpack(package, target)
    return target


def _unpack(package: str, target: Path) -> None:
    if shutil.which("apt-get") is None:
        raise ToolMissing("apt-get", f"the Debian package {package} is needed")
    print(f"== downloading the Debian package {package}", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        download = ["apt-get", "download", "-qq", package]
        done = subprocess.run(download, cwd=folder, check=False, stderr=subprocess.DEVNULL)
        if done.returncode and os.geteuid() == 0:  # its lists may be missing, or old
            _apt(["update", "-qq"])
            done = subprocess.run(download, cwd=folder, check=False)
        if done.returncode:
            raise ToolMissing(f"the Debian package {package}", "apt-get cannot download it")
        (archive,) = Path(folder).glob("*.deb")
        partial = Path(folder) / "files"
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(partial)], check=True)
        partial.rename(target)


def tool(name: str) -> str:
    """The path of an installed program, also where only root's PATH has it."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise ToolMissing(name, "it must be installed")
    return found


def _there(tool: str) -> bool:
    return (
        Path(tool).exists() if tool.startswith("/") else shutil.which(tool, path=_PATH) is not None
    )


def _apt(arguments: Iterable[str]) -> None:
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", *arguments], env=env, check=True, stdout=sys.stderr)
