"""The metrics of a constant prediction, which a trained model must beat."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from finetune_api.metrics import plain
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.tasks import task_of
from finetune_trainer.training.metrics import compute_metrics


def baseline_metrics(
    data: PreparedData, metrics: Iterable[str], part: str = "test"
) -> dict[str, float]:
    """Metrics, on `part`, of the best prediction that does not read the texts of its rows.

    It is what the task takes for the best constant; `loss` is that of predicting the share of each label.
    """
    labels, slices = data.labels[data.part(part)], data.slices_at(data.part(part))
    known = data.labels[data.train]
    task, outputs = task_of(data.task), len(data.label_names)
    constant, priors = task.constant(known, outputs), task.priors(known, outputs)
    names = list(metrics)

    def of(row: NDArray[np.float64], chosen: list[str]) -> dict[str, float]:
        logits = task.tiled(row, labels)
        return compute_metrics(data.task, logits, labels, chosen, slices=slices)

    loss = [name for name in names if plain(name) == "loss"]
    values = {**of(constant, [name for name in names if name not in loss]), **of(priors, loss)}
    return {name: values[name] for name in names if name in values}
