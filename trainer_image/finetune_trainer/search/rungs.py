"""Promoting ASHA: a free worker continues the best trial of a rung's top 1/η, else starts a new one.

Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, algorithm 2. Each rung
keeps its top 1/η in a heap, so a report costs O(log n).
"""

import heapq
from dataclasses import dataclass, field

from finetune_api.study import Scheduler


def rung_epochs(scheduler: Scheduler, max_epochs: int) -> tuple[int, ...]:
    """The epochs at which trials are compared, ending with `max_epochs`."""
    if scheduler.type == "None":
        return (max_epochs,)
    epochs: list[int] = []
    resource = scheduler.min_epochs
    while resource < max_epochs:
        epochs.append(resource)
        resource *= scheduler.reduction_factor
    return (*epochs, max_epochs)


@dataclass
class Rung:
    """The results of one rung; `score` is larger for better trials."""

    reduction_factor: int
    results: int = 0
    _top: list[tuple[float, int]] = field(default_factory=list)
    """Min-heap of (score, -trial): the worst of the top at the front, later trials losing ties."""

    _rest: list[tuple[float, int]] = field(default_factory=list)
    """Min-heap of (-score, trial): the best of the rest at the front."""

    _waiting: set[int] = field(default_factory=set)
    """Trials of the top that are not promoted yet."""

    _gone: set[int] = field(default_factory=set)
    """Trials that cannot be promoted (again)."""

    def report(self, trial: int, score: float) -> None:
        """Add the result of `trial`."""
        self.results += 1
        heapq.heappush(self._rest, (-score, trial))
        if self._top and (-self._rest[0][0], -self._rest[0][1]) > self._top[0]:
            worst = heapq.heappop(self._top)
            self._waiting.discard(-worst[1])
            self._lift()
            heapq.heappush(self._rest, (-worst[0], -worst[1]))
        while len(self._top) < self.results // self.reduction_factor:
            self._lift()

    def _lift(self) -> None:
        negative, trial = heapq.heappop(self._rest)
        heapq.heappush(self._top, (-negative, -trial))
        if trial not in self._gone:
            self._waiting.add(trial)

    def withdraw(self, trial: int) -> None:
        """`trial` was promoted, or has ended: it is not to be promoted from here (again)."""
        self._gone.add(trial)
        self._waiting.discard(trial)

    def promotable(self) -> int | None:
        """The best trial in the top that was not promoted yet."""
        if not self._waiting:
            return None
        ranked = ((score, negative) for score, negative in self._top if -negative in self._waiting)
        return -max(ranked)[1]
