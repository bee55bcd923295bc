"""MultiLabel: any number of labels per row."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from torch import Tensor
from torch.nn import functional

from finetune_trainer.tasks import classification, label_sets
from finetune_trainer.tasks.base import Label, Labels, Logits, TrainingTask
from finetune_trainer.tasks.calibration import Calibration, calibration_of
from finetune_trainer.tasks.prediction import Prediction
from finetune_trainer.tasks.report import LabelReport, Report, confusion_of, scores_of
from finetune_trainer.tasks.thresholds import ONE_HALF, probabilities

_LEAST = float(np.finfo(np.float64).tiny)
_MOST = 1 - float(np.finfo(np.float64).epsneg)
"""The limits of the probabilities that are turned into logits."""


class MultiLabel(TrainingTask):
    """Labels are bool (rows, outputs)."""

    name = "MultiLabel"
    usual_labels: ClassVar[Mapping[str, str]] = {"labelColumn": "labels"}
    problem_type = "multi_label_classification"
    has_thresholds = True
    means_over_labels = (*classification.RANKING, "matthews", "balanced_accuracy")
    purpose = "any of {count} labels"
    constant_words = "the labels that together have the best micro F1 on the"
    card_imports = ("import json", "from pathlib import Path", "")
    card_answer = (
        'thresholds = json.loads(Path(folder, "thresholds.json").read_text())',
        "shares = logits[0].sigmoid().tolist()",
        "labels = [name for name, share in zip(thresholds, shares) if share >= thresholds[name]]",
    )
    card_answer_together = (
        "labels = [name for name, share, least in zip(ensemble.labels, outputs[0], ensemble.thresholds) "
        "if share >= least]"
    )
    card_limit = "It knows no labels other than those above."

    def unpacked(self, cell: Any) -> Any:
        return label_sets.unpacked(cell)

    def check_cells(self, cells: Sequence[Any]) -> None:
        label_sets.refuse_marks(cells)

    def label_of(self, cell: Any, separator: str | None = None) -> tuple[str, ...] | None:
        return label_sets.read(cell, separator)

    def encode(self, labels: Sequence[Label], names: Sequence[str]) -> Labels:
        index = {name: position for position, name in enumerate(names)}
        matrix = np.zeros((len(labels), len(names)), dtype=np.bool_)
        for row, label in enumerate(labels):
            assert isinstance(label, tuple)
            matrix[row, [index[name] for name in label]] = True
        return matrix

    def counts(self, labels: Labels, outputs: int) -> NDArray[np.int64]:
        return np.asarray(labels.sum(axis=0), dtype=np.int64)

    def having(self, labels: Labels, output: int) -> NDArray[np.bool_]:
        return np.asarray(labels[:, output])

    def named(self, label: Any, names: Sequence[str]) -> list[str]:
        return [names[number] for number in np.flatnonzero(label).tolist()]

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        smoothing: float = 0.0,
        weights: Tensor | None = None,
        gamma: float = 0.0,
    ) -> Tensor:
        """Binary cross entropy; `weights` are those of the rows that have the label."""
        targets = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=weights, reduction="none"
        )
        if gamma:
            wrong = torch.where(labels, -logits, logits).sigmoid()
            losses = classification.focused(losses, wrong, gamma)
        return losses.mean()

    def divergence(self, one: Tensor, other: Tensor) -> Tensor:
        """The mean over labels, and of both Kullback-Leibler divergences of a label's probability."""
        return ((one.sigmoid() - other.sigmoid()) * (one - other)).mean() / 2

    def balancing_weights(self, labels: Labels, outputs: int) -> NDArray[np.float32]:
        """Rows without the label / rows with it, each at least half a row."""
        having = labels.sum(axis=0).clip(0.5, len(labels) - 0.5)
        return np.asarray((len(labels) - having) / having, dtype=np.float32)

    def priors(self, labels: Labels, outputs: int, extra: int = 0) -> NDArray[np.float64]:
        """The odds of each label, whatever `extra` is: every label has all rows."""
        rows = len(labels)
        shares = labels.mean(axis=0).clip(0.5 / rows, 1 - 0.5 / rows)
        odds: NDArray[np.float64] = np.log(shares / (1 - shares))
        return odds

    def predictions(self, logits: Logits, thresholds: NDArray[np.float64] | None = None) -> Labels:
        least = ONE_HALF if thresholds is None else thresholds
        return np.asarray(probabilities(logits) >= least)

    def metric(
        self, name: str, logits: Logits, labels: Labels, thresholds: NDArray[np.float64] | None
    ) -> float:
        """`means_over_labels` are means over the labels that some rows have and others lack."""
        if name in classification.RANKING:
            return classification.ranking(name, labels, logits)
        predicted = self.predictions(logits, thresholds)
        match name:
            case "matthews":
                return classification.mean_over_labels(classification.matthews, labels, predicted)
            case "balanced_accuracy":
                return classification.mean_over_labels(
                    classification.balanced_accuracy, labels, predicted
                )
            case "jaccard":
                either = (labels | predicted).sum(axis=1)
                shares = (labels & predicted).sum(axis=1) / np.maximum(either, 1)
                # A row without labels counts as right if none are predicted.
                return float(np.where(either > 0, shares, 1.0).mean())
            case _:
                return classification.metric(name, labels, predicted)

    def report(
        self,
        names: Sequence[str],
        logits: Logits,
        labels: Labels,
        thresholds: NDArray[np.float64] | None,
    ) -> Report:
        assert thresholds is not None
        predicted, reports = self.predictions(logits, thresholds), []
        for n, name in enumerate(names):
            having, given = labels[:, n].astype(np.int64), predicted[:, n].astype(np.int64)
            confusion = confusion_of(having, given, classes=2)
            (_, wrong), (missed, found) = confusion.tolist()
            scores = scores_of(found, found + wrong, found + missed)
            reports.append(LabelReport(name, *scores, float(thresholds[n]), confusion.tolist()))
        return Report(self.name, len(labels), reports)

    def calibration(self, logits: Logits, labels: Labels) -> Calibration:
        """That of the probability of each label of each row: how often rows have it."""
        return calibration_of(self.shares(logits).ravel(), labels.ravel())

    def wrongness(
        self, logits: Logits, labels: Labels, thresholds: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """The sum, over the labels that are predicted wrongly, of minus the logarithm of the right answer's probability."""
        shares = np.where(labels, self.shares(logits), 1 - self.shares(logits))
        losses = -np.log(np.maximum(shares, _LEAST))
        # A tuned threshold can make an answer wrong of which the model is sure: that is no small mistake.
        wrong = self.predictions(logits, thresholds) != labels
        found: NDArray[np.float64] = (wrong * np.maximum(losses, _LEAST)).sum(axis=1)
        return found

    def constant(self, labels: Labels, outputs: int) -> NDArray[np.float64]:
        """The most frequent labels that together have the best micro F1 on these rows."""
        counts = labels.sum(axis=0)
        order = np.argsort(-counts, kind="stable")
        hits = np.cumsum(counts[order])
        sizes = np.arange(1, len(order) + 1)
        f1 = 2 * hits / (sizes * len(labels) + counts.sum())
        chosen = np.full(len(order), -1.0)
        chosen[order[: int(f1.argmax()) + 1]] = 1.0
        return chosen

    def in_words(
        self, names: Sequence[str], logits: Logits, thresholds: NDArray[np.float64] | None
    ) -> list[Prediction]:
        chosen = self.predictions(logits, thresholds)
        return [
            Prediction(
                labels=self.named(label, names),
                scores=dict(zip(names, shares.tolist(), strict=True)),
            )
            for label, shares in zip(chosen, self.shares(logits), strict=True)
        ]

    def shares(self, logits: Logits) -> NDArray[np.float64]:
        return probabilities(logits)

    def logits_of(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = logit(np.clip(shares, _LEAST, _MOST))
        return found

    def explained(self, logits: Logits, predicted: Any) -> list[int]:
        """The predicted labels, or the likeliest if there is none."""
        return np.flatnonzero(predicted).tolist() or [int(logits[0].argmax())]
