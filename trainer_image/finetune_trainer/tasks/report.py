"""What single figures hide: how well each class is found, and what it is confused with."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.tasks import Task

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class LabelReport:
    """How well one class, one label of MultiLabel, or one type of entities is found."""

    label: str
    precision: float
    """0, as in the averages, if it is never predicted; recall and F1 likewise where undefined."""

    recall: float
    f1: float
    support: int
    """Number of rows that have it, or of entities."""

    threshold: float | None = None
    """MultiLabel: probability from which it is predicted."""

    confusion: list[list[int]] | None = None
    """MultiLabel: number of rows, [[true negatives, false positives], [false negatives, true positives]]."""


@dataclass(frozen=True)
class Report:
    """How a model does on some rows, in detail. What applies only to another task is None."""

    task: Task
    rows: int
    labels: list[LabelReport] | None = None
    confusion: list[list[int]] | None = None
    """SingleLabel: rows of each class (down) by predicted class (across), in the order of `labels`. TokenClassification:
    entities of each type by predicted type, of the same words; the last of each is none."""

    confused_with: list[str] | None = None
    """TokenClassification: the names of the rows and columns of `confusion`."""

    residuals: dict[str, float] | None = None
    """Regression: quantile → label minus prediction."""

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object, without what is None."""
        return asdict(self, dict_factory=lambda found: {k: v for k, v in found if v is not None})


def confusion_of(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Rows of each class by predicted class: (classes, classes)."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes)


def scores_of(found: int, chosen: int, having: int) -> tuple[float, float, float, int]:
    """Precision, recall, F1 and support of what was rightly found, chosen and there, in rows."""
    f1 = 2 * found / max(1, chosen + having)
    return found / max(1, chosen), found / max(1, having), f1, having
