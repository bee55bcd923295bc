"""CMA-ES: a normal distribution over the unit cube of hyperparameters that follows what does well.

Hansen and Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies", Evolutionary
Computation, 2001, as in the package `cmaes`. The distribution is replayed from the records, generation by
generation, for each proposal; a generation ends when its first `populationSize` trials have a result, and
trials proposed meanwhile are drawn from it as well.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
from cmaes import CMA

from finetune_api.combinations import Params, conditions_last
from finetune_trainer.search.domains import coordinate, place
from finetune_trainer.search.generations import complete_generations, merit
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.trials import Proposal, Trial

_SIGMA = 0.25
"""Standard deviation at the start, of a cube with sides of 1."""


class CovarianceAdaptation:
    """Proposes draws from the distribution that the trials so far lead to."""

    def __init__(self, problem: Problem, inherited: Sequence[tuple[Params, float]]) -> None:
        self._problem = problem
        self._inherited = inherited
        self._domains = conditions_last(problem.spaces[0])
        self._size = problem.search.population_size

    def __call__(self, number: int, attempt: int, trials: Sequence[Trial]) -> Proposal:
        distribution = self._start()
        generation = 0
        for members in complete_generations(trials, self._size):
            distribution.tell(self._ranked(members))
            generation += 1
        distribution.reseed_rng(self._problem.seed(f"{number}/{attempt}"))
        at = np.clip(distribution.ask(), 0.0, np.nextafter(1.0, 0.0))
        params = {
            name: place(domain, float(u))
            for (name, domain), u in zip(self._domains, at, strict=True)
        }
        return Proposal(params, generation)

    def _start(self) -> CMA:
        best = self._inherited[0][0] if self._inherited else None
        mean = self._point(best) if best else np.full(len(self._domains), 0.5)
        bounds = np.tile([0.0, 1.0], (len(mean), 1))
        return CMA(mean=mean, sigma=_SIGMA, bounds=bounds, population_size=self._size, seed=0)

    def _point(self, params: Params) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        places = [coordinate(domain, cast(float, params[name])) for name, domain in self._domains]
        return np.array(places)

    def _ranked(
        self, trials: Sequence[Trial]
    ) -> list[tuple["np.ndarray[tuple[int], np.dtype[np.float64]]", float]]:
        """Points with their place in the ranking: who came further is better, then who has the better value."""
        ranking = sorted(trials, key=lambda trial: merit(self._problem, trial), reverse=True)
        return [(self._point(trial.params), float(place)) for place, trial in enumerate(ranking)]
