"""What a study will cost at most, before anything runs."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.study import StudySpec
from finetune_trainer.search.domains import grid_size, values_of
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
    """Trials at each rung if it promotes its best 1/reductionFactor and no more."""

    expected_epochs: int | None
    """Epochs of these rungs; None where trials differ in their epochs."""

    worst_case_epochs: int | None
    """Epochs if each trial is better than all before it: a promotion of ASHA can prove premature, so most
    of the trials go all the way. No order of results needs more."""


def make_plan(spec: StudySpec) -> Plan:
    """The plan of a study."""
    counts = (grid_size(spec.spaces), spec.budget.max_trials)
    trials = min((count for count in counts if count is not None), default=None)
    if trials is None:
        return Plan(None, (), None, None)
    epochs = rung_epochs(spec.search.scheduler, spec.max_epochs)
    factor = spec.search.scheduler.reduction_factor
    expected = _reaching(trials, len(epochs), lambda results: results // factor)
    premature = spec.search.scheduler.type == "ASHA"
    worst = _reaching(
        trials,
        len(epochs),
        lambda results: max(0, results - factor + 1) if premature else results // factor,
    )
    rungs = tuple(PlannedRung(*rung) for rung in zip(epochs, expected, strict=True))
    if any("epochs" in space.domains() for space in spec.spaces):  # never with several rungs
        return Plan(trials, rungs[:0], None, trials * _longest(spec))
    return Plan(trials, rungs, _sum(epochs, expected), _sum(epochs, worst))


def _reaching(trials: int, rungs: int, promoted: Callable[[int], int]) -> list[int]:
    """Trials at each rung."""
    reaching = [trials]
    for _ in range(rungs - 1):
        reaching.append(promoted(reaching[-1]))
    return reaching


def _sum(epochs: tuple[int, ...], reaching: list[int]) -> int:
    steps = (after - before for before, after in zip((0, *epochs), epochs, strict=False))
    return sum(step * trials for step, trials in zip(steps, reaching, strict=True))


def _longest(spec: StudySpec) -> int:
    """The most epochs a trial can have."""
    domains = [space.domains().get("epochs") for space in spec.spaces]
    values = [values_of(domain) if domain else (spec.max_epochs,) for domain in domains]
    return max(int(max(found)) for found in values if found)
