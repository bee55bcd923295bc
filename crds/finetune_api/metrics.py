"""The metrics a study can name, the direction in which each improves, and the tasks it suits."""

from typing import Literal, TypeAlias

Task: TypeAlias = Literal["SingleLabel", "MultiLabel", "Regression"]
Goal: TypeAlias = Literal["Maximize", "Minimize"]

_CLASSIFICATION = (
    "accuracy",
    "precision_micro",
    "precision_macro",
    "precision_weighted",
    "recall_micro",
    "recall_macro",
    "recall_weighted",
    "f1_micro",
    "f1_macro",
    "f1_weighted",
    "jaccard",
    "matthews",
    "balanced_accuracy",
    "hamming_loss",
    "roc_auc",
    "average_precision",
    "loss",
)

METRICS: dict[Task, tuple[str, ...]] = {
    "SingleLabel": _CLASSIFICATION,
    "MultiLabel": _CLASSIFICATION,
    "Regression": ("mse", "rmse", "mae", "r2", "pearson", "spearman", "loss"),
}
"""Metrics of each task. `accuracy` of MultiLabel is subset accuracy; `jaccard` is macro for SingleLabel
and the mean over rows for MultiLabel; `roc_auc` and `average_precision` are one-vs-rest, macro; `matthews`
and `balanced_accuracy` of MultiLabel are means over the labels. `loss` is the mean log loss, squared error
for Regression."""

ALL_METRICS = tuple(dict.fromkeys(metric for metrics in METRICS.values() for metric in metrics))

_MINIMIZED = frozenset({"loss", "hamming_loss", "mse", "rmse", "mae"})


def natural_goal(metric: str) -> Goal:
    """The direction in which `metric` improves."""
    return "Minimize" if metric in _MINIMIZED else "Maximize"


def best_value(metric: str) -> float:
    """The best value that `metric` can have."""
    return 0.0 if metric in _MINIMIZED else 1.0


def score(value: float, goal: Goal) -> float:
    """`value` such that larger is better."""
    return value if goal == "Maximize" else -value
