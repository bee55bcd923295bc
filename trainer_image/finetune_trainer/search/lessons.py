"""What a model of the hyperparameters learns from: results at one rung, never a mixture of depths.

The rule is that of BOHB (Falkner et al., "BOHB: Robust and Efficient Hyperparameter Optimization at Scale", ICML
2018, section 4) but for one thing: the model is that of the highest rung with enough results, and a share of the
trials is drawn at random, since what is best at that rung need not be best in the end. Unlike BOHB, it learns
nothing from rungs that are far from a whole training. What is best after one of 52 epochs is often bad after all of
them: on LCBench a model of such rungs is worse than random draws (docs/search.md has the figures).
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.search.domains import space_of
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.trials import Trial

RANDOM_SHARE = 1 / 3
"""Of the trials of a search with rungs: as in BOHB."""

_DEEP = 2
"""A model learns at rungs with at least 1 / reductionFactor ** _DEEP of a whole training."""

STARTUP = 5
"""Results that a model needs where all trials are trained whole, and a Gaussian process at any rung."""

_BEYOND_DIMENSIONS = 3
"""Results that a model of densities (TPE, CMAES) needs at a rung beyond one for each hyperparameter: as in BOHB."""


@dataclass(frozen=True)
class Lesson:
    """Trials by their value at one rung, in the order in which they came there."""

    level: int
    """The rung, from 0."""

    results: list[tuple[Trial, float]]
    """Trials that have come there, or had ended by themselves before, with their scores: larger is better."""

    failed: list[Trial]
    """Trials that failed or diverged before they came there."""


def draws_at_random(problem: Problem, number: int) -> bool:
    """Whether trial `number` belongs to the share that no model proposes."""
    several = len(problem.resources) > 1
    return (
        several and random.Random(f"{problem.search.seed}/share/{number}").random() < RANDOM_SHARE
    )


def lesson(problem: Problem, trials: Sequence[Trial], least: int | None = None) -> Lesson | None:
    """The results of the highest rung that has enough of them for a model, and at least `least`; None if none has.

    Where all trials are trained whole, `least` are enough, by default STARTUP.
    """
    for level in reversed(range(_lowest(problem, trials), len(problem.resources))):
        results = _results(problem, trials, level)
        if _enough(problem, [trial for trial, _ in results], least):
            there = {trial.number for trial, _ in results}
            failed = (trial for trial in trials if trial.status in ("Diverged", "Failed"))
            return Lesson(
                level,
                results,
                [trial for trial in failed if trial.number not in there],
            )
    return None


def _lowest(problem: Problem, trials: Sequence[Trial]) -> int:
    """The lowest rung that a model may learn from."""
    *rungs, whole = problem.resources
    if problem.rung_by in ("Epochs", "Folds"):
        share = float(problem.search.scheduler.reduction_factor) ** -_DEEP
        return sum(resource < whole * share * (1 - 1e-9) for resource in rungs)
    # How many rows or seconds a whole training has is known only once a trial was there.
    highest = max((max(trial.rung_values) for trial in trials if trial.rung_values), default=0)
    return max(1, highest - 1)


def _results(problem: Problem, trials: Sequence[Trial], level: int) -> list[tuple[Trial, float]]:
    found = [
        (trial, score)
        for trial in trials
        if (score := _score_at(problem, trial, level)) is not None and math.isfinite(score)
    ]
    return sorted(found, key=lambda pair: pair[0].arrival(level))


def _score_at(problem: Problem, trial: Trial, level: int) -> float | None:
    """The trial's score at that rung, or at its end if it ended by itself before; None without one."""
    return problem.score_at(trial, level_of(trial, level))


def level_of(trial: Trial, level: int) -> int:
    """The rung at which a trial that counts at `level` has its value: that one, or the last before it ended by itself."""
    ended = trial.status == "Completed" and trial.rung_values
    return min(level, max(trial.rung_values)) if ended else level


def _enough(problem: Problem, trials: Sequence[Trial], least: int | None) -> bool:
    """Whether a model can be made of them: at a rung one of some space, by the hyperparameters of its trials."""
    simple = len(problem.resources) == 1 or problem.search.algorithm == "GP"
    if simple or len(trials) < (least or 0):
        return len(trials) >= (STARTUP if least is None else least)
    counts, dimensions = Counter[int](), Counter[int]()
    for trial in trials:
        space = space_of(problem.spaces, trial.params)
        if space is not None:
            counts[id(space)] += 1
            dimensions[id(space)] = max(dimensions[id(space)], len(trial.params))
    return any(counts[space] >= dimensions[space] + _BEYOND_DIMENSIONS for space in counts)
