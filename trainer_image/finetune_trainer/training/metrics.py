"""The metrics a study can name, by scikit-learn."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import metrics as sk

from finetune_api.metrics import Task
from finetune_trainer.training.losses import mean_loss

_AVERAGED = {
    "precision": sk.precision_score,
    "recall": sk.recall_score,
    "f1": sk.f1_score,
}


def compute_metrics(
    task: Task, logits: NDArray[np.float32], labels: NDArray[Any], names: Iterable[str]
) -> dict[str, float]:
    """The metrics `names` of `logits` (rows, outputs) against `labels`; undefined ones are left out.

    A label counts as predicted in MultiLabel where its probability is above one half. `roc_auc` is the
    mean over the labels that some rows have and some have not. `r2` needs two rows.
    """
    values = {name: _value(name, task, logits, labels) for name in dict.fromkeys(names)}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _value(name: str, task: Task, logits: NDArray[np.float32], labels: NDArray[Any]) -> float:
    if name == "loss":
        exact = torch.from_numpy(logits).double()
        return float(mean_loss(task, exact, torch.from_numpy(labels)))
    if task == "Regression":
        return _regression(name, logits[:, 0].astype(np.float64), labels.astype(np.float64))
    if name == "roc_auc":
        return _roc_auc(task, logits, labels)
    predicted = logits.argmax(axis=1) if task == "SingleLabel" else logits > 0
    if name == "accuracy":
        return float(sk.accuracy_score(labels, predicted))
    if name == "jaccard":
        # A row without labels that is predicted to have none is right.
        average, empty = ("macro", 0.0) if task == "SingleLabel" else ("samples", 1.0)
        return float(sk.jaccard_score(labels, predicted, average=average, zero_division=empty))
    kind, average = name.rsplit("_", 1)
    return float(_AVERAGED[kind](labels, predicted, average=average, zero_division=0.0))


def _regression(name: str, predicted: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    match name:
        case "mse":
            return float(sk.mean_squared_error(labels, predicted))
        case "rmse":
            return float(sk.root_mean_squared_error(labels, predicted))
        case "mae":
            return float(sk.mean_absolute_error(labels, predicted))
        case "r2":
            return float(sk.r2_score(labels, predicted)) if len(labels) > 1 else math.nan
    raise ValueError(f"no metric {name} for Regression")


def _roc_auc(task: Task, logits: NDArray[np.float32], labels: NDArray[Any]) -> float:
    if task == "SingleLabel":
        # One class against the rest: probabilities, for logits of different rows do not compare.
        scores = torch.from_numpy(logits).double().softmax(dim=1).numpy()
        positive = labels[:, None] == np.arange(logits.shape[1])
    else:
        scores, positive = logits, labels
    defined = np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0))
    areas = [float(sk.roc_auc_score(positive[:, n], scores[:, n])) for n in defined]
    return float(np.mean(areas)) if areas else math.nan
