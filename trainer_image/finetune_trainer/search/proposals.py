"""Proposes trials: the next one follows from the problem and the records, never from parallelism alone.

The points that the study names come first, then what is recommended and the best of what it inherited. Grid, Random and
QuasiRandom follow from the trial's number; the others also from the results so far.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from finetune_api.combinations import (
    Params,
    conditions_last,
    grid,
    grid_size,
    is_active,
    is_finite,
    key_of,
)
from finetune_trainer.errors import SpecError
from finetune_trainer.search.domains import draw_params, place
from finetune_trainer.search.points import fitting, named_points, recommended_point
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.trials import Proposal, Trial

_DRAWS = 100
"""Draws that may repeat earlier trials, or break constraints, before a finite space is walked for what it still has."""

_CONTINUOUS_DRAWS = 10_000
"""The same where a space cannot be walked."""

_MODEL_DRAWS = 5
"""The same for draws from a model, after which independent ones follow."""

_INHERITED_FIRST = 3
"""Inherited trials that are tried again."""


_Draw: TypeAlias = Callable[[int, int, Sequence[Trial]], Proposal]
"""(trial, attempt, trials so far) -> its proposal; each attempt draws afresh."""


class Proposer:
    """Proposes one trial after the other, without duplicates.

    What was proposed is told by `record`, live and on resume alike, so the records keep their word even
    if a later version of this module would draw differently.
    """

    def __init__(self, problem: Problem) -> None:
        """Raises SpecError if the problem names a point that no space has, or wrong constraints."""
        self._problem = problem
        self._points = list(named_points(problem))
        self._recommended = recommended_point(problem)
        self._best_inherited: list[Params] = []
        self._adaptive = problem.search.algorithm in ("TPE", "GP", "Evolution", "CMAES")
        self._inherited: list[tuple[Params, float]] = []
        self._draws = _draws(problem, self._inherited)
        self._finite = all(is_finite(space) for space in problem.spaces)
        self._recorded = 0
        self._seen: set[str] = set()
        self._grid = grid(problem.spaces, problem.constraints)
        self._size = grid_size(problem.spaces, problem.constraints)
        self._next: Proposal | None = None
        self._walked = False

    @property
    def exhausted(self) -> bool:
        """Whether every combination has been proposed."""
        return self._walked or (self._size is not None and len(self._seen) >= self._size)

    def inherit(self, trials: Sequence[tuple[Params, float]]) -> None:
        """Learn from other studies' trials with their scores, best first."""
        self._inherited.extend(trials)
        self._best_inherited += [params for params, _ in trials[:_INHERITED_FIRST]]
        self._next = None

    def propose(self, trials: Sequence[Trial] = ()) -> Proposal | None:
        """The trial after the last one recorded; None if the space has no more."""
        if self._next is not None:
            return self._next
        proposal = None if self.exhausted else self._new(trials)
        self._walked = self._walked or proposal is None
        if not self._adaptive:  # the results may be others when it is asked again
            self._next = proposal
        return proposal

    def record(self, params: Params) -> None:
        """`params` is the next trial."""
        self._recorded += 1
        self._seen.add(key_of(params))
        self._next = None

    def check(self) -> None:
        """Raises SpecError if nothing fulfils the constraints."""
        if self.propose() is None:
            raise SpecError(
                "spec.search.constraints",
                "must leave something to try "
                f"(of {'all combinations' if self._finite else _CONTINUOUS_DRAWS} none fulfils them)",
            )

    def _new(self, trials: Sequence[Trial]) -> Proposal | None:
        for params in self._first():
            if self._is_new(params):
                return Proposal(params)
        for draw, attempts in self._draws:
            for attempt in range(attempts):
                proposal = draw(self._recorded, attempt, trials)
                if self._is_new(proposal.params):
                    return proposal
        return self._walk() if self._finite or not self._draws else None

    def _first(self) -> Iterator[Params]:
        """What comes before anything is drawn, in order."""
        yield from self._points
        # Later it had its turn, perhaps in a version with other recommendations.
        if self._recommended is not None and self._recorded <= len(self._points):
            yield self._recommended
        yield from self._best_inherited

    def _is_new(self, params: Params) -> bool:
        return key_of(params) not in self._seen and self._problem.admits(params)

    def _walk(self) -> Proposal | None:
        found = (params for params in self._grid if key_of(params) not in self._seen)
        return next(map(Proposal, found), None)


def _draws(
    problem: Problem, inherited: Sequence[tuple[Params, float]]
) -> tuple[tuple[_Draw, int], ...]:
    """How new trials are drawn, with how many attempts each; what finds nothing new hands over."""
    spaces, seed = problem.spaces, problem.search.seed
    finite = all(is_finite(space) for space in spaces)
    draws = _DRAWS if finite else _CONTINUOUS_DRAWS

    def at_random(number: int, attempt: int, _: Sequence[Trial]) -> Proposal:
        rng = random.Random(f"{seed}/{number}/{attempt}")
        return Proposal(draw_params(rng.choice(spaces), rng))

    match problem.search.algorithm:
        case "Grid":
            return ()
        case "QuasiRandom":
            return ((_Sobol(problem), draws),)
        case "Evolution":
            from finetune_trainer.search.evolution import Evolution

            return ((Evolution(problem, inherited), _DRAWS), (at_random, draws))
        case "TPE" | "GP":
            # Optuna only where it is used: it is large.
            from finetune_trainer.search.optuna_samplers import OptunaSampler

            return ((OptunaSampler(problem, inherited), _MODEL_DRAWS), (at_random, draws))
        case "CMAES":
            from finetune_trainer.search.covariance import CovarianceAdaptation

            return ((CovarianceAdaptation(problem, inherited), _MODEL_DRAWS), (at_random, draws))
        case "Random" | "PBT":
            return ((at_random, draws),)
        case "Auto":
            raise ValueError("the search must be chosen before it proposes")


def inheritable(
    problem: Problem, found: Sequence[tuple[Params, float]], most: int
) -> list[tuple[Params, float]]:
    """What of other studies' trials the problem's spaces have, best first, without duplicates."""
    seen: set[str] = set()
    fits: list[tuple[Params, float]] = []
    for given, value in sorted(found, key=lambda pair: -problem.score(pair[1])):
        params = fitting(problem, given)
        if params is not None and key_of(params) not in seen:
            seen.add(key_of(params))
            fits.append((params, value))
    return fits[:most]


class _Sobol:
    """Trial n is the n-th point of a scrambled Sobol sequence: the space is covered evenly.

    The first coordinate chooses the space, each of the others is one domain's.
    """

    def __init__(self, problem: Problem) -> None:
        from scipy.stats import qmc  # large, and the driver does not need it

        self._spaces = [conditions_last(space) for space in problem.spaces]
        dimensions = 1 + max(len(space) for space in self._spaces)
        self._engine = qmc.Sobol(dimensions, scramble=True, rng=problem.search.seed)
        self._points: list[list[float]] = []

    def __call__(self, number: int, attempt: int, _: Sequence[Trial]) -> Proposal:
        first, *others = self._point(number + attempt)
        params: Params = {}
        for (name, domain), u in zip(
            self._spaces[int(first * len(self._spaces))], others, strict=False
        ):
            if is_active(domain, params):
                params[name] = place(domain, u)
        return Proposal(params)

    def _point(self, index: int) -> list[float]:
        while len(self._points) <= index:  # in powers of two, as the sequence wants it
            self._points += self._engine.random(max(64, len(self._points))).tolist()
        return self._points[index]
