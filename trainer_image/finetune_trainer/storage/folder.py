"""The study's folder, on a local disk or in an object store."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from finetune_trainer.errors import StorageUnavailable, StudyError, TrialFailure
from finetune_trainer.storage.layout import STUDY
from finetune_trainer.storage.locations import (
    CHUNK_BYTES,
    files_below,
    open_filesystem,
    receive,
    shown,
)
from finetune_trainer.storage.retries import Retries, gist, refusal_behind

T = TypeVar("T")


@dataclass(frozen=True)
class Storage:
    """A folder of a `pyarrow` filesystem; paths are relative to it, with `/`.

    With retries it is the folder of a study that is under way (`records.claim`): whatever storage refuses
    is tried until it does not, and its methods raise no OSError but FileNotFoundError and ToldToStop.
    """

    filesystem: Any
    root: str
    place: str = field(default="", kw_only=True)
    """Where it is in an object store, as a URI without secrets and options."""

    retries: Retries | None = field(default=None, kw_only=True)

    @classmethod
    def open(cls, location: str, retries: Retries | None = None) -> "Storage":
        """The folder at a URI (`s3://bucket/prefix`) or a local path; it need not be there.

        Raises ValueError for an unknown scheme.
        """
        if "://" in location:
            trouble = f"storage {shown(location)} cannot be opened"
            act = partial(open_filesystem, location)
            filesystem, root = retries.persist(trouble, act) if retries else act()
        else:
            filesystem, root = fs.LocalFileSystem(), str(Path(location).absolute())
        place = shown(location).rstrip("/")
        return cls(filesystem, root.rstrip("/"), place=place, retries=retries)

    @property
    def is_local(self) -> bool:
        """Whether files can be opened by path."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def uri(self, path: str = "") -> str:
        """The location of `path` for people and other programs."""
        return f"{self.root if self.is_local else self.place}/{path}".rstrip("/")

    def local(self, path: str) -> Path:
        """The local path of `path`; only where `is_local`."""
        return Path(self.root) / path

    def check(self) -> None:
        """Raises OSError if the folder of the study cannot be reached."""
        if self.filesystem.get_file_info(f"{self.root}/{STUDY}").type != fs.FileType.File:
            raise StorageUnavailable(f"{STUDY} is not there")

    def was_away(self) -> bool:
        """Whether the folder of the study cannot be reached; waits until it can."""
        try:
            self.check()
        except OSError:
            self.persist("read", self.check)
            return True
        return False

    def persist(self, done: str, act: Callable[[], T], path: str = "") -> T:
        """What `act` returns, which has something `done` ("read") at `path`: tried until it works, with retries.

        FileNotFoundError counts only while the folder of the study is there, and of no object store that is
        written to: what it does not find is the upload, which it has forgotten.
        """
        if self.retries is None:
            return act()

        def checked() -> T:
            try:
                return act()
            except FileNotFoundError as error:
                if done == "written" and not self.is_local:
                    raise StorageUnavailable(gist(error)) from error
                if path != STUDY:
                    self.check()
                raise

        return self.retries.persist(f"storage {self.uri()} cannot be {done}", checked)

    def _check_before(self, path: str) -> None:
        # Written to the empty folder of a disk that is gone, it would be hidden when the disk is back.
        if self.retries is not None and self.is_local and path != STUDY:
            self.check()

    def write(self, path: str, data: bytes) -> None:
        """Write a whole file, durably; on a local disk readers see all of it or nothing."""
        self.persist("written", lambda: self._write(path, data))

    def _write(self, path: str, data: bytes) -> None:
        self._check_before(path)
        if self.is_local:
            target = self.local(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                with partial.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())  # or a power cut could leave an empty file
                partial.replace(target)
            except OSError:
                partial.unlink(missing_ok=True)  # its space may be what is missing
                raise
            return
        with self.filesystem.open_output_stream(f"{self.root}/{path}") as stream:
            stream.write(data)

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError."""
        return self.persist("read", lambda: self._read(path), path)

    def _read(self, path: str) -> bytes:
        # As a random-access file: a stream would ask for a large one piece by piece.
        with self.filesystem.open_input_file(f"{self.root}/{path}") as file:
            return bytes(file.read())

    def files(self, folder: str) -> list[str]:
        """All files below `folder`, relative to the root, in one request where the store can."""
        return self.persist("read", lambda: self._files(folder))

    def _files(self, folder: str) -> list[str]:
        selector = fs.FileSelector(f"{self.root}/{folder}", recursive=True, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        if not found and self.retries is not None:
            self.check()
        return sorted(
            info.path[len(self.root) + 1 :] for info in found if info.type == fs.FileType.File
        )

    def delete(self, path: str) -> None:
        """Remove a file or folder, if it is there."""
        self.persist("written", lambda: self._delete(path))

    def _delete(self, path: str) -> None:
        full = f"{self.root}/{path}"
        kind = self.filesystem.get_file_info(full).type
        if kind == fs.FileType.File and self.is_local:
            Path(full).unlink(missing_ok=True)
        elif kind == fs.FileType.Directory and self.is_local:
            shutil.rmtree(full, onerror=_unless_gone)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(full)
        elif kind == fs.FileType.Directory:
            # On Google's it also deletes an object that marks the folder, which nobody has made.
            with suppress(FileNotFoundError):
                self.filesystem.delete_dir(full)

    def upload(self, folder: Path, path: str) -> None:
        """Copy a local folder to `path`; where storage is local the whole folder appears at once."""
        if self.is_local:
            self.store(path, lambda partial: shutil.copytree(folder, partial, dirs_exist_ok=True))
        else:
            self.persist("written", lambda: self._send(folder, path))

    def _send(self, folder: Path, path: str) -> None:
        # Not by pyarrow's copy_files: it takes a file that the store refuses at its end for copied.
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            target = f"{self.root}/{path}/{file.relative_to(folder).as_posix()}"
            with file.open("rb") as source, self.filesystem.open_output_stream(target) as stream:
                shutil.copyfileobj(source, stream, CHUNK_BYTES)

    def store(self, path: str, write: Callable[[Path], object]) -> None:
        """Put the folder that `write` fills whole at `path`. With retries `write` may be called again."""
        if self.is_local:
            self.persist("written", lambda: self._fill(path, write))
        else:
            with tempfile.TemporaryDirectory() as scratch:
                write(Path(scratch))
                self.upload(Path(scratch), path)

    def _fill(self, path: str, write: Callable[[Path], object]) -> None:
        self._check_before(path)
        target = self.local(path)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            partial.mkdir(parents=True)
            write(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
        except (OSError, StudyError, TrialFailure):
            raise
        except Exception as error:  # any: each library has its own for a full disk
            refusal = refusal_behind(error, str(partial))
            if refusal is None:
                raise
            raise refusal from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

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
        self.persist("read", lambda: self._receive(path, folder))
        return folder

    def _receive(self, path: str, folder: Path) -> None:
        source = f"{self.root}/{path}"
        receive(self.filesystem, source, files_below(self.filesystem, source), folder)


def _unless_gone(_: Any, __: str, error: Any) -> None:
    """Raise what went wrong, unless somebody else has removed the file meanwhile."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]
