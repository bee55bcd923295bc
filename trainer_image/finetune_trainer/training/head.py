"""The initial bias of a new head: the best guess before any text is read.

A head that starts at the shares of the labels need not spend its first epochs learning them, epochs in which
small data sets lose the encoder's knowledge (Lin et al., "Focal Loss for Dense Object Detection", 2017,
section 3.3, for rare classes). With equal classes the bias is zero, as without this; so it is where
classBalance makes the loss see equal classes.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finetune_api.tasks import Task

EXTRA_ROWS = 10
"""Rows that are added to each class when a head starts. The shares of many classes with few rows each are
mostly chance; without this the frequent ones would be predicted too often in the first epochs."""


def label_priors(
    task: Task, labels: NDArray[Any], outputs: int, extra: int = 0
) -> NDArray[np.float64]:
    """Logits (outputs,) that predict the shares of classes, the odds of labels or the mean of numbers.

    `labels` are those of the training rows; each class counts `extra` rows more. Every share counts as at least
    half a row.
    """
    if task == "Regression":
        return np.array([labels.mean(dtype=np.float64)])
    rows = len(labels)
    if task == "SingleLabel":
        counts = (np.bincount(labels, minlength=outputs) + extra).clip(0.5)
        logs: NDArray[np.float64] = np.log(counts / counts.sum())
        return logs
    shares = labels.mean(axis=0).clip(0.5 / rows, 1 - 0.5 / rows)
    odds: NDArray[np.float64] = np.log(shares / (1 - shares))
    return odds


def start_at_priors(
    output: nn.Linear, task: Task, labels: NDArray[Any], balanced: bool = False
) -> None:
    """Set the bias of the new layer `output` to the priors of `labels`, with classes smoothed by `EXTRA_ROWS`.

    `balanced`: training weighs or draws rows so that classes, or a label and its absence, are equally frequent.
    """
    if balanced:
        nn.init.zeros_(output.bias)
        return
    priors = label_priors(task, labels, output.out_features, EXTRA_ROWS)
    if task == "SingleLabel":
        priors -= priors.mean()  # only differences count
    with torch.no_grad():
        output.bias.copy_(torch.from_numpy(priors))


def output_layer(model: nn.Module, new: Collection[str]) -> nn.Linear | None:
    """The last linear layer whose bias is new: the output layer."""
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.bias" in new
    ]
    return layers[-1] if layers else None
