"""Proposes trials: the next one follows from the spec and the records, never from parallelism alone.

The points that the spec names come first. Grid, Random and QuasiRandom follow from the trial's number; TPE and GP also from the results so far.
"""

import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

from finetune_api.study import StudySpec
from finetune_trainer.search.domains import (
    Params,
    conditions_last,
    draw_params,
    grid,
    grid_size,
    is_active,
    is_finite,
    key_of,
    place,
)
from finetune_trainer.search.points import named_points
from finetune_trainer.search.trials import Trial

_DRAWS = 100
"""Draws that may repeat earlier trials before a finite space is walked for what it still has."""

_MODEL_DRAWS = 5
"""The same for draws from a model, after which independent ones follow."""

_Draw: TypeAlias = Callable[[int, int, Sequence[Trial]], Params]
"""(trial, attempt, trials so far) -> its parameters; each attempt draws afresh."""


class Proposer:
    """Proposes one trial after the other, without duplicates.

    What was proposed is told by `record`, live and on resume alike, so the records keep their word even
    if a later version of this module would draw differently.
    """

    def __init__(self, spec: StudySpec) -> None:
        """Raises SpecError if the spec names a point that no space has."""
        self._spaces = spec.spaces
        self._points = list(named_points(spec))
        self._draws = _draws(spec)
        self._adaptive = spec.search.algorithm in ("TPE", "GP")
        self._finite = all(is_finite(space) for space in self._spaces)
        self._recorded = 0
        self._seen: set[str] = set()
        self._grid = grid(self._spaces)
        self._size = grid_size(self._spaces)
        self._next: Params | None = None
        self._walked = False

    @property
    def exhausted(self) -> bool:
        """Whether every combination has been proposed."""
        return self._walked or (self._size is not None and len(self._seen) >= self._size)

    def propose(self, trials: Sequence[Trial] = ()) -> Params | None:
        """The parameters of the trial after the last one recorded; None if the space has no more."""
        if self._next is not None:
            return self._next
        params = None if self.exhausted else self._new(trials)
        self._walked = self._walked or params is None
        if not self._adaptive:  # the results may be others when it is asked again
            self._next = params
        return params

    def record(self, params: Params) -> None:
        """`params` is the next trial."""
        self._recorded += 1
        self._seen.add(key_of(params))
        self._next = None

    def _new(self, trials: Sequence[Trial]) -> Params | None:
        for params in self._points:
            if key_of(params) not in self._seen:
                return params
        for draw, attempts in self._draws:
            for attempt in range(attempts):
                params = draw(self._recorded, attempt, trials)
                if key_of(params) not in self._seen:
                    return params
        return self._walk() if self._finite or not self._draws else None

    def _walk(self) -> Params | None:
        return next((params for params in self._grid if key_of(params) not in self._seen), None)


def _draws(spec: StudySpec) -> tuple[tuple[_Draw, int], ...]:
    """How new trials are drawn, with how many attempts each; what finds nothing new hands over."""
    spaces, seed = spec.spaces, spec.search.seed

    def at_random(number: int, attempt: int, _: Sequence[Trial]) -> Params:
        rng = random.Random(f"{seed}/{number}/{attempt}")
        return draw_params(rng.choice(spaces), rng)

    match spec.search.algorithm:
        case "Grid":
            return ()
        case "Random":
            return ((at_random, _DRAWS),)
        case "QuasiRandom":
            return ((_Sobol(spec), _DRAWS),)
        case "TPE" | "GP":
            # Optuna only where it is used: it is large.
            from finetune_trainer.search.optuna_samplers import OptunaSampler

            return ((OptunaSampler(spec), _MODEL_DRAWS), (at_random, _DRAWS))


class _Sobol:
    """Trial n is the n-th point of a scrambled Sobol sequence: the space is covered evenly.

    The first coordinate chooses the space, each of the others is one domain's.
    """

    def __init__(self, spec: StudySpec) -> None:
        from scipy.stats import qmc  # large, and the driver does not need it

        self._spaces = [conditions_last(space) for space in spec.spaces]
        dimensions = 1 + max(len(space) for space in self._spaces)
        self._engine = qmc.Sobol(dimensions, scramble=True, rng=spec.search.seed)
        self._points: list[list[float]] = []

    def __call__(self, number: int, attempt: int, _: Sequence[Trial]) -> Params:
        first, *others = self._point(number + attempt)
        params: Params = {}
        for (name, domain), u in zip(
            self._spaces[int(first * len(self._spaces))], others, strict=False
        ):
            if is_active(domain, params):
                params[name] = place(domain, u)
        return params

    def _point(self, index: int) -> list[float]:
        while len(self._points) <= index:  # in powers of two, as the sequence wants it
            self._points += self._engine.random(max(64, len(self._points))).tolist()
        return self._points[index]
