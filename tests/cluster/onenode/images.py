"""The images that tests and the demo run, built without Docker and kept by the hash of their content."""

import hashlib
import sys
import tempfile
from pathlib import Path

from tests.cluster.onenode import debian
from tests.cluster.onenode.archive import Image, write_archive
from tests.cluster.onenode.build import cache_folder
from tests.cluster.onenode.buildah import BuiltImage, build
from tests.cluster.onenode.locks import exclusive
from tests.cluster.onenode.node import Containerd
from tests.cluster.onenode.packages import IMAGES, require

REPOSITORY = Path(__file__).resolve().parents[3]
LIBRARIES = "/libraries"
"""Where the development trainer image looks for the Python libraries (see `volumes`)."""

# What the operator's Dockerfile may copy.
_CONTEXT = (
    "pyproject.toml",
    "requirements.lock",
    "README.md",
    "LICENSE",
    "client",
    "crds",
    "operator",
    "reports",
    "trainer_image",
    "ui",
)
_TRAINER_SOURCES = (
    "crds/finetune_api",
    "reports/finetune_reports",
    "trainer_image/finetune_trainer",
)
_NOBODY = "65532:65532"


def base() -> BuiltImage:
    """Debian with Python 3.11: stands in for an official Python image."""
    digest = _hash(Path(debian.__file__).read_bytes())
    built = _named("python", digest)
    layer = built.archive.with_suffix(".layer")
    if not (built.archive.exists() and layer.exists()):
        _say("building the Python base image (debootstrap)")
        _forget_older(built)
        with tempfile.TemporaryDirectory(dir=_folder()) as work:
            debian.write_layer(layer, Path(work))
        write_archive(built.archive, Image(built.reference, command=["python3"]), [layer])
    return built


def operator() -> BuiltImage:
    """The operator's image, from its Dockerfile on our base image."""
    dockerfile = REPOSITORY / "operator" / "Dockerfile"
    start = base()
    sources = b"".join(_content(path) for path in _sources(*_CONTEXT))
    built = _named("operator", _hash(sources + start.reference.encode()))
    if not built.archive.exists():
        _say("building the operator's image (buildah)")
        _forget_older(built)
        build(dockerfile, REPOSITORY, _sources(*_CONTEXT), start, built)
    return built


def trainer() -> BuiltImage:
    """The trainer's code on the base image; its libraries come from a volume at LIBRARIES."""
    start = base()
    files = {
        f"opt/finetune/{path.relative_to(folder.parent)}": path
        for folder in (REPOSITORY / name for name in _TRAINER_SOURCES)
        for path in _python_files(folder)
    }
    files["usr/local/bin/ray"] = Path(__file__).with_name("ray")
    content = b"".join(_content(path) for path in sorted(files.values()))
    built = _named("trainer", _hash(content + start.reference.encode()))
    if not built.archive.exists():
        _forget_older(built)
        image = Image(
            built.reference,
            entrypoint=["python3", "-m", "finetune_trainer.supervisor"],
            user=_NOBODY,
            env={
                "PYTHONPATH": f"/opt/finetune:{LIBRARIES}",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONUNBUFFERED": "1",
            },
        )
        write_archive(built.archive, image, [start.archive.with_suffix(".layer")], files)
    return built


BUILDERS = {"base": base, "operator": operator, "trainer": trainer}


def provide(runtime: Containerd, *names: str) -> dict[str, str]:
    """Build what changed of `names` (keys of BUILDERS), import it, return name → reference."""
    require(IMAGES)
    with exclusive(_folder() / "lock"):
        built = {name: BUILDERS[name]() for name in names}
        there = runtime.images()
        for image in built.values():
            if image.reference not in there:
                _say(f"importing {image.reference}")
                runtime.import_image(image.archive)
    return {name: image.reference for name, image in built.items()}


def _named(name: str, digest: str) -> BuiltImage:
    return BuiltImage(f"finetune.local/{name}:{digest}", _folder() / f"{name}-{digest}.tar")


def _forget_older(image: BuiltImage) -> None:
    """Delete the archives of earlier contents: a few hundred MB each."""
    name = image.archive.name.rpartition("-")[0]
    for old in _folder().glob(f"{name}-*"):
        old.unlink()


def _folder() -> Path:
    folder = cache_folder() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sources(*names: str) -> list[Path]:
    paths: list[Path] = []
    for name in names:
        path = REPOSITORY / name
        paths += _python_files(path) if path.is_dir() else [path]
    return sorted(path for path in paths if path.exists())


def _python_files(folder: Path) -> list[Path]:
    """Every file of a package that is not made by running it."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    ]


def _content(path: Path) -> bytes:
    return f"{path.relative_to(REPOSITORY)}\n".encode() + path.read_bytes()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _say(text: str) -> None:
    print(f"== {text}", file=sys.stderr, flush=True)
