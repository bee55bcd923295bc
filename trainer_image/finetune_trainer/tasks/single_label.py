"""SingleLabel: one class per row."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional

from finetune_trainer.cells.places import WrongCell
from finetune_trainer.cells.words import LABEL_FIELD, name_of, shown
from finetune_trainer.tasks import classification
from finetune_trainer.tasks.base import Label, Labels, Logits, TrainingTask
from finetune_trainer.tasks.calibration import Calibration, calibration_of
from finetune_trainer.tasks.mistakes import Mistake
from finetune_trainer.tasks.prediction import Prediction
from finetune_trainer.tasks.report import LabelReport, Report, confusion_of, scores_of

_LEAST = float(np.finfo(np.float64).tiny)
"""The least probability that is turned into a logit."""


class SingleLabel(TrainingTask):
    """Labels are int64 (rows,): the number of the class among the outputs."""

    name = "SingleLabel"
    problem_type = "single_label_classification"
    samples_by_class = True
    means_over_labels = classification.RANKING
    purpose = "one of {count} classes"
    constant_words = "the most frequent class of the"
    card_answer = ("label = model.config.id2label[int(logits[0].argmax())]",)
    card_answer_together = "label = ensemble.labels[int(outputs[0].argmax())]"
    card_limit = (
        "It predicts one of the labels above even for a text to which none of them applies."
    )

    def label_of(self, cell: Any, separator: str | None = None) -> str | None:
        if isinstance(cell, list | dict):
            must = "must hold one class per row with task SingleLabel"
            raise WrongCell(LABEL_FIELD, must, shown(cell))
        return name_of(cell)

    def encode(self, labels: Sequence[Label], names: Sequence[str]) -> Labels:
        index = {name: position for position, name in enumerate(names)}
        return np.asarray([index[str(label)] for label in labels], dtype=np.int64)

    def counts(self, labels: Labels, outputs: int) -> NDArray[np.int64]:
        return np.bincount(labels, minlength=outputs)

    def having(self, labels: Labels, output: int) -> NDArray[np.bool_]:
        return np.asarray(labels == output)

    def named(self, label: Any, names: Sequence[str]) -> str:
        return names[int(label)]

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        smoothing: float = 0.0,
        weights: Tensor | None = None,
        gamma: float = 0.0,
    ) -> Tensor:
        """Cross entropy."""
        losses = functional.cross_entropy(
            logits, labels, label_smoothing=smoothing, reduction="none"
        )
        if weights is not None:
            losses = losses * weights[labels]
        if gamma:
            right = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
            losses = classification.focused(losses, 1 - right, gamma)
        return losses.mean()

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        """The mean of both Kullback-Leibler divergences of the classes' probabilities."""
        logs = one.log_softmax(dim=1), other.log_softmax(dim=1)
        return ((logs[0].exp() - logs[1].exp()) * (logs[0] - logs[1])).sum(dim=1).mean() / 2

    def balancing_weights(self, labels: Labels, outputs: int) -> NDArray[np.float32]:
        """As scikit-learn's `balanced`: rows / (classes * rows of the class). Every class counts at least half a row."""
        counts = self.counts(labels, outputs).clip(0.5)
        return np.asarray(len(labels) / (outputs * counts), dtype=np.float32)

    def priors(self, labels: Labels, outputs: int, extra: int = 0) -> NDArray[np.float64]:
        counts = (self.counts(labels, outputs) + extra).clip(0.5)
        logs: NDArray[np.float64] = np.log(counts / counts.sum())
        return logs

    def head_bias(self, labels: Labels, outputs: int, extra: int) -> NDArray[np.float64]:
        priors = self.priors(labels, outputs, extra)
        centred: NDArray[np.float64] = priors - priors.mean()  # only differences count
        return centred

    def predictions(self, logits: Logits, thresholds: NDArray[np.float64] | None = None) -> Labels:
        classes: NDArray[np.int64] = logits.argmax(axis=1)
        return classes

    def metric(
        self, name: str, logits: Logits, labels: Labels, thresholds: NDArray[np.float64] | None
    ) -> float:
        """`matthews` needs rows of two classes, and is 0 if only one is predicted."""
        if name in classification.RANKING:
            # One class against the rest needs probabilities: logits of different rows cannot be compared.
            positive = labels[:, None] == np.arange(logits.shape[1])
            return classification.ranking(name, positive, self.shares(logits))
        predicted = self.predictions(logits)
        match name:
            case "matthews":
                return classification.matthews(labels, predicted)
            case "balanced_accuracy":
                return classification.balanced_accuracy(labels, predicted)
            case "jaccard":
                return classification.macro_jaccard(labels, predicted)
            case _:
                return classification.metric(name, labels, predicted)

    def report(
        self,
        names: Sequence[str],
        logits: Logits,
        labels: Labels,
        thresholds: NDArray[np.float64] | None,
    ) -> Report:
        confusion = confusion_of(labels, self.predictions(logits), len(names))
        found, chosen, having = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
        each = [
            LabelReport(name, *scores_of(int(found[n]), int(chosen[n]), int(having[n])))
            for n, name in enumerate(names)
        ]
        return Report(self.name, len(labels), each, confusion.tolist())

    def calibration(self, logits: Logits, labels: Labels) -> Calibration:
        """That of the predicted classes."""
        return calibration_of(self.shares(logits).max(axis=1), self.predictions(logits) == labels)

    def wrongness(
        self, logits: Logits, labels: Labels, thresholds: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Minus the logarithm of the probability of the right class."""
        shares = self.shares(logits)[np.arange(len(labels)), labels]
        found: NDArray[np.float64] = -np.log(np.maximum(shares, _LEAST))
        return np.where(self.predictions(logits) == labels, 0.0, found)

    def mistake(
        self, names: Sequence[str], row: int, label: Any, predicted: Any, logits: Logits
    ) -> Mistake:
        found = super().mistake(names, row, label, predicted, logits)
        return replace(found, probability=float(self.shares(logits[row : row + 1])[0, predicted]))

    def in_words(
        self, names: Sequence[str], logits: Logits, thresholds: NDArray[np.float64] | None
    ) -> list[Prediction]:
        classes = self.predictions(logits)
        return [
            Prediction(label=names[number], scores=dict(zip(names, shares.tolist(), strict=True)))
            for number, shares in zip(classes, self.shares(logits), strict=True)
        ]

    def shares(self, logits: Logits) -> NDArray[np.float64]:
        found: NDArray[np.float64] = softmax(logits.astype(np.float64), axis=1)
        return found

    def logits_of(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Those of a row need not add up to 1."""
        found: NDArray[np.float64] = np.log(np.maximum(shares, _LEAST))
        return found

    def explained(self, logits: Logits, predicted: Any) -> list[int]:
        return [int(predicted)]
