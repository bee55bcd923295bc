"""Container images as docker-archive tars, written without Docker."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """An image's name and how its containers start."""

    reference: str
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    user: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = "/"


def write_archive(
    target: Path, image: Image, layers: Sequence[Path] = (), files: Mapping[str, Path] | None = None
) -> None:
    """Write `image` made of `layers` (tars, lowest first), and of `files` (path in image → file)."""
    partial = target.with_suffix(".partial")
    with tarfile.open(partial, "w") as archive:
        stack = [(layer, _digest(layer)) for layer in layers]
        for layer, digest in stack:
            archive.add(layer, arcname=f"{digest}.tar")
        digests = [digest for _, digest in stack]
        if files:
            content = _layer(files)
            digest = hashlib.sha256(content).hexdigest()
            _add(archive, f"{digest}.tar", content)
            digests.append(digest)
        config = _config(image, digests)
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        _add(archive, name, config)
        manifest = [
            {
                "Config": name,
                "RepoTags": [image.reference],
                "Layers": [f"{digest}.tar" for digest in digests],
            }
        ]
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    partial.rename(target)


def _config(image: Image, digests: Sequence[str]) -> bytes:
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": list(image.entrypoint) or None,
                "Cmd": list(image.command) or None,
                "User": image.user,
                "Env": [f"{name}={value}" for name, value in {"PATH": _PATH, **image.env}.items()],
                "WorkingDir": image.working_dir,
            },
            # One entry a layer, or buildah refuses to build on the image.
            "history": [{"created_by": "onenode"} for _ in digests],
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        }
    ).encode()


def _layer(files: Mapping[str, Path]) -> bytes:
    """A tar of files owned by root, byte for byte the same whenever the files are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, path in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = path.stat().st_size
            info.mode = 0o755 if path.stat().st_mode & 0o111 else 0o644
            with path.open("rb") as content:
                tar.addfile(info, content)
    return buffer.getvalue()


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
