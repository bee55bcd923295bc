"""Real disks that fail: small ones that can be filled, made read-only and unmounted. Mounting takes root."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.needs import ToolMissing, not_run


def _shell(*command: object, check: bool = True) -> None:
    subprocess.run([str(part) for part in command], check=check, capture_output=True)


class Disk:
    """A disk of a few MB, mounted at `place`."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._device, self.place = folder / "device", folder / "mounted"
        self._device.mkdir()
        self.place.mkdir()
        _shell("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", self._device)
        try:
            self.come_back()
        except subprocess.CalledProcessError:
            _shell("umount", "--lazy", self._device)
            raise

    def fill(self, free: int = 0) -> None:
        """Leave so many bytes free."""
        with (self._device / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError:
                ballast.truncate(max(0, ballast.tell() - free))

    def free(self) -> None:
        """Make room again."""
        (self._device / "ballast").unlink()

    def make(self, mode: str) -> None:
        """Read-only ("ro") or not ("rw"); not while a file is open for writing."""
        deadline = time.monotonic() + 240
        while True:
            try:
                _shell("mount", "-o", f"remount,{mode}", self._device)
                return
            except subprocess.CalledProcessError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def go_away(self) -> None:
        """Unmount it, whoever has files open on it."""
        _shell("umount", "--lazy", self.place)

    def come_back(self) -> None:
        """Mount it again, with all it had."""
        _shell("mount", "--bind", self._device, self.place)

    def remove(self) -> None:
        """Unmount it for good."""
        for place in (self.place, self._device):
            _shell("umount", "--lazy", place, check=False)
        assert not os.listdir(self.place), "something was written while the disk was away"


@contextmanager
def disk_of(folder: Path, megabytes: int) -> Iterator[Disk]:
    """A disk below `folder`. A machine that cannot have one skips the test, or fails it where CI is set."""
    try:
        disk = Disk(folder, megabytes)
    except subprocess.CalledProcessError as error:
        not_run(
            ToolMissing("a mount", f"a disk cannot be mounted: {error.stderr.decode().strip()}")
        )
    try:
        yield disk
    finally:
        disk.remove()
