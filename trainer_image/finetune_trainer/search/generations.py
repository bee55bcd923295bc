"""Generations of trials, as Evolution and CMAES see them."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from finetune_trainer.search.problem import Problem
from finetune_trainer.search.trials import Trial

T = TypeVar("T")


def generations(ordered: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Whole generations of `size`, in the order in which results came.

    A generation is closed by its last result and stays as it is. A trial that comes later, however long ago it
    was proposed, belongs to the next: nothing that was trained is left out.
    """
    whole = len(ordered) - len(ordered) % size
    for begin in range(0, whole, size):
        yield ordered[begin : begin + size]


def with_results(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that have reached a rung or ended, in that order."""
    found = [trial for trial in trials if trial.rung_values or trial.is_final]
    return sorted(found, key=lambda trial: trial.first_arrival)


def merit(problem: Problem, trial: Trial) -> tuple[int, float, int]:
    """Larger is better: who came to a higher rung, then who has the better value there, then the earlier."""
    if trial.status in ("Diverged", "Failed") or not trial.rung_values:
        return -1, 0.0, -trial.number
    level = max(trial.rung_values)
    score = problem.score_at(trial, level)
    assert score is not None  # it has a value there
    return level, score, -trial.number
