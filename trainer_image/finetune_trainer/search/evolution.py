"""Evolution: children of the best of all earlier generations, crossed and mutated.

NSGA-II: Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm", IEEE Transactions on
Evolutionary Computation, 2002. Of several objectives the parents are the fronts that dominate, thinned
out where they are crowded. A child's hyperparameters come from either parent; each then moves a little
with probability 1/n, on its own scale.
"""

import math
import random
from collections.abc import Sequence

from finetune_api.combinations import Params, conditions_last, is_active
from finetune_api.hyperparameters import Scalar
from finetune_api.spaces import ChoiceDomain, Domain
from finetune_trainer.search.domains import coordinate, draw, draw_params, member, place, space_of
from finetune_trainer.search.generations import generations, merit, with_results
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.trials import Proposal, Trial

_SPREAD = 0.1
"""Standard deviation of a mutation, as a share of the domain on its scale."""


class Evolution:
    """Proposes children of the parents that the trials so far lead to."""

    def __init__(self, problem: Problem, inherited: Sequence[tuple[Params, float]]) -> None:
        """The best of `inherited` are the parents of the first generation."""
        self._problem = problem
        self._size = problem.search.population_size
        self._inherited = inherited

    def __call__(self, number: int, attempt: int, trials: Sequence[Trial]) -> Proposal:
        rng = random.Random(f"{self._problem.search.seed}/child/{number}/{attempt}")
        generation, parents = 0, list[Trial]()
        for members in generations(with_results(trials), self._size):
            parents = self._selected([*parents, *members])
            generation += 1
        forebears = [trial.params for trial in parents] or self._heirlooms()
        if not forebears:
            return Proposal(draw_params(rng.choice(self._problem.spaces), rng), generation)
        mother, father = (_tournament(forebears, rng) for _ in range(2))
        return Proposal(self._child(mother, father, rng), generation)

    def _heirlooms(self) -> list[Params]:
        return [params for params, _ in self._inherited[: self._size]]

    def _selected(self, candidates: list[Trial]) -> list[Trial]:
        """The parents of the next generation, best first."""
        if len(self._problem.goals) == 1:
            ranked = sorted(candidates, key=lambda t: merit(self._problem, t), reverse=True)
            return ranked[: self._size]
        chosen: list[Trial] = []
        for front in self._fronts(candidates):
            crowding = self._crowding(front)
            chosen += sorted(front, key=lambda trial: (-crowding[trial.number], trial.number))
            if len(chosen) >= self._size:
                break
        return chosen[: self._size]

    def _fronts(self, candidates: list[Trial]) -> list[list[Trial]]:
        """Candidates in layers: none of a layer is dominated by another of it or of a later one."""
        left = {trial.number: self._scores(trial) for trial in candidates}
        by_number = {trial.number: trial for trial in candidates}
        fronts = []
        while left:
            front = [
                number
                for number, scores in left.items()
                if not any(_dominates(other, scores) for other in left.values())
            ]
            fronts.append([by_number[number] for number in front])
            for number in front:
                del left[number]
        return fronts

    def _crowding(self, front: list[Trial]) -> dict[int, float]:
        """How far from its neighbours each trial is, over all objectives."""
        distance = {trial.number: 0.0 for trial in front}
        for objective in range(len(self._problem.goals)):
            ordered = sorted(front, key=lambda trial: self._scores(trial)[objective])
            values = [self._scores(trial)[objective] for trial in ordered]
            width = values[-1] - values[0]
            distance[ordered[0].number] = distance[ordered[-1].number] = math.inf
            if not 0 < width < math.inf:
                continue
            for below, trial, above in zip(values, ordered[1:], values[2:], strict=False):
                distance[trial.number] += (above - below) / width
        return distance

    def _scores(self, trial: Trial) -> tuple[float, ...]:
        if trial.best is None or not trial.is_candidate:
            return (-math.inf,) * len(self._problem.goals)
        return self._problem.ranked_scores(trial.best.value, trial.best.metrics)

    def _child(self, mother: Params, father: Params, rng: random.Random) -> Params:
        space = space_of(self._problem.spaces, mother)
        if space is None:  # of an earlier version's making
            return draw_params(rng.choice(self._problem.spaces), rng)
        child: Params = {}
        for name, domain in conditions_last(space):
            if is_active(domain, child):
                heirs = [
                    value
                    for parent in (mother, father)
                    if name in parent and (value := member(domain, parent[name])) is not None
                ]
                value = rng.choice(heirs) if heirs else draw(domain, rng)
                mutates = rng.random() < 1 / len(space)
                child[name] = _mutated(domain, value, rng) if mutates else value
        return child


def _tournament(forebears: list[Params], rng: random.Random) -> Params:
    """The better of two: they are in order."""
    return forebears[min(rng.randrange(len(forebears)) for _ in range(2))]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _mutated(domain: Domain, value: Scalar, rng: random.Random) -> Scalar:
    """A neighbour of the value; of words, any other."""
    if isinstance(domain, ChoiceDomain):
        others = [word for word in domain.values if word != value]
        return rng.choice(others) if others else value
    at = coordinate(domain, float(value)) + rng.gauss(0.0, _SPREAD)
    moved = place(domain, min(max(at, 0.0), math.nextafter(1.0, 0.0)))
    return moved if moved != value else draw(domain, rng)
