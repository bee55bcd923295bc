"""Which values of trials may be compared with each other: those of equal training."""

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_reports.document import Report

ENOUGH = 5
"""Fewer say nothing."""

LEAST = 10
"""Trials with a value at a rung that make it worth comparing there."""


@dataclass(frozen=True)
class Comparable:
    """Values of trials that had as much training as each other."""

    values: Mapping[int, float]
    """By trial."""

    said: str
    """After how much training, in words."""


def comparable(report: Report) -> Comparable:
    """The values at the highest rung that at least ten trials, or a third of them but five, have reached."""
    usable = [trial for trial in report.trials if trial.place is not None]
    least = min(LEAST, max(ENOUGH, len(usable) // 3))
    for resource in reversed(report.rungs):
        found = {
            trial.number: value
            for trial in usable
            for at, value in trial.rungs
            if at == resource and value is not None
        }
        if len(found) >= least:
            unit = report.resource.lower()
            unit = unit.removesuffix("s") if resource == 1 else unit
            return Comparable(found, f"after {resource:g} {unit}")
    values = {trial.number: trial.value for trial in usable if trial.value is not None}
    return Comparable(values, "at their best evaluation")
