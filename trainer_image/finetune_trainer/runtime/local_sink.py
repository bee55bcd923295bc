"""Where a driver on this machine reports to: the study's folder, which one driver has at a time."""

import fcntl
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from finetune_api.status import Limits, StudyProgress
from finetune_trainer.storage.glance import write_progress
from finetune_trainer.storage.layout import HOLDER, TERM


class FolderInUse(BlockingIOError):
    """Another process has the folder; the text says which, and what to do."""

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


class LocalSink:
    """A folder on this machine: a file lock admits one driver at a time."""

    job_uid = "local"

    def __init__(
        self, folder: Path, option: str = "--into", about: Mapping[str, str] | None = None
    ) -> None:
        """`option` is what names the folder; `about` has `name`, `task` and `metric` of the study, as far as known."""
        self._folder = folder
        self._about = {"name": folder.absolute().name, "task": "", "metric": "", **(about or {})}
        self._option = option
        self._lock: IO[str] | None = None
        self.latest: StudyProgress | None = None

    def claim_term(self, above: int = 0) -> int:
        """Raise the number in `<folder>/term` by one, or above `above`. Raises FolderInUse if another driver runs."""
        lock = self._lock or self._locked()
        lock.seek(0)
        term = max(above, int(lock.read() or 0)) + 1
        lock.seek(0)
        lock.write(str(term))  # in place: on a full disk there is no room for another file
        lock.flush()
        self._lock = lock  # held until released, or the process ends
        return term

    def _locked(self) -> IO[str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        path, holder = self._folder / TERM, self._folder / HOLDER
        path.touch()
        lock = path.open("r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            who = holder.read_text().strip() if holder.is_file() else "another process"
            raise FolderInUse(
                error.errno,
                f"is used by {who}: end it, or choose another folder with {self._option}",
                str(self._folder),
            ) from error
        with suppress(OSError):  # a full disk is waited for later
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        return lock

    def release(self) -> None:
        """Let another driver run."""
        if self._lock is not None:
            with suppress(OSError):  # the name of a process that works no more is only a wrong hint
                (self._folder / HOLDER).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def publish(self, progress: StudyProgress, judged_by: Limits | None = None) -> None:
        """Keep the document for whoever shows it, here and in the folder."""
        self.latest = progress
        with suppress(OSError):  # a full disk is waited for by those who write the records
            write_progress(self._folder, self._about, progress.to_json())
