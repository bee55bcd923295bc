"""Metrics of a model's outputs, computed by scikit-learn."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax, softmax
from sklearn import metrics as sk

from finetune_api.metrics import Task

Floats = NDArray[np.float32]


def compute(
    names: Iterable[str], task: Task, logits: Floats, labels: NDArray[Any]
) -> dict[str, float]:
    """The metrics `names` of `logits` (rows, labels) against `labels`, as `data.labels.encode` has them.

    A metric that is not defined for these rows (ROC AUC where a class does not occur) is left out.
    """
    if task == "Regression":
        values = _regression(names, logits.reshape(len(labels), -1)[:, 0], labels)
    else:
        values = _classification(names, task, logits, labels)
    return {
        name: float(value)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }


def _regression(
    names: Iterable[str], predicted: Floats, labels: NDArray[Any]
) -> dict[str, float | None]:
    formulas = {
        "loss": sk.mean_squared_error,
        "mse": sk.mean_squared_error,
        "rmse": sk.root_mean_squared_error,
        "mae": sk.mean_absolute_error,
        "r2": sk.r2_score,
    }
    return {
        name: None if name == "r2" and len(labels) < 2 else formulas[name](labels, predicted)
        for name in names
    }


def _classification(
    names: Iterable[str], task: Task, logits: Floats, labels: NDArray[Any]
) -> dict[str, float | None]:
    predicted = logits.argmax(axis=1) if task == "SingleLabel" else (logits > 0).astype(np.int64)
    values: dict[str, float | None] = {}
    for name in names:
        if name == "loss":
            values[name] = _loss(task, logits, labels)
        elif name == "roc_auc":
            values[name] = _roc_auc(task, logits, labels)
        elif name == "accuracy":
            values[name] = sk.accuracy_score(labels, predicted)
        elif name == "jaccard":
            average = "macro" if task == "SingleLabel" else "samples"
            values[name] = sk.jaccard_score(labels, predicted, average=average, zero_division=0)
        else:
            kind, average = name.split("_")
            score = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}[
                kind
            ]
            values[name] = score(labels, predicted, average=average, zero_division=0)
    return values


def _loss(task: Task, logits: Floats, labels: NDArray[Any]) -> float:
    if task == "SingleLabel":
        return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
    return float((np.logaddexp(0, logits) - labels * logits).mean())


def _roc_auc(task: Task, logits: Floats, labels: NDArray[Any]) -> float | None:
    if task == "MultiLabel":
        defined = [i for i in range(labels.shape[1]) if 0 < labels[:, i].sum() < len(labels)]
        if not defined:
            return None
        return float(
            np.mean([sk.roc_auc_score(labels[:, i], expit(logits[:, i])) for i in defined])
        )
    if len(np.unique(labels)) < logits.shape[1]:
        return None
    chances = softmax(logits.astype(np.float64), axis=1)
    if logits.shape[1] == 2:
        return float(sk.roc_auc_score(labels, chances[:, 1]))
    return float(sk.roc_auc_score(labels, chances, multi_class="ovr", average="macro"))


def constant_logits(task: Task, train_labels: NDArray[Any], rows: int) -> Floats:
    """Outputs of the best constant prediction: class frequencies, label frequencies, or the mean."""
    if task == "SingleLabel":
        share = np.bincount(train_labels) / len(train_labels)
        output = np.log(np.maximum(share, 1e-6))
    elif task == "MultiLabel":
        share = np.clip(train_labels.mean(axis=0), 1e-6, 1 - 1e-6)
        output = np.log(share) - np.log1p(-share)
    else:
        output = np.asarray([train_labels.mean()])
    return np.tile(output.astype(np.float32), (rows, 1))
