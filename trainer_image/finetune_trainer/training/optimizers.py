"""The optimizers a study can name."""

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from finetune_api.hyperparameters import Hyperparameters


def build_optimizer(model: nn.Module, config: Hyperparameters) -> Optimizer:
    """The optimizer of `config` over the trainable parameters of `model`.

    Vectors (biases, normalisation layers) have no weight decay; matrices have. For SGD and RMSprop the
    decay is added to the gradient, as torch does it.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    match config.optimizer:
        case "AdamW":
            betas = (config.adam_beta1, config.adam_beta2)
            return AdamW(groups, lr=rate, betas=betas, eps=config.adam_epsilon)
        case "SGD":
            return SGD(groups, lr=rate, momentum=config.momentum)
        case "RMSprop":
            return RMSprop(
                groups,
                lr=rate,
                alpha=config.rmsprop_alpha,
                eps=config.adam_epsilon,
                momentum=config.momentum,
            )


def adopt_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put the moments of `state`, from an optimizer of the same class, in; keep the hyperparameters."""
    kept = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, kept, strict=True):
        group.update(values)
    if isinstance(optimizer, RMSprop):  # makes its buffers only if it begins with momentum
        for moments in optimizer.state.values():
            moments.setdefault("momentum_buffer", torch.zeros_like(moments["square_avg"]))
