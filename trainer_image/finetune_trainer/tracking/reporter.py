"""Keeps one tracker up to date, on a thread of its own: a slow or broken tracker holds nothing up."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from finetune_trainer.tracking.runs import TrackedRun, Tracker, TrackingError

RETRY_SECONDS = 2.0
"""Pause after a first failure; each further one in a row doubles it."""

DOUBLINGS = 5
LAST_TRIES = 3
"""After this many failures in a row, a tracker is given up at the end of the study."""

log = logging.getLogger("finetune.tracking")


class Reporter:
    """Writes runs to the tracker that `make` makes, and tries again until they are there.

    `warn(message)` is called when the tracker begins to fail, with an empty message when nothing is missing
    any more, and at the end if something is.
    """

    def __init__(self, name: str, make: Callable[[], Tracker], warn: Callable[[str], None]) -> None:
        self._name, self._make, self._warn = name, make, warn
        self._tracker: Tracker | None = None
        self._pending: dict[str, TrackedRun] = {}
        """By key, in the order in which they are written."""

        self._failing: set[str] = set()
        self._failures = 0
        """Failures in a row."""

        self._trouble = ""
        """The tracker's last error message."""

        self._ending = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name=f"tracking-{name}", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def tell(self, runs: Iterable[TrackedRun]) -> None:
        """Have the runs written as soon as possible; a later state of a run replaces an earlier one."""
        with self._changed:
            self._pending |= {run.key: run for run in runs}
            self._changed.notify()

    def finish(self, deadline: float) -> int:
        """Write what is missing until the monotonic clock shows `deadline`; returns how many runs still are incomplete."""
        with self._changed:
            self._ending = True
            self._failures = 0
            self._changed.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        missing = len(self._pending)
        if missing:
            message = f"{missing} runs are incomplete there; {self._trouble or 'time ran out'}"
            log.warning("tracking by %s: %s", self._name, message)
            self._warn(message)
        return missing

    def _loop(self) -> None:
        while (run := self._next()) is not None:
            try:
                if self._tracker is None:
                    self._tracker = self._make()
                self._tracker.write(run)
            except TrackingError as error:
                self._failed(run, str(error))
            except Exception as error:  # any: whatever a client raises concerns only the tracking
                log.exception("tracking by %s failed", self._name)
                self._failed(run, f"{type(error).__name__}: {error}")
            else:
                self._written(run)
        self._close()

    def _close(self) -> None:
        try:
            if self._tracker is not None:
                self._tracker.close()
        except TrackingError as error:
            log.warning("tracking by %s was not closed: %s", self._name, error)

    def _next(self) -> TrackedRun | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._ending)
            if self._ending and self._failures >= LAST_TRIES:
                return None
            return next(iter(self._pending.values()), None)

    def _written(self, run: TrackedRun) -> None:
        with self._changed:
            self._failures = 0
            if self._pending[run.key] is run:
                del self._pending[run.key]
        if run.key in self._failing:
            self._failing.discard(run.key)
            if not self._failing:
                log.info("tracking by %s works again", self._name)
                self._warn("")

    def _failed(self, run: TrackedRun, message: str) -> None:
        if not self._failing:
            log.warning(
                "tracking by %s fails and will be retried; the study goes on: %s",
                self._name,
                message,
            )
            self._warn(message)
        self._failing.add(run.key)
        self._trouble = message
        with self._changed:
            self._pending[run.key] = self._pending.pop(
                run.key
            )  # others first: this run may be the cause
            pause = RETRY_SECONDS * 2 ** min(self._failures, DOUBLINGS)
            self._failures += 1
            if not self._ending:
                self._changed.wait_for(lambda: self._ending, timeout=pause)
            elif self._failures < LAST_TRIES:
                self._changed.wait(RETRY_SECONDS)
