"""The initial bias of a new head: the best guess before any text is read.

A head that starts at the shares of the labels need not spend its first epochs learning them, epochs in which
small data sets lose the encoder's knowledge (Lin et al., "Focal Loss for Dense Object Detection", 2017,
section 3.3, for rare classes). With equal classes the bias is zero, as without this; so it is where
classBalance makes the loss see equal classes.
"""

from collections.abc import Collection
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from finetune_api.tasks import Task
from finetune_trainer.tasks import task_of

EXTRA_ROWS = 10
"""Rows that are added to each class when a head starts. The shares of many classes with few rows each are
mostly chance; without this the frequent ones would be predicted too often in the first epochs."""


def start_at_priors(
    output: nn.Linear, task: Task, labels: NDArray[Any], balanced: bool = False
) -> None:
    """Set the bias of the new layer `output` to the priors of `labels`, with classes smoothed by `EXTRA_ROWS`.

    `balanced`: training weighs or draws rows so that classes, or a label and its absence, are equally frequent.
    """
    if balanced:
        nn.init.zeros_(output.bias)
        return
    bias = task_of(task).head_bias(labels, output.out_features, EXTRA_ROWS)
    with torch.no_grad():
        output.bias.copy_(torch.from_numpy(bias))


def output_layer(model: nn.Module, new: Collection[str]) -> nn.Linear | None:
    """The last linear layer whose bias is new: the output layer."""
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.bias" in new
    ]
    return layers[-1] if layers else None
