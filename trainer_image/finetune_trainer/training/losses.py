"""The loss of each task: mean over rows."""

import torch
from torch import Tensor
from torch.nn import functional

from finetune_api.metrics import Task


def mean_loss(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy (SingleLabel), binary cross entropy (MultiLabel) or squared error (Regression).

    `logits` is (rows, outputs). `labels` is int64 (rows,), (rows, outputs) or (rows,).
    """
    if task == "SingleLabel":
        return functional.cross_entropy(logits, labels)
    if task == "MultiLabel":
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return torch.mean((logits.squeeze(-1) - labels.to(logits.dtype)) ** 2)
