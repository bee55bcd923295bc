"""The metrics of a constant prediction, which a trained model must beat."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.training.head import label_priors
from finetune_trainer.training.metrics import compute_metrics


def baseline_metrics(
    data: PreparedData, metrics: Iterable[str], part: str = "test"
) -> dict[str, float]:
    """Metrics, on `part`, of the best prediction that does not read the texts of its rows.

    It is the mean for Regression and the most frequent class for SingleLabel. For MultiLabel it is the
    set of the most frequent labels with the best micro F1 on the training rows. `loss` is that of
    predicting the share of each label.
    """
    labels = data.labels[data.part(part)]
    known = data.labels[data.train]
    scores, priors = _constants(data, known)
    names = list(metrics)

    def of(row: NDArray[np.float32], chosen: list[str]) -> dict[str, float]:
        return compute_metrics(data.task, np.tile(row, (len(labels), 1)), labels, chosen)

    values = {**of(scores, [n for n in names if n != "loss"]), **of(priors, ["loss"])}
    return {name: values[name] for name in names if name in values}


def _constants(
    data: PreparedData, known: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of the constant prediction, and logits that predict the shares of the labels."""
    priors = label_priors(data.task, known, len(data.label_names)).astype(np.float32)
    return (_best_set(known) if data.task == "MultiLabel" else priors), priors


def _best_set(known: NDArray[np.bool_]) -> NDArray[np.float32]:
    counts = known.sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    hits = np.cumsum(counts[order])
    sizes = np.arange(1, len(order) + 1)
    f1 = 2 * hits / (sizes * len(known) + counts.sum())
    chosen = np.full(len(order), -1.0, dtype=np.float32)
    chosen[order[: int(f1.argmax()) + 1]] = 1.0
    return chosen
