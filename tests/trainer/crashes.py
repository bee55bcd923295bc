"""Storage that ends the process in the middle of a write, for tests of what a new process finds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from finetune_trainer.storage.folder import Storage


@dataclass(frozen=True)
class Failing(Storage):
    """Does `fail` instead of the write or delete number `at`."""

    fail: Callable[[Storage, str, bytes | None], None]
    at: int
    count: list[int] = field(default_factory=list)

    @classmethod
    def of(
        cls, root: Path, fail: Callable[[Storage, str, bytes | None], None], at: int
    ) -> "Failing":
        """Storage in the folder `root` that fails at its write or delete number `at`; never if 0."""
        storage = Storage.open(str(root))
        return cls(storage.filesystem, storage.root, fail, at)

    def write(self, path: str, data: bytes) -> None:
        self._call(path, data)

    def delete(self, path: str) -> None:
        self._call(path, None)

    def _call(self, path: str, data: bytes | None) -> None:
        self.count.append(1)
        if len(self.count) == self.at:
            self.fail(self, path, data)
        elif data is None:
            super().delete(path)
        else:
            super().write(path, data)


class Crash(Exception):
    """The process ends here."""


def crash_before(storage: Storage, path: str, data: bytes | None) -> None:
    raise Crash


def crash_torn(storage: Storage, path: str, data: bytes | None) -> None:
    if data is not None:
        Storage.write(storage, path, data[: len(data) * 2 // 3])
    raise Crash


def crash_after(storage: Storage, path: str, data: bytes | None) -> None:
    if data is None:
        Storage.delete(storage, path)
    else:
        Storage.write(storage, path, data)
    raise Crash
