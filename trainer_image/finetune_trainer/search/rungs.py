"""One rung, at which trials are compared: the top of it may go on.

It keeps its results in heaps, so that a decision costs O(log n).
"""

import heapq
from collections.abc import Callable
from typing import TypeAlias

_Entry: TypeAlias = tuple[float, int]
"""(score, -trial): of two entries the larger is better."""


class Rung:
    """The results of one rung; every operation costs O(log n)."""

    def __init__(self, promoted: Callable[[int], int], ahead: bool = False) -> None:
        """`promoted(n)` of n results may go on; with one result more at most one more.

        With `ahead` half of the trials on their way here count as if they had come. It saves many workers
        from starting new trials while good ones wait; one worker never has any on their way.
        """
        self._promoted = promoted
        self._ahead = ahead
        self.coming = 0
        """Trials on their way here."""

        self.scores: dict[int, float] = {}
        """Trial → its score here."""

        self.lost = 0
        """Trials that will never reach this rung: they failed or diverged on the way."""

        self._judged = 0
        """Those of them that count as results, worse than any other."""

        self._top: list[_Entry] = []
        """The best, as many as may go on; the worst of them at the front."""

        self._rest: list[_Entry] = []
        """The others, their best at the front; entries negated."""

        self._waiting: set[int] = set()
        """Trials of the top that can be promoted."""

        self._candidates: list[_Entry] = []
        """Every trial that was ever in the top, the best at the front; entries negated."""

        self._in_reach: list[_Entry] = []
        """Trials that may still come to the top, the worst at the front."""

        self._stale = 0
        """How many of them were stopped: they take no place."""

        self._undecided: set[int] = set()
        """Those of them that can be promoted then."""

        self._gone: set[int] = set()
        """Trials that cannot be promoted (again)."""

        self.promoted = 0
        """Trials that have gone on from here."""

        self._stopped: set[int] = set()
        """Trials that gave their place in the top up."""

    def expect(self) -> None:
        """One more trial is on its way here."""
        self.coming += 1
        self._fill()  # here, not when it is looked at: what was looked at must not matter

    def lose(self, judged: bool) -> None:
        """A trial that was expected will not come; if it was `judged`, that is a result, worse than any other."""
        self.coming -= 1
        self.lost += 1
        self._judged += judged
        self._fill()

    def regain(self) -> None:
        """A trial that was lost, and not judged, is on its way here again."""
        self.lost -= 1
        self.expect()

    def report(self, trial: int, score: float) -> None:
        """Add the result of `trial`; a larger score is better, and of equals the earlier trial."""
        self.coming -= 1
        self.scores[trial] = score
        entry = (score, -trial)
        heapq.heappush(self._in_reach, entry)
        if trial not in self._gone:
            self._undecided.add(trial)
        if self._top and entry > self._top[0]:
            worst = heapq.heapreplace(self._top, entry)
            self._waiting.discard(-worst[1])
            self._await(entry)
            entry = worst
        heapq.heappush(self._rest, _negated(entry))
        self._fill()

    def _fill(self) -> None:
        while self._rest and len(self._top) < self.promotions:
            best = _negated(heapq.heappop(self._rest))
            if -best[1] in self._stopped:
                continue
            heapq.heappush(self._top, best)
            self._await(best)

    def _await(self, entry: _Entry) -> None:
        trial = -entry[1]
        if trial not in self._gone:
            self._waiting.add(trial)
            heapq.heappush(self._candidates, _negated(entry))

    def has_all(self, trials: int) -> bool:
        """Whether of `trials` on their way here none is left."""
        return len(self.scores) + self.lost >= trials

    @property
    def promotions(self) -> int:
        """How many trials the results so far let go on."""
        ahead = self.coming // 2 if self._ahead else 0
        return min(len(self.scores), self._promoted(self.results + ahead))

    @property
    def results(self) -> int:
        """How many trials have a result here."""
        return len(self.scores) + self._judged

    @property
    def seen(self) -> int:
        """How many trials are here, on their way here, or were lost on it."""
        return self.coming + len(self.scores) + self.lost

    @property
    def undecided(self) -> int:
        """How many of those that are here may yet be promoted."""
        return len(self._undecided)

    @property
    def going_on(self) -> int:
        """How many trials were promoted from here, or can be now."""
        return self.promoted + len(self._waiting)

    @property
    def best(self) -> int | None:
        """The best trial here, stopped ones aside; None if there is none, or it cannot be promoted (again)."""
        found = max(
            ((score, -n) for n, score in self.scores.items() if n not in self._stopped),
            default=None,
        )
        return None if found is None or -found[1] in self._gone else -found[1]

    def promote(self, trial: int) -> None:
        """`trial` goes on from here."""
        self.finish(trial)
        self.promoted += 1

    def finish(self, trial: int) -> None:
        """`trial` has nothing more to train; if it is among the best it keeps its place."""
        self._gone.add(trial)
        self._waiting.discard(trial)
        self._undecided.discard(trial)

    def stop(self, trial: int) -> None:
        """`trial` will not go on, whatever comes: others may have its place."""
        self._stale += trial in self._undecided  # told before a resume, not by these heaps
        self.finish(trial)
        self._stopped.add(trial)
        entry = (self.scores[trial], -trial)
        if self._top and entry >= self._top[0] and entry in self._top:
            self._top.remove(entry)
            heapq.heapify(self._top)
            self._fill()

    def promotable(self, preferred: Callable[[int], bool] | None = None) -> int | None:
        """The best trial of the top that can be promoted, of those that are `preferred` if there are any."""
        while self._candidates and self._candidates[0][1] not in self._waiting:
            heapq.heappop(self._candidates)
        if not self._candidates:
            return None
        if preferred is not None:
            chosen = [trial for trial in self._waiting if preferred(trial)]
            if chosen:
                return max(chosen, key=lambda trial: (self.scores[trial], -trial))
        return self._candidates[0][1]

    def out_of_reach(self, results: int, least: int = 0) -> list[int]:
        """Trials that will not be promoted even if the rung gets `results` results in all; each named once.

        `least` is how many it promotes in any case once there are no more.
        """
        found = []
        # The top, filled ahead, never shrinks.
        most = max(self._promoted(results), len(self._top), least)
        while len(self._in_reach) - self._stale > most:
            trial = -heapq.heappop(self._in_reach)[1]
            if trial in self._stopped:
                self._stale -= 1
            elif trial not in self._gone:
                self._undecided.discard(trial)
                found.append(trial)
        return found


def _negated(entry: _Entry) -> _Entry:
    return -entry[0], -entry[1]
