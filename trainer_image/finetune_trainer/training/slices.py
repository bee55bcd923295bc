"""How well a model does on each slice of some rows, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.metrics import plain
from finetune_api.tasks import Task
from finetune_trainer.data.slices import Slices
from finetune_trainer.tasks import Labels, Logits
from finetune_trainer.training.metrics import compute_metrics

RESAMPLES = 200
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class SliceReport:
    """How a model does on the rows of one slice."""

    division: str
    value: str
    rows: int
    metrics: dict[str, float]
    """Those that are defined for these rows."""

    interval: tuple[float, float] | None = None
    """Where the objective's metric lies in 95 % of samples of as many rows, drawn from these with replacement (the
    bootstrap; Efron, 1979); None if it is defined in none of them."""


def slice_reports(
    task: Task,
    logits: Logits,
    labels: Labels,
    names: Sequence[str],
    thresholds: NDArray[np.float64] | None,
    slices: Sequence[Slices],
) -> list[SliceReport]:
    """A report on each slice of rows with these `logits` (rows, outputs) and `labels`.

    The first of `names` is the objective's metric.
    """
    metrics = tuple(dict.fromkeys(map(plain, names)))
    return [
        SliceReport(
            one.division,
            value,
            len(rows),
            compute_metrics(task, logits[rows], labels[rows], metrics, thresholds),
            interval(task, logits[rows], labels[rows], metrics[0], thresholds),
        )
        for one in slices
        for value, rows in one
    ]


def interval(
    task: Task,
    logits: Logits,
    labels: Labels,
    metric: str,
    thresholds: NDArray[np.float64] | None,
) -> tuple[float, float] | None:
    """Where a metric lies in 95 % of samples of as many rows, drawn from these with replacement; None if it is defined
    in none of them."""
    generator = np.random.default_rng(0)
    values: list[float] = []
    for _ in range(RESAMPLES):
        rows = generator.integers(len(labels), size=len(labels))
        values += compute_metrics(task, logits[rows], labels[rows], [metric], thresholds).values()
    if not values:
        return None
    low, high = np.percentile(values, _TAILS)
    return float(low), float(high)
