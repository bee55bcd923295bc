"""CMA-ES: a normal distribution over the unit cube of hyperparameters that follows what does well.

Hansen and Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies", Evolutionary
Computation, 2001, as in the package `cmaes`. The distribution is replayed from the records, generation by
generation, for each proposal; a generation is `populationSize` trials in the order in which their results
came. With rungs it learns by BOHB's rule (`lessons`): generations are of the highest rung that has a whole one,
and a share of the trials is drawn at random.
"""

import math
import random
from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
from cmaes import CMA

from finetune_api.combinations import Params, conditions_last
from finetune_trainer.search.domains import coordinate, draw_params, place
from finetune_trainer.search.generations import generations
from finetune_trainer.search.lessons import draws_at_random, lesson
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.trials import Proposal, Trial

_SIGMA = 0.25
"""Standard deviation at the start, of a cube with sides of 1."""

_Point: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"


class CovarianceAdaptation:
    """Proposes draws from the distribution that the trials so far lead to."""

    def __init__(self, problem: Problem, inherited: Sequence[tuple[Params, float]]) -> None:
        """The distribution begins around the best of `inherited`."""
        self._problem = problem
        self._inherited = inherited
        self._domains = conditions_last(problem.spaces[0])
        self._size = problem.search.population_size

    def __call__(self, number: int, attempt: int, trials: Sequence[Trial]) -> Proposal:
        told = self._told(trials)
        generation = len(told) // self._size
        by_rungs = len(self._problem.resources) > 1
        if draws_at_random(self._problem, number) or (
            by_rungs and not generation and not self._inherited
        ):
            rng = random.Random(f"{self._problem.search.seed}/random/{number}/{attempt}")
            return Proposal(draw_params(self._problem.spaces[0], rng), generation)
        distribution = self._start()
        for members in generations(told, self._size):
            distribution.tell(_ranked(members))
        distribution.reseed_rng(self._problem.seed(f"{number}/{attempt}"))
        at = np.clip(distribution.ask(), 0.0, np.nextafter(1.0, 0.0))
        params = {
            name: place(domain, float(u))
            for (name, domain), u in zip(self._domains, at, strict=True)
        }
        return Proposal(params, generation)

    def _told(self, trials: Sequence[Trial]) -> list[tuple[_Point, float]]:
        """Points and their scores, in the order of the results; who failed is worse than any."""
        learned = lesson(self._problem, trials, self._size)
        if learned is None:
            return []
        results = [*learned.results, *((trial, -math.inf) for trial in learned.failed)]
        results.sort(key=lambda result: result[0].arrival(learned.level))
        return [(self._point(trial.params), score) for trial, score in results]

    def _start(self) -> CMA:
        best = self._inherited[0][0] if self._inherited else None
        mean = self._point(best) if best else np.full(len(self._domains), 0.5)
        bounds = np.tile([0.0, 1.0], (len(mean), 1))
        return CMA(mean=mean, sigma=_SIGMA, bounds=bounds, population_size=self._size, seed=0)

    def _point(self, params: Params) -> _Point:
        places = [coordinate(domain, cast(float, params[name])) for name, domain in self._domains]
        return np.array(places)


def _ranked(members: Sequence[tuple[_Point, float]]) -> list[tuple[_Point, float]]:
    """The points of a generation with their places, the best first; of equals the earlier."""
    ranking = sorted(members, key=lambda member: -member[1])
    return [(point, float(place)) for place, (point, _) in enumerate(ranking)]
