"""Regression: a number per row."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn import metrics as sk
from torch import Tensor

from finetune_trainer.cells.numbers import number_of
from finetune_trainer.tasks.base import Label, Labels, Logits, TrainingTask
from finetune_trainer.tasks.prediction import Prediction
from finetune_trainer.tasks.report import QUANTILES, Report


class Regression(TrainingTask):
    """Labels are float32 (rows,); the one output is the number."""

    name = "Regression"
    usual_labels: ClassVar[Mapping[str, str]] = {"labelColumn": "value"}
    problem_type = "regression"
    has_classes = False
    standardised = True
    purpose = "the number `{name}`"
    constant_words = "the mean of the"
    card_answer = ("number = float(logits[0, 0])",)
    card_answer_together = "number = float(outputs[0, 0])"

    def label_of(self, cell: Any, separator: str | None = None) -> float | None:
        return number_of(cell)

    def encode(self, labels: Sequence[Label], names: Sequence[str]) -> Labels:
        return np.asarray(labels, dtype=np.float32)

    def counts(self, labels: Labels, outputs: int) -> NDArray[np.int64]:
        return np.full(outputs, len(labels), dtype=np.int64)

    def having(self, labels: Labels, output: int) -> NDArray[np.bool_]:
        return np.ones(len(labels), dtype=np.bool_)

    def named(self, label: Any, names: Sequence[str]) -> float:
        return float(label)

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        smoothing: float = 0.0,
        weights: Tensor | None = None,
        gamma: float = 0.0,
    ) -> Tensor:
        """Squared error."""
        difference = logits.squeeze(-1) - labels.to(logits.dtype)
        return (difference**2).mean()

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        """The squared difference."""
        return ((one - other) ** 2).mean()

    def balancing_weights(self, labels: Labels, outputs: int) -> NDArray[np.float32]:
        """There are no classes: all count alike."""
        return np.ones(outputs, dtype=np.float32)

    def priors(self, labels: Labels, outputs: int, extra: int = 0) -> NDArray[np.float64]:
        return np.array([labels.mean(dtype=np.float64)])

    def predictions(self, logits: Logits, thresholds: NDArray[np.float64] | None = None) -> Labels:
        return logits[:, 0]

    def metric(
        self, name: str, logits: Logits, labels: Labels, thresholds: NDArray[np.float64] | None
    ) -> float:
        """`r2` needs two rows; `pearson` and `spearman` need predictions and labels that are not all the same."""
        predicted, labels = logits[:, 0].astype(np.float64), labels.astype(np.float64)
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

    def report(
        self,
        names: Sequence[str],
        logits: Logits,
        labels: Labels,
        thresholds: NDArray[np.float64] | None,
    ) -> Report:
        residuals = labels.astype(np.float64) - logits[:, 0]
        values = np.quantile(residuals, QUANTILES).tolist()
        named = {f"{at:g}": value for at, value in zip(QUANTILES, values, strict=True)}
        return Report(self.name, len(labels), residuals=named)

    def wrongness(
        self, logits: Logits, labels: Labels, thresholds: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """The absolute difference of label and prediction."""
        found: NDArray[np.float64] = np.abs(labels.astype(np.float64) - logits[:, 0])
        return found

    def in_words(
        self, names: Sequence[str], logits: Logits, thresholds: NDArray[np.float64] | None
    ) -> list[Prediction]:
        return [Prediction(value=float(number)) for number in self.predictions(logits)]

    def shares(self, logits: Logits) -> NDArray[np.float64]:
        found: NDArray[np.float64] = logits.astype(np.float64)
        return found

    def logits_of(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        return shares

    def explained(self, logits: Logits, predicted: Any) -> list[int]:
        return [0]

    def probabilities_of(self, logits: Logits) -> None:
        return None


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])
