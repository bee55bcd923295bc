"""When a study is looked at because its driver told how far it is: soon, but not as often as the driver tells it."""

import math
from collections.abc import Callable, Hashable

PROGRESS_SECONDS = 2.0
"""Between a study's last status and one that only tells how far its driver is, at the least."""


class Pace:
    """Gives each study that has progress to tell a time for it.

    A study waits for `PROGRESS_SECONDS` after its last status, and all studies together have `per_second` turns: an
    API server that has more statuses to write than it can answers everybody late, drivers and watches too.

    Args:
        per_second: turns a second, above 0.
        clock: the seconds now, for example the event loop's `time`.
    """

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._each = 1 / per_second
        self._clock = clock
        self._free = -math.inf
        """When the next turn is that nobody has."""

        self._turns: dict[Hashable, float] = {}
        self._told: dict[Hashable, float] = {}

    def wait(self, study: Hashable) -> float:
        """Seconds until the study's turn, 0 if it is due; one that has a turn already keeps it."""
        now = self._clock()
        if study not in self._turns:
            self._free = self._turns[study] = max(now, self._free)
            self._free += self._each
        earliest = self._told.get(study, -math.inf) + PROGRESS_SECONDS
        return max(0.0, self._turns[study] - now, earliest - now)

    def looked(self, study: Hashable) -> None:
        """The study is being looked at: what it tells from now on needs a turn that is yet to come.

        One before its turn keeps it, or it could take those of all others by and by.
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
