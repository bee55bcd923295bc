"""Limits how often studies are looked at only because their drivers report progress."""

import math
from collections.abc import Callable, Hashable

PROGRESS_SECONDS = 2.0
"""Least time between a study's last status and one that only reports progress."""


class Pace:
    """Gives each study with new progress a time to write it.

    A study waits for `PROGRESS_SECONDS` after its last status, and all studies together have `per_second` turns: an
    API server with more statuses to write than it can handle is late for everybody, drivers and watches included.

    Args:
        per_second: turns per second, above 0.
        clock: the seconds now, for example the event loop's `time`.
    """

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._each = 1 / per_second
        self._clock = clock
        self._free = -math.inf
        """The time of the next free turn."""

        self._turns: dict[Hashable, float] = {}
        self._told: dict[Hashable, float] = {}

    def wait(self, study: Hashable) -> float:
        """Seconds until the study's turn, 0 if it is due; a study that already has a turn keeps it."""
        now = self._clock()
        if study not in self._turns:
            self._free = self._turns[study] = max(now, self._free)
            self._free += self._each
        earliest = self._told.get(study, -math.inf) + PROGRESS_SECONDS
        return max(0.0, self._turns[study] - now, earliest - now)

    def looked(self, study: Hashable) -> None:
        """The study is being looked at: what it reports from now on needs a new turn.

        A study looked at before its turn keeps that turn; otherwise it could gradually take those of all others.
        """
        if self._turns.get(study, math.inf) <= self._clock():
            del self._turns[study]

    def told(self, study: Hashable) -> None:
        """A status of the study is being written."""
        self._told[study] = self._clock()

    def forget(self, study: Hashable) -> None:
        """The study is gone."""
        self._turns.pop(study, None)
        self._told.pop(study, None)
