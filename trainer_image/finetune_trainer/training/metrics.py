"""The metrics a study can name, computed by scikit-learn."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn import metrics as sk

from finetune_api.tasks import Task
from finetune_trainer.training.losses import mean_loss
from finetune_trainer.training.thresholds import predictions

_AVERAGED = {
    "precision": sk.precision_score,
    "recall": sk.recall_score,
    "f1": sk.f1_score,
}
_RANKING: dict[str, Callable[..., Any]] = {
    "roc_auc": sk.roc_auc_score,
    "average_precision": sk.average_precision_score,
}


def compute_metrics(
    task: Task,
    logits: NDArray[np.float32],
    labels: NDArray[Any],
    names: Iterable[str],
    thresholds: NDArray[np.float64] | None = None,
) -> dict[str, float]:
    """The metrics `names` of `logits` (rows, outputs) against `labels`; undefined ones are left out.

    In MultiLabel a label is predicted from its threshold on: `thresholds` (outputs,) are probabilities; None
    means one half for each. `roc_auc` and `average_precision`, and in MultiLabel `matthews` and
    `balanced_accuracy`, are means over the labels that some rows have and others lack. `matthews` of
    SingleLabel needs rows of two classes, and is 0 if only one is predicted. `r2` needs two rows; `pearson`
    and `spearman` need predictions and labels that are not all the same.
    """
    values = {name: _value(name, task, logits, labels, thresholds) for name in dict.fromkeys(names)}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _value(
    name: str,
    task: Task,
    logits: NDArray[np.float32],
    labels: NDArray[Any],
    thresholds: NDArray[np.float64] | None,
) -> float:
    if name == "loss":
        exact = torch.from_numpy(logits).double()
        return float(mean_loss(task, exact, torch.from_numpy(labels)))
    if task == "Regression":
        return _regression(name, logits[:, 0].astype(np.float64), labels.astype(np.float64))
    if name in _RANKING:
        return _ranking(name, task, logits, labels)
    return _classification(name, task, predictions(task, logits, thresholds), labels)


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
        case "pearson":
            return _correlation(labels, predicted)
        case "spearman":
            return _correlation(rankdata(labels), rankdata(predicted))
        case _:
            raise ValueError(f"no metric {name} for Regression")


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


def _ranking(name: str, task: Task, logits: NDArray[np.float32], labels: NDArray[Any]) -> float:
    if task == "MultiLabel":
        return _mean_over_labels(_RANKING[name], labels, logits)
    # One class against the rest needs probabilities: logits of different rows cannot be compared.
    scores = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    positive = labels[:, None] == np.arange(logits.shape[1])
    return _mean_over_labels(_RANKING[name], positive, scores)


def _classification(name: str, task: Task, predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    match name:
        case "accuracy":
            return float(sk.accuracy_score(labels, predicted))
        case "hamming_loss":
            return float(sk.hamming_loss(labels, predicted))
        case "matthews" if task == "MultiLabel":
            return _mean_over_labels(_matthews, labels, predicted)
        case "matthews":
            return _matthews(labels, predicted)
        case "balanced_accuracy" if task == "MultiLabel":
            return _mean_over_labels(_balanced_accuracy, labels, predicted)
        case "balanced_accuracy":
            return _balanced_accuracy(labels, predicted)
        case "jaccard" if task == "MultiLabel":
            either = (labels | predicted).sum(axis=1)
            shares = (labels & predicted).sum(axis=1) / np.maximum(either, 1)
            # A row without labels counts as right if none are predicted.
            return float(np.where(either > 0, shares, 1.0).mean())
        case "jaccard":
            score = sk.jaccard_score(labels, predicted, average="macro", zero_division=0.0)
            return float(score)
        case _:
            kind, average = name.rsplit("_", 1)
            if labels.shape[1:] == (1,):
                average = "binary"  # otherwise scikit-learn takes a single label for two classes
            return float(_AVERAGED[kind](labels, predicted, average=average, zero_division=0.0))


def _matthews(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    if len(np.unique(labels)) < 2:
        return math.nan
    return float(sk.matthews_corrcoef(labels, predicted))


def _balanced_accuracy(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """The mean recall of the classes that occur."""
    occurring = np.unique(labels)
    recall = sk.recall_score(
        labels, predicted, labels=occurring, average="macro", zero_division=0.0
    )
    return float(recall)


def _mean_over_labels(
    metric: Callable[..., Any], labels: NDArray[np.bool_], scores: NDArray[Any]
) -> float:
    """The mean of `metric` over the labels that some rows have and others lack; NaN if there are none."""
    defined = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))
    values = [float(metric(labels[:, n], scores[:, n])) for n in defined]
    return float(np.mean(values)) if values else math.nan
