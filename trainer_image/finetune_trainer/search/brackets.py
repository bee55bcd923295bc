"""The schedulers, as policies of one engine: which trials are compared with which, and who goes on when.

| scheduler | brackets | a rung promotes | when |
|---|---|---|---|
| ASHA | one, or several | its best 1/η | at once |
| SuccessiveHalving | one | its best 1/η | when all have come |
| Hyperband | several a round | its best 1/η | when all have come |
| MedianStop | one; rungs at equal distances | what is at least the median | at once |
| PASHA | one that grows | its best 1/η, below the highest rung | at once |

Once no trial can come to a rung any more, it promotes at least its best one, so that something is trained whole
(`finetune_api.rungs.RungRule`).

None has a single rung, from which nothing goes on. ASHA and PASHA promote a little ahead of the results
that are on their way (`rungs.Rung`).
"""

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from typing import TypeAlias

from finetune_api.rungs import Placement, placements, promotions
from finetune_trainer.search.problem import FAR, Problem
from finetune_trainer.search.rungs import Rung

_NOISE_QUANTILE = 0.9
"""PASHA: the share of differences between criss-crossing trials that count as noise."""


class Bracket:
    """The rungs of trials that are compared with each other."""

    def __init__(self, problem: Problem, placement: Placement) -> None:
        scheduler = problem.search.scheduler
        self.first = placement.first
        self.size = placement.size
        self.members = 0
        self.paused: set[int] = set()
        """Trials that wait at a rung."""

        self._least = int(problem.rung_rule == "SomeWhole")
        """How many trials a rung promotes at least, if any came."""

        ahead = scheduler.type in ("ASHA", "PASHA")
        self._rungs = [
            Rung(lambda results: promotions(scheduler, results), ahead)
            for _ in problem.resources[placement.first : -1]
        ]

    def rung(self, level: int) -> Rung | None:
        """The rung at that level; None at the top, from which nothing goes on."""
        at = level - self.first
        return self._rungs[at] if at < len(self._rungs) else None

    def promote(self, trial: int, level: int) -> None:
        """`trial`, which waited at that rung, goes on."""
        self.paused.discard(trial)
        self._rungs[level - self.first].promote(trial)

    def stop(self, trial: int, level: int) -> None:
        """`trial`, which waited at that rung, will not go on."""
        self.paused.discard(trial)
        self._rungs[level - self.first].stop(trial)

    def promotable(
        self, complete: bool, top: int, preferred: Callable[[int], bool]
    ) -> tuple[int, int] | None:
        """(level, trial) of the highest promotion to at most level `top`; if `complete`, from complete rungs only."""
        rungs = list(enumerate(self._rungs, self.first))[: max(0, top - self.first)]
        if complete:
            rungs = rungs[: self._complete()]
        for level, rung in reversed(rungs):
            trial = rung.promotable(preferred)
            if trial is not None:
                return level, trial
        return None

    def last_promotion(self, top: int) -> tuple[int, int] | None:
        """(level, trial) that goes on though it is too few for a share: of a bracket that nobody joins any more.

        From level `top` on (PASHA) a rung promotes no share, only its best.
        """
        if not self._least:
            return None
        coming = self.members
        for level, rung in enumerate(self._rungs, self.first):
            if not rung.has_all(coming):
                return None
            going_on = rung.going_on if level < top else rung.promoted
            if not going_on:
                best = rung.best
                return None if best is None else (level, best)
            coming = going_on
        return None

    def _complete(self) -> int:
        """Rungs, from the first on, that every trial on its way there has reached, or will not reach."""
        coming, complete = self.members, 0
        for rung in self._rungs:
            if not rung.has_all(coming):
                break
            coming, complete = rung.going_on, complete + 1
        return complete

    def out_of_reach(self, more: int) -> list[int]:
        """Trials, each named once, that will not be promoted whatever `more` trials of the study bring."""
        if not self._rungs:
            return []
        found: list[int] = []
        members = self.members + more
        entering = (members if self.size is None else min(members, self.size)) - self._rungs[0].seen
        coming = 0
        for rung in self._rungs:
            coming += entering + rung.coming  # who may come to a rung may come to the one above
            found += rung.out_of_reach(rung.results + coming, self._least)
            entering = rung.undecided
        return found


class Schedule:
    """The brackets of a study."""

    def __init__(self, problem: Problem) -> None:
        scheduler = problem.search.scheduler
        self._problem = problem
        self._waits = scheduler.type in ("SuccessiveHalving", "Hyperband")
        self._placements: Iterator[Placement] = placements(scheduler, len(problem.resources))
        self._next = next(self._placements)
        self._brackets: dict[int, Bracket] = {}
        self.top = len(problem.resources) - 1
        """The highest level that trials are promoted to now."""

        self._grows = scheduler.type == "PASHA" and self.top > 1
        if self._grows:
            self.top = 1

    @property
    def next_first(self) -> int:
        """Level at which the next trial will start."""
        return self._next.first

    def place(self) -> Placement:
        """Take in the next trial; where it starts."""
        placement, self._next = self._next, next(self._placements)
        if placement.bracket not in self._brackets:
            self._brackets[placement.bracket] = Bracket(self._problem, placement)
        self._brackets[placement.bracket].members += 1
        return placement

    def __getitem__(self, bracket: int) -> Bracket:
        return self._brackets[bracket]

    def promotable(self, more: bool, preferred: Callable[[int], bool]) -> int | None:
        """The trial to promote next, the highest first; `more` trials may still be proposed."""
        found = [
            promotion
            for bracket in self._brackets.values()
            if bracket.paused
            if (promotion := self._promotion(bracket, more, preferred)) is not None
        ]
        return max(found, key=lambda promotion: promotion[0])[1] if found else None

    def _promotion(
        self, bracket: Bracket, more: bool, preferred: Callable[[int], bool]
    ) -> tuple[int, int] | None:
        full = not more or bracket.members == bracket.size
        if self._waits and not full:
            return None
        promotion = bracket.promotable(self._waits, self.top, preferred)
        return bracket.last_promotion(self.top) if promotion is None and full else promotion

    def out_of_reach(self, more: int) -> list[int]:
        """Paused trials, each named once, that will not be promoted whatever `more` trials bring."""
        if self._grows:
            return []  # its highest rung may yet promote
        return [n for bracket in self._brackets.values() for n in bracket.out_of_reach(more)]

    def reached(self, level: int, curves: "Curves") -> None:
        """A trial has reached `level`: PASHA adds a rung if the two highest disagree."""
        if not self._grows or level != self.top or level >= len(self._problem.resources) - 1:
            return
        bracket = self._brackets[0]
        below, here = bracket.rung(level - 1), bracket.rung(level)
        assert below is not None  # below the last level
        assert here is not None
        if not agree(below.scores, here.scores, noise(curves, list(here.scores))):
            self.top += 1


Curves: TypeAlias = Callable[[int], list[float]]
"""Trial → its score after each of its evaluations."""


def agree(below: dict[int, float], here: dict[int, float], tolerance: float) -> bool:
    """Whether the trials `here` are ranked as they were `below`, up to differences of `tolerance`.

    At each place of the ranking, the trial here must have been, below, within `tolerance` of the one that
    was at that place (Bohdal et al., "PASHA", ICLR 2023, section 4.2).
    """
    now = sorted(here, key=lambda trial: (-here[trial], trial))
    before = sorted(here, key=lambda trial: (-below[trial], trial))
    return all(
        abs(below[one] - below[other]) <= tolerance for one, other in zip(now, before, strict=True)
    )


def noise(curves: Curves, trials: list[int]) -> float:
    """How far apart trials are that overtake each other to and fro (section 4.3 of the same paper)."""
    gaps = []
    for one, other in combinations(trials[-50:], 2):
        ahead = [a - b for a, b in zip(curves(one), curves(other), strict=False)]
        signs = [gap > 0 for gap in ahead if gap]
        if sum(a != b for a, b in pairwise(signs)) >= 2 and abs(ahead[-1]) < FAR / 2:
            gaps.append(abs(ahead[-1]))  # where just one of them breaks conditions, it is no noise
    return sorted(gaps)[int(_NOISE_QUANTILE * (len(gaps) - 1))] if gaps else 0.0
