"""The study's folder, on a local disk or in an object store."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs


@dataclass(frozen=True)
class Storage:
    """A folder of a `pyarrow` filesystem; paths are relative to it, with `/`."""

    filesystem: Any
    root: str

    @classmethod
    def open(cls, location: str) -> "Storage":
        """The folder at a URI (`s3://bucket/prefix`) or a local path. Raises ValueError for an unknown scheme."""
        if "://" in location:
            if location.startswith("s3://"):  # one request a small file instead of three
                location += f"{'&' if '?' in location else '?'}allow_delayed_open=true"
            filesystem, root = fs.FileSystem.from_uri(location)
        else:
            filesystem, root = fs.LocalFileSystem(), str(Path(location).absolute())
        storage = cls(filesystem, root.rstrip("/"))
        if storage.is_local:  # object stores have no folders
            filesystem.create_dir(storage.root, recursive=True)
        return storage

    @property
    def is_local(self) -> bool:
        """Whether files can be opened by path."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def uri(self, path: str = "") -> str:
        """The location of `path` for people and other programs."""
        full = f"{self.root}/{path}".rstrip("/")
        return full if self.is_local else f"{self.filesystem.type_name}://{full}"

    def local(self, path: str) -> Path:
        """The local path of `path`; only where `is_local`."""
        return Path(self.root) / path

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file, durably; on a local disk readers see all of it or nothing."""
        if self.is_local:
            target = self.local(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}")
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # or a power cut could leave an empty file under the name
            partial.replace(target)
            return
        with self.filesystem.open_output_stream(f"{self.root}/{path}") as stream:
            stream.write(data)

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        # As a random-access file: a stream would ask for a large one piece by piece.
        with self.filesystem.open_input_file(f"{self.root}/{path}") as file:
            return bytes(file.read())

    def files(self, folder: str) -> list[str]:
        """All files below `folder`, relative to the root, in one request where the store can."""
        selector = fs.FileSelector(f"{self.root}/{folder}", recursive=True, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        return sorted(
            info.path[len(self.root) + 1 :] for info in found if info.type == fs.FileType.File
        )

    def delete(self, path: str) -> None:
        """Remove a file or folder, if it is there."""
        full = f"{self.root}/{path}"
        kind = self.filesystem.get_file_info(full).type
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(full)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(full)

    def upload(self, folder: Path, path: str) -> None:
        """Copy a local folder to `path`; where storage is local the whole folder appears at once."""
        if self.is_local:
            target = self.local(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            return
        fs.copy_files(
            str(folder),
            f"{self.root}/{path}",
            source_filesystem=fs.LocalFileSystem(),
            destination_filesystem=self.filesystem,
        )

    def store(self, path: str, write: Callable[[Path], object]) -> None:
        """Put the folder that `write` fills whole at `path`. Raises OSError if storage refuses."""
        if self.is_local:
            target = self.local(path)
            partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            try:
                partial.mkdir(parents=True)
                write(partial)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                write(Path(scratch))
                self.upload(Path(scratch), path)

    @contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        """A local folder with the files at `path`, inside `with`."""
        with tempfile.TemporaryDirectory() as scratch:
            yield self.download(path, Path(scratch))

    def download(self, path: str, folder: Path) -> Path:
        """A local folder with the files at `path`: the folder itself where storage is local, else a copy."""
        if self.is_local:
            return self.local(path)
        folder.mkdir(parents=True, exist_ok=True)
        fs.copy_files(
            f"{self.root}/{path}",
            str(folder),
            source_filesystem=self.filesystem,
            destination_filesystem=fs.LocalFileSystem(),
        )
        return folder
