"""Generations of trials, as Evolution and CMAES see them."""

from collections.abc import Iterator, Sequence

from finetune_trainer.search.problem import Problem
from finetune_trainer.search.trials import Trial


def complete_generations(trials: Sequence[Trial], size: int) -> Iterator[list[Trial]]:
    """The first `size` trials with a result of each generation, one generation after the other.

    A generation is complete, and the next can begin, when so many of its trials have reached a rung or
    ended. What was proposed meanwhile belongs to it too but is not waited for.
    """
    by_generation: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.rung_values or trial.is_final:
            by_generation.setdefault(trial.generation or 0, []).append(trial)
    generation = 0
    while len(by_generation.get(generation, ())) >= size:
        yield by_generation[generation][:size]
        generation += 1


def merit(problem: Problem, trial: Trial) -> tuple[int, float, int]:
    """Larger is better: who came to a higher rung, then who has the better value there, then the earlier."""
    if trial.status in ("Diverged", "Failed") or not trial.rung_values:
        return -1, 0.0, -trial.number
    level = max(trial.rung_values)
    return level, problem.score(trial.rung_values[level]), -trial.number
