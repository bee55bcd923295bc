"""Which watches are open, and since when the others are not: what readiness and an alert depend on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from finetune_operator.metrics import WATCH_SILENT

BLIND_SECONDS = 60.0
"""An operator that has had no open watch of studies for this long is not ready."""

_Watch: TypeAlias = tuple[str, str | None]
"""Kind, and the namespace where it is watched; None for all."""


class Watches:
    """Every watch that this process should have, whoever opens it.

    A watch whose connection is dead counts as open until that is noticed: the API server says something about once a
    minute, so kopf gives up one that is silent after 70 s, and `kube` one after 180 s.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[_Watch, float] = {}
        """When each was last known to be open; at first, when it was first expected."""

        self._closed: dict[_Watch, Callable[[], bool]] = {}
        """Of those that have been opened: whether they have been closed since."""

        self._missed: set[_Watch] = set()
        """Those that have never been open."""

    def expect(self, kind: str, place: str | None) -> None:
        """There should be this watch from now on."""
        if (kind, place) not in self._last:
            self._last[kind, place] = self._clock()
            self._missed.add((kind, place))
        WATCH_SILENT.labels(kind).set_function(lambda: self.silence(kind))

    def forget(self, kind: str, place: str | None) -> None:
        """There need not be this watch: its kind is not served."""
        self._last.pop((kind, place), None)
        self._closed.pop((kind, place), None)
        self._missed.discard((kind, place))

    def opened(
        self, kind: str, place: str | None, closed: Callable[[], bool] = lambda: False
    ) -> None:
        """The API server has begun to answer; `closed` says whether the answer has ended meanwhile."""
        self._last[kind, place] = self._clock()
        self._closed[kind, place] = closed
        self._missed.discard((kind, place))

    def ended(self, kind: str, place: str | None) -> None:
        """The answer has ended just now, if it had not before."""
        watch = (kind, place)
        if watch in self._closed:
            self._look(watch)
            self._closed.pop(watch, None)

    @contextmanager
    def following(self, kind: str, place: str | None) -> Iterator[Callable[[], None]]:
        """For one watch: yields what to call when it is open, and notes its end."""
        try:
            yield lambda: self.opened(kind, place)
        finally:
            self.ended(kind, place)

    def silence(self, kind: str) -> float:
        """Seconds since all watches of the kind were open; 0 while they are."""
        watches = [watch for watch in list(self._last) if watch[0] == kind]
        return max((self._look(watch) for watch in watches), default=0.0)

    def hears(self, kind: str) -> bool:
        """Whether all watches of the kind have been open, and none was closed for longer than a moment."""
        missed = any(watch[0] == kind for watch in list(self._missed))
        return not missed and self.silence(kind) < BLIND_SECONDS

    def _look(self, watch: _Watch) -> float:
        closed = self._closed.get(watch)
        if closed is not None and not closed():
            self._last[watch] = self._clock()
            return 0.0
        return self._clock() - self._last.get(watch, self._clock())
