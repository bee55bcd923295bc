"""Metrics of validation rows with thresholds that were tuned on other rows.

Thresholds look better than they are on the rows they were tuned on, above all those of rare labels. So a study
that tunes them divides its validation rows into a few folds; each fold is judged with thresholds tuned on the
others, and a metric is the mean over folds. It costs no training.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from finetune_api.metrics import over_slices
from finetune_api.tasks import Task
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.data.slices import Slices
from finetune_trainer.data.split import fold_rows
from finetune_trainer.tasks import task_of
from finetune_trainer.training.metrics import compute_metrics

FOLDS = 5
"""Folds of the validation rows; fewer if there are fewer rows, or fewer groups of them."""

Tune: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float64]]
"""Logits and labels (rows, outputs) to thresholds (outputs,)."""


def tuning_folds(
    labels: NDArray[np.bool_], groups: NDArray[np.int64] | None
) -> list[NDArray[np.int64]]:
    """The folds of rows with `labels` (rows, outputs): row numbers, ascending.

    They depend on nothing else. Each fold has nearly the same share of each label set; rows of the same group
    are in one fold. Empty if there are fewer than two rows, or groups.
    """
    folds = min(FOLDS, len(labels) if groups is None else len(np.unique(groups)))
    return fold_rows(labels, folds, seed=0, stratify=True, groups=groups) if folds > 1 else []


def validation_folds(data: PreparedData) -> list[NDArray[np.int64]]:
    """The folds of the validation rows, by their positions among these; empty unless the task has thresholds."""
    if not task_of(data.task).has_thresholds or not len(data.validation):
        return []
    groups = None if data.groups is None else data.groups[data.validation]
    return tuning_folds(data.labels[data.validation], groups)


def metrics_out_of_fold(
    task: Task,
    logits: NDArray[np.float32],
    labels: NDArray[np.bool_],
    folds: Sequence[NDArray[np.int64]],
    names: Sequence[str],
    tune: Tune,
    slices: Sequence[Slices] = (),
) -> dict[str, float]:
    """The means over `folds` of the metrics `names`, with thresholds that `tune` finds on the rows of the other folds.

    If a metric is undefined in a fold, it is the mean over the others; if in all, it is left out. `slices` as in
    `compute_metrics`: the worst slice and the largest gap are those of the means.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for fold in folds:
        others = np.setdiff1d(np.arange(len(labels)), fold)
        thresholds = tune(logits[others], labels[others])
        there = [one.at(fold) for one in slices]
        metrics = compute_metrics(task, logits[fold], labels[fold], names, thresholds, there)
        for name, value in metrics.items():
            found[name].append(value)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {**means, **over_slices(means, names)}
