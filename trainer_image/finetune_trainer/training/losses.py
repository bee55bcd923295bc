"""The loss that a trial trains on."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.tasks import Task
from finetune_trainer.tasks import task_of


@dataclass(frozen=True)
class TrainingLoss:
    """The loss that a trial's hyperparameters ask for."""

    task: Task
    smoothing: float
    weights: Tensor | None
    gamma: float

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
            balancing = task_of(task).balancing_weights(labels, outputs)
            weights = torch.from_numpy(balancing).to(device)
        return cls(task, config.label_smoothing, weights, config.focal_gamma)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a batch, in float32."""
        return task_of(self.task).loss(
            logits.float(), labels, self.smoothing, self.weights, self.gamma
        )
