"""What a study of each task may say: its metrics, and the fields and hyperparameters that mean something for it.

The rules of the schema follow from this table, in CEL and in Python (`study`). What the trainer does for a task is
in `finetune_trainer.tasks`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

Task: TypeAlias = Literal["SingleLabel", "MultiLabel", "Regression", "TokenClassification"]

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


@dataclass(frozen=True)
class TaskContract:
    """What a study of one task may say. Hyperparameters and fields have their Python names."""

    metrics: tuple[str, ...]
    """The metrics that it can name, as objective and otherwise."""

    usual_metric: str
    """The one that hints name."""

    without: tuple[str, ...] = ()
    """Hyperparameters that mean nothing for it."""

    without_values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Hyperparameter → its values that mean nothing for it."""

    own_fields: tuple[str, ...] = ()
    """Fields of `dataset` that no other task has."""

    without_fields: tuple[str, ...] = ()
    """Fields of `dataset` that others have and that mean nothing for it."""

    no_ranks: str = ""
    """Why the outputs of the members of an ensemble cannot be averaged as ranks; empty if they can."""

    no_attributions: str = ""
    """Why its predictions are not attributed to tokens; empty if they are."""


TASKS: dict[Task, TaskContract] = {
    "SingleLabel": TaskContract(
        metrics=_CLASSIFICATION,
        usual_metric="f1_macro",
        without=("decision_threshold", "threshold_tuning"),
    ),
    "MultiLabel": TaskContract(
        metrics=_CLASSIFICATION,
        usual_metric="f1_macro",
        without_values={"class_balance": ("Oversample", "Undersample")},
        own_fields=("label_separator", "label_columns"),
    ),
    "Regression": TaskContract(
        metrics=("mse", "rmse", "mae", "r2", "pearson", "spearman", "loss"),
        usual_metric="rmse",
        without=(
            "label_smoothing",
            "focal_gamma",
            "class_balance",
            "decision_threshold",
            "threshold_tuning",
        ),
        no_ranks="ranks do not give numbers",
    ),
    "TokenClassification": TaskContract(
        metrics=(
            "precision_micro",
            "precision_macro",
            "recall_micro",
            "recall_macro",
            "f1_micro",
            "f1_macro",
            "f1_weighted",
            "accuracy",
            "loss",
        ),
        usual_metric="f1_micro",
        without=(
            "augmentation",
            "augmentation_share",
            "augmentation_copies",
            "pooling",
            "head_layers",
            "head_width",
            "decision_threshold",
            "threshold_tuning",
        ),
        without_values={"class_balance": ("Oversample", "Undersample")},
        own_fields=("tokens_column", "tags_column", "spans_column"),
        without_fields=("label_column",),
        no_ranks="ranks of words in other texts say nothing of an entity",
        no_attributions="each word has a prediction of its own",
    ),
}
"""Each task's contract.

`accuracy` of MultiLabel is subset accuracy; `jaccard` is macro for SingleLabel and the mean over rows for MultiLabel;
`roc_auc` and `average_precision` are one-vs-rest, macro; `matthews` and `balanced_accuracy` of MultiLabel are means
over the labels. Precision, recall and F1 of TokenClassification are those of entities (an entity is found if its first
word, its last word and its type are right), macro and weighted over their types; `accuracy` is the share of words with
the right tag. `loss` is the mean log loss, squared error for Regression.
"""

assert tuple(TASKS) == get_args(Task), "a task has no contract"

ALL_METRICS = tuple(dict.fromkeys(metric for task in TASKS.values() for metric in task.metrics))


def by_metrics() -> dict[tuple[str, ...], list[Task]]:
    """Metrics → the tasks that have exactly these."""
    found: dict[tuple[str, ...], list[Task]] = {}
    for name, task in TASKS.items():
        found.setdefault(task.metrics, []).append(name)
    return found


def metrics_in_cel(variable: str) -> str:
    """CEL over a study: whether its task has the metric in `variable`, or what that is of slices."""
    *cases, (last, _) = by_metrics().items()
    metric = f"{variable}.split('@')[0]"
    others = "".join(
        f"self.task in {tasks!r} ? {metric} in {list(metrics)!r} : " for metrics, tasks in cases
    )
    return f"{others}{metric} in {list(last)!r}"
