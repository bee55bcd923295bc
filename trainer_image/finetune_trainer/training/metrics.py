"""The metrics a study can name."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from finetune_api.metrics import of_slice, over_slices, plain
from finetune_api.tasks import Task
from finetune_trainer.data.slices import Slices
from finetune_trainer.tasks import Labels, Logits, task_of


def compute_metrics(
    task: Task,
    logits: Logits,
    labels: Labels,
    names: Iterable[str],
    thresholds: NDArray[np.float64] | None = None,
    slices: Sequence[Slices] = (),
) -> dict[str, float]:
    """The metrics `names` of `logits` against `labels`; undefined ones are left out.

    `thresholds` (outputs,) are the probabilities from which outputs are predicted, of tasks that have them; None
    means one half for each. `slices` are how these rows are divided: each metric is also computed for each slice, and
    names that end in @worst or @gap are of these. How each metric is defined is said by the task
    (`finetune_trainer.tasks`).
    """
    asked = tuple(dict.fromkeys(names))
    metrics = tuple(dict.fromkeys(map(plain, asked)))
    values = {name: _value(name, task, logits, labels, thresholds) for name in metrics}
    for one in slices:
        for value, rows in one:
            chosen = task, logits[rows], labels[rows], thresholds
            values |= {of_slice(m, one.division, value): _value(m, *chosen) for m in metrics}
    found = {name: value for name, value in values.items() if math.isfinite(value)}
    return {**found, **over_slices(found, asked)}


def _value(
    name: str,
    task: Task,
    logits: Logits,
    labels: Labels,
    thresholds: NDArray[np.float64] | None,
) -> float:
    if name == "loss":
        return task_of(task).value_of_loss(logits, labels)
    return task_of(task).metric(name, logits, labels, thresholds)
