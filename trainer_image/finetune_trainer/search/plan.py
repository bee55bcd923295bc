"""What a study will cost at most, before anything runs."""

from dataclasses import dataclass

from finetune_api.study import Budget, StudySpec
from finetune_trainer.search.proposals import grid_size
from finetune_trainer.search.rungs import rung_epochs


@dataclass(frozen=True)
class PlannedRung:
    """Trials that reach `epochs`."""

    epochs: int
    trials: int


@dataclass(frozen=True)
class Plan:
    """How many trials, how far they train, and the epochs of all together."""

    trials: int | None
    """None where only time limits the search."""

    rungs: tuple[PlannedRung, ...]
    expected_epochs: int | None
    """Epochs if each rung promotes its best 1/reductionFactor and no more."""

    worst_case_epochs: int | None
    """Epochs if trials arrive worst first, so that every one looks promising for a while: an upper bound."""


def planned_trials(spec: StudySpec, budget: Budget) -> int | None:
    """Trials the study will propose unless something ends it early."""
    size = grid_size(spec.spaces)
    counts = [count for count in (size, budget.max_trials) if count is not None]
    return min(counts, default=None)


def make_plan(spec: StudySpec) -> Plan:
    """The plan of a study."""
    trials = planned_trials(spec, spec.budget)
    epochs = rung_epochs(spec.search.scheduler, spec.max_epochs)
    if trials is None:
        return Plan(None, (), None, None)
    rungs: list[PlannedRung] = []
    reaching = trials
    for epoch in epochs:
        rungs.append(PlannedRung(epoch, reaching))
        reaching //= spec.search.scheduler.reduction_factor
    steps = [after - before for before, after in zip((0, *epochs), epochs, strict=False)]
    expected = sum(step * rung.trials for step, rung in zip(steps, rungs, strict=True))
    worst = trials * _longest(spec)
    return Plan(trials, tuple(rungs), expected if _longest(spec) == epochs[-1] else None, worst)


def _longest(spec: StudySpec) -> int:
    """The most epochs a trial can have."""
    domains = [space.domains().get("epochs") for space in spec.spaces]
    searched = [
        max(domain.finite_values() or (getattr(domain, "max", 0),)) for domain in domains if domain
    ]
    return int(max([*searched, *([spec.max_epochs] if None in domains else [])]))
