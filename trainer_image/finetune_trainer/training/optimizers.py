"""The optimizers a study can name."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer, RMSprop

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer.training.layers import Layers

_DECOUPLED = ("AdamW", "Adam", "Adafactor")
"""Optimizers that torch decays apart from the gradient; with the others it would add the decay to it."""


def has_decay(parameter: nn.Parameter) -> bool:
    """Whether weight decay and L1 are for it: matrices, but no biases and normalisation layers."""
    return parameter.ndim >= 2


def build_optimizer(
    weights: Mapping[str, nn.Parameter], config: Hyperparameters, layers: Layers
) -> Optimizer:
    """The optimizer of `config` over `weights`, by name; what has no gradient stays as it is.

    Vectors have no weight decay; matrices have. It is decoupled from the gradient with each optimizer
    (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019), so that a value means the same in a
    search over optimizers; Adam with it is AdamW. `decay` does it where torch does not. The `share` of each
    group is its learning rate relative to the head's.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in weights.items():
        key = (layers.rate(name, config), has_decay(parameter))
        groups.setdefault(key, []).append(parameter)
    kind = "weight_decay" if config.optimizer in _DECOUPLED else "decay"
    return _optimizer(
        [
            {
                "params": parameters,
                kind: config.weight_decay if decays else 0.0,
                "share": share,
            }
            for (share, decays), parameters in groups.items()
        ],
        config,
    )


def _optimizer(groups: list[dict[str, Any]], config: Hyperparameters) -> Optimizer:
    rate, betas = config.learning_rate, (config.adam_beta1, config.adam_beta2)
    # Fused kernels go through the memory once: several times as fast, on a CPU too.
    match config.optimizer:
        case "AdamW" | "Adam":
            return AdamW(groups, lr=rate, betas=betas, eps=config.adam_epsilon, fused=True)
        case "SGD":
            return SGD(groups, lr=rate, momentum=config.momentum, fused=True)
        case "NesterovSGD":
            nesterov = config.momentum > 0
            return SGD(groups, lr=rate, momentum=config.momentum, nesterov=nesterov, fused=True)
        case "RMSprop":
            return RMSprop(
                groups,
                lr=rate,
                alpha=config.rmsprop_alpha,
                eps=config.adam_epsilon,
                momentum=config.momentum,
            )
        case "Adafactor":
            return Adafactor(groups, lr=rate)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of the head, and of everything below it its share."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def decay(optimizer: Optimizer) -> None:
    """Multiply all weights that have a gradient by 1 - learning rate * decay, where the step to come does not."""
    for group in optimizer.param_groups:
        factor = 1 - group["lr"] * group.get("decay", 0.0)
        if factor != 1:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.detach().mul_(factor)


def begin_momentum(optimizer: Optimizer) -> None:
    """Give each parameter that has a gradient for the first time the momentum of none before.

    PyTorch's fused SGD takes all parameters of a group for new or none, and fails where a layer opens later.
    """
    if not isinstance(optimizer, SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            state = optimizer.state[parameter] if parameter.grad is not None else None
            if state is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def adopt_state(
    optimizer: Optimizer, old: Optimizer, same: Callable[[nn.Parameter], nn.Parameter]
) -> None:
    """Take over the moments of `old`, of the same class; `same` finds the old parameter of a new one.

    Momentum ends where there is none any more: it would be stale when it comes back.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = old.state.get(same(parameter))
            if moments is not None:
                ends = not group.get("momentum", 1)
                optimizer.state[parameter] = {
                    name: value
                    for name, value in moments.items()
                    if not (ends and name == "momentum_buffer")
                }
                if isinstance(
                    optimizer, RMSprop
                ):  # makes its buffers only if it begins with momentum
                    zeros = torch.zeros_like(parameter)
                    optimizer.state[parameter].setdefault("momentum_buffer", zeros)
