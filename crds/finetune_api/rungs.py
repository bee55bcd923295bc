"""Rungs at which trials are compared, and the brackets of rungs that trials climb."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from finetune_api.search import Scheduler
from finetune_api.study import StudySpec

RungRule: TypeAlias = Literal["Share", "SomeWhole"]
"""By which rule trials are promoted. Share: exactly a share of the results at a rung. SomeWhole: a diverged trial is
a result too, once nothing more can come to a rung it promotes at least one trial, and there is no rung just below a
whole training. A study keeps the rule that it began with; those begun before rules were recorded have Share."""

_OPEN_END = 1e9
"""More training rows, and more seconds, than any trial has."""


@dataclass(frozen=True)
class Placement:
    """Where a trial starts to climb."""

    bracket: int = 0
    """Trials are compared with those in the same bracket."""

    first: int = 0
    """Index of the rung it starts at."""

    size: int | None = None
    """Trials that the bracket takes; None if any number."""


def rung_resources(
    scheduler: Scheduler, epochs: int, folds: int = 1, rule: RungRule = "SomeWhole"
) -> tuple[float, ...]:
    """The resource at each rung, the last being a whole training.

    `epochs` and `folds` are those of a whole training. Over Samples and Seconds the rungs go on beyond
    what any trial has: a trial that has trained on all rows, or for all epochs, has ended.

    By rule SomeWhole, a whole training that is less than √reductionFactor times the rung below takes that rung's
    place (10 epochs: 1, 3, 10), unless that is the lowest: such a rung saves little, and costs a comparison.
    """
    if scheduler.type == "None":
        return (epochs,)
    most = {"Epochs": epochs, "Folds": folds}.get(scheduler.resource, _OPEN_END)
    resources: list[float] = []
    resource = scheduler.min_resource
    while resource < most * (1 - 1e-9):
        resources.append(_plain(resource))
        if scheduler.type == "MedianStop":
            resource = scheduler.min_resource * (len(resources) + 1)
        elif scheduler.resource == "Folds":
            resource = min(most, max(resource + 1, resource * scheduler.reduction_factor))
        else:
            resource *= scheduler.reduction_factor
    near = scheduler.type != "MedianStop" and len(resources) > 1
    if (
        rule == "SomeWhole"
        and near
        and most / resources[-1] < math.sqrt(scheduler.reduction_factor)
    ):
        resources.pop()
    return (*resources, _plain(most))


def resources_of(spec: StudySpec) -> tuple[float, ...]:
    """The rungs of a study."""
    return rung_resources(spec.search.scheduler, spec.max_epochs, spec.validation.folds)


def _plain(resource: float) -> float:
    """Whole numbers as such, for people and for records."""
    return int(resource) if float(resource).is_integer() else resource


def promotions(scheduler: Scheduler, results: int) -> int:
    """How many of `results` trials at a rung may go on while more results may come."""
    if scheduler.type == "MedianStop":
        return (results + 1) // 2
    return results // scheduler.reduction_factor


def placements(scheduler: Scheduler, levels: int) -> Iterator[Placement]:
    """The placement of one trial after the other, for rungs of `levels` levels; without end."""
    sizes = _bracket_sizes(scheduler, levels)
    if scheduler.type == "Hyperband":
        bracket = 0
        while True:
            for first, size in enumerate(sizes):
                for _ in range(size):
                    yield Placement(bracket, first, size)
                bracket += 1
    counts = [0] * len(sizes)
    total = sum(sizes)
    while True:  # it goes to the bracket that lacks most of its share
        done = sum(counts) + 1
        bracket = max(range(len(sizes)), key=lambda b: sizes[b] * done / total - counts[b])
        counts[bracket] += 1
        yield Placement(bracket, bracket)


def _bracket_sizes(scheduler: Scheduler, levels: int) -> list[int]:
    """Trials in each bracket of one round of Hyperband: all brackets get the same number of epochs."""
    if scheduler.type == "Hyperband":
        count = min(scheduler.brackets or levels, levels)
    else:
        count = min(scheduler.brackets or 1, levels)
    height = levels if scheduler.resource in ("Epochs", "Folds") else count
    return [
        math.ceil(height / (height - first) * scheduler.reduction_factor ** (height - first - 1))
        for first in range(count)
    ]
