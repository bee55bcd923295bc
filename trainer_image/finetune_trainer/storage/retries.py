"""Waits for storage that is full, read-only or gone, says why, and goes on when it is back.

Whatever is done to storage can be done again: files are written whole and under names of their own, so it
does not matter whether an attempt that failed has landed. Nothing tells a wrong bucket from one that is made
a minute later, so there is no error after which it is given up; people see what it waits for.
"""

import errno
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import strerror
from typing import TypeVar

import pyarrow as pa

from finetune_trainer.errors import GONE, ToldToStop

T = TypeVar("T")

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
"""Seconds between two attempts; each pause is twice the one before."""

SILENT_SECONDS = 1.0
"""A refusal that passes sooner is nobody's business: object stores throttle."""

_POLL_SECONDS = 0.3
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, *GONE}
_DIGITS = re.compile(r"\d+")
_REQUEST = re.compile(r"^When .*(?=AWS Error)|\(Request ID: [^)]*\)")
"""Which object, which request: that differs from attempt to attempt."""

_ERRNO = re.compile(r"\[Errno (\d+)\]")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def _tell_nobody(message: str) -> None:
    del message


def _never() -> bool:
    return False


@dataclass
class Retries:
    """How somebody who uses storage waits for it."""

    waits: Callable[[str], None] = _tell_nobody
    """Told why it waits, and with an empty message that it goes on."""

    should_stop: Callable[[], bool] = _never
    """Whether it shall not wait any longer."""

    def persist(self, trouble: str, act: Callable[[], T]) -> T:
        """What `act` returns, tried until storage lets it; `trouble` is what to say of a refusal.

        A file that is not there is an answer: FileNotFoundError is raised at once. Raises ToldToStop if it
        shall stop and `act` has failed.
        """
        began, pause, told = time.monotonic(), FIRST_PAUSE, ""
        try:
            while True:
                try:
                    return act()
                except (FileNotFoundError, ToldToStop):
                    raise
                except (OSError, pa.ArrowException) as error:
                    if not _is_refusal(error):
                        raise
                    message = f"{trouble}: {gist(error)}"
                is_news = _DIGITS.sub("", message) != _DIGITS.sub("", told)
                if time.monotonic() - began >= SILENT_SECONDS and is_news:
                    self.waits(f"{message}; waiting")
                    told = message
                self._pause(pause, message)
                pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            if told:
                self.waits("")

    def _pause(self, seconds: float, message: str) -> None:
        end = time.monotonic() + seconds
        while True:
            if self.should_stop():
                raise ToldToStop(message)
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _POLL_SECONDS))


def _is_refusal(error: Exception) -> bool:
    # Google's client has further words for a server that does not manage: they are no OSErrors.
    return isinstance(error, OSError | pa.ArrowCapacityError) or type(error) is pa.ArrowException


def gist(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.errno is not None:
        return strerror(error.errno)
    said = str(error)
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        said = str(error.args[0][0][-1])  # (source, target, why) of each file
    found = _ERRNO.match(said)
    if found:
        return strerror(int(found[1]))
    lines = _REQUEST.sub("", said).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(" .")[:300]


def refusal_behind(error: Exception, folder: str) -> OSError | None:
    """The operating system's refusal to write to `folder` that made a library raise `error`, if it was one.

    Libraries in Rust put it into their text, torch raises an error of its own on top of it.
    """
    for cause in _chain(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if isinstance(cause, OSError) and not str(cause.filename or folder).startswith(folder):
            continue
        found = _OS_ERROR.search(str(cause))
        if found:
            number = int(found[1])
        if number is not None and number in _REFUSALS:
            return OSError(number, strerror(number))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
