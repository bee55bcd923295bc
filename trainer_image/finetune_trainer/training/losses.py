"""The loss of each task: the mean over rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.tasks import Task


def mean_loss(
    task: Task,
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy (SingleLabel), binary cross entropy (MultiLabel) or squared error (Regression).

    `logits` is (rows, outputs). `labels` is int64 (rows,), (rows, outputs) or (rows,). `weights` (outputs,) are
    those of the rows of each class or, in MultiLabel, of the rows that have the label.
    """
    if task == "SingleLabel":
        losses = functional.cross_entropy(
            logits, labels, label_smoothing=smoothing, reduction="none"
        )
        return torch.mean(losses if weights is None else losses * weights[labels])
    if task == "MultiLabel":
        targets = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)
    return torch.mean((logits.squeeze(-1) - labels.to(logits.dtype)) ** 2)


def balancing_weights(task: Task, labels: NDArray[Any], outputs: int) -> NDArray[np.float32]:
    """Weights for `mean_loss` that make rare classes count as much as frequent ones: (outputs,).

    As scikit-learn's `balanced` for SingleLabel: rows / (classes * rows of the class). For MultiLabel:
    rows without the label / rows with it. Every class counts at least half a row.
    """
    rows = len(labels)
    if task == "SingleLabel":
        counts = np.bincount(labels, minlength=outputs).clip(0.5)
        return np.asarray(rows / (outputs * counts), dtype=np.float32)
    having = labels.sum(axis=0).clip(0.5, rows - 0.5)
    return np.asarray((rows - having) / having, dtype=np.float32)


@dataclass(frozen=True)
class TrainingLoss:
    """The loss that a trial's hyperparameters ask for."""

    task: Task
    smoothing: float
    weights: Tensor | None

    @classmethod
    def of(
        cls,
        task: Task,
        labels: NDArray[Any],
        outputs: int,
        config: Hyperparameters,
        device: torch.device,
    ) -> "TrainingLoss":
        """The loss for training rows with `labels`."""
        weights = None
        if config.class_balance == "Weights":
            weights = torch.from_numpy(balancing_weights(task, labels, outputs)).to(device)
        return cls(task, config.label_smoothing, weights)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch, in float32."""
        return mean_loss(self.task, logits.float(), labels, self.smoothing, self.weights)
