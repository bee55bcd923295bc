"""Builds an image from a Dockerfile with buildah, in a chroot: no Docker, no user namespaces."""

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.onenode.mounts import unmount_below
from tests.cluster.onenode.packages import tool


@dataclass(frozen=True)
class BuiltImage:
    """An image's name in the cluster and its docker-archive."""

    reference: str
    archive: Path


def build(
    dockerfile: Path, root: Path, sources: Iterable[Path], base: BuiltImage, target: BuiltImage
) -> None:
    """Write `target`'s archive from a Dockerfile whose argument BASE_IMAGE is `base`.

    The context is `sources`, files below `root`. buildah's storage stays beside the archives: a
    later build starts from its layers. Raises CalledProcessError if the build fails.
    """
    storage = target.archive.parent / "buildah"
    with tempfile.TemporaryDirectory(dir=target.archive.parent) as work:
        scratch = Path(work)
        context = scratch / "context"
        for path in sources:
            copy = context / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        buildah = _Buildah(storage, scratch)
        try:
            buildah.pull(base)
            buildah.build(dockerfile, context, base, target)
            buildah.push(target)
        finally:
            # A failed build leaves its container mounted, and every one the storage itself.
            buildah("rm", "--all")
            unmount_below(storage)


class _Buildah:
    def __init__(self, storage: Path, scratch: Path) -> None:
        self._scratch = scratch
        self._command = [tool("buildah"), f"--root={storage}", f"--runroot={scratch / 'run'}"]
        policy = scratch / "policy.json"
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        self._signatures = f"--signature-policy={policy}"

    def __call__(self, *arguments: str) -> None:
        command = [*self._command, *arguments]
        try:
            subprocess.run(command, check=True, text=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            error.add_note(f"{error.stdout}{error.stderr}"[-4000:])
            raise

    def pull(self, image: BuiltImage) -> None:
        command = [*self._command, "images", "--quiet", image.reference]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            self("pull", "--quiet", self._signatures, f"docker-archive:{image.archive}")

    def build(self, dockerfile: Path, context: Path, base: BuiltImage, target: BuiltImage) -> None:
        self(
            "bud",
            "--isolation=chroot",
            "--layers",
            "--pull-never",
            self._signatures,
            f"--build-arg=BASE_IMAGE={base.reference}",
            f"--tag={target.reference}",
            *(f"--volume={mount}" for mount in _pip_mounts(self._scratch)),
            f"--file={dockerfile}",
            str(context),
        )

    def push(self, image: BuiltImage) -> None:
        partial = image.archive.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        destination = f"docker-archive:{partial}:{image.reference}"
        self("push", "--quiet", self._signatures, image.reference, destination)
        partial.rename(image.archive)


def _pip_mounts(scratch: Path) -> Iterator[str]:
    """Mounts that let pip in a build download as pip on this machine does, and leave no trace."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    settings: dict[str, str] = {}
    mounted: set[str] = set()
    # pip lists the environment's settings first, though they win over the files'.
    for line in reversed(listed.splitlines()):
        name, _, quoted = line.partition("=")
        words = str(ast.literal_eval(quoted)).split()
        settings[name.rpartition(".")[2]] = " ".join(words)
        mounted.update(word for word in words if os.path.isabs(word) and _mountable(word))
    configuration = scratch / "pip.conf"
    lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
    configuration.write_text("\n".join(lines) + "\n")
    yield f"{configuration}:/etc/pip.conf:ro"
    yield f"{_CERTIFICATES}:{_CERTIFICATES}:ro"
    yield from (f"{path}:{path}:ro" for path in sorted(mounted))


_CERTIFICATES = "/etc/ssl/certs"


def _mountable(path: str) -> bool:
    return Path(path).exists() and not path.startswith(f"{_CERTIFICATES}/")
