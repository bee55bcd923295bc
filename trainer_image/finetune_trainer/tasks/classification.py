"""What is alike for one class a row and for many labels: metrics, by scikit-learn, and the focal loss."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as sk
from torch import Tensor

from finetune_trainer.tasks.base import Labels

RANKING = ("roc_auc", "average_precision")
"""Metrics of the order of probabilities. They are means over the labels that some rows have and others lack."""


_LEAST = 1e-7
"""The least probability of being wrong that is raised to a power: below 1, a power has no slope at zero."""


def focused(losses: Tensor, wrong: Tensor, gamma: float) -> Tensor:
    """`losses`, each times the model's probability that it is `wrong` to the power `gamma`; all of one shape."""
    focused: Tensor = losses * wrong.clamp_min(_LEAST) ** gamma
    return focused


def metric(name: str, labels: Labels, predicted: Labels) -> float:
    """Accuracy, Hamming loss, and the averages of precision, recall and F1. Raises KeyError for any other."""
    if name == "accuracy":
        return float(sk.accuracy_score(labels, predicted))
    if name == "hamming_loss":
        return float(sk.hamming_loss(labels, predicted))
    kind, average = name.rsplit("_", 1)
    if labels.shape[1:] == (1,):
        average = "binary"  # otherwise scikit-learn takes a single label for two classes
    averaged = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
    return float(averaged[kind](labels, predicted, average=average, zero_division=0.0))


def ranking(name: str, labels: NDArray[np.bool_], scores: NDArray[Any]) -> float:
    """One of `RANKING` for labels and scores (rows, outputs)."""
    found = {"roc_auc": sk.roc_auc_score, "average_precision": sk.average_precision_score}
    return mean_over_labels(found[name], labels, scores)


def macro_jaccard(labels: Labels, predicted: Labels) -> float:
    """The mean over classes."""
    return float(sk.jaccard_score(labels, predicted, average="macro", zero_division=0.0))


def matthews(labels: Labels, predicted: Labels) -> float:
    """The correlation of labels (rows,) and predictions; NaN if all rows have the same label."""
    if len(np.unique(labels)) < 2:
        return math.nan
    return float(sk.matthews_corrcoef(labels, predicted))


def balanced_accuracy(labels: Labels, predicted: Labels) -> float:
    """The mean recall of the classes that occur."""
    occurring = np.unique(labels)
    recall = sk.recall_score(
        labels, predicted, labels=occurring, average="macro", zero_division=0.0
    )
    return float(recall)


def mean_over_labels(
    of: Callable[..., Any], labels: NDArray[np.bool_], scores: NDArray[Any]
) -> float:
    """The mean of a metric over the labels that some rows have and others lack; NaN if there are none."""
    defined = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))
    values = [float(of(labels[:, n], scores[:, n])) for n in defined]
    return float(np.mean(values)) if values else math.nan
