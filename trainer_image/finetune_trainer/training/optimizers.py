"""The optimizers a study can name."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, AdamW, Optimizer, RMSprop

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer.training.layers import Layers

_DECOUPLED = ("AdamW", "Adam", "Adafactor")
"""Optimizers whose weight decay torch keeps apart from the gradient; to the others' gradient it would add it."""


def has_decay(parameter: nn.Parameter) -> bool:
    """Whether weight decay and L1 apply to it: to matrices, but not to biases and normalisation layers."""
    return parameter.ndim >= 2


def build_optimizer(
    weights: Mapping[str, nn.Parameter], config: Hyperparameters, layers: Layers
) -> Optimizer:
    """The optimizer of `config` for `weights`, by name; weights without a gradient stay as they are.

    Matrices have weight decay, vectors do not. With every optimizer it is decoupled from the gradient
    (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019), so that a value means the same in a
    search over optimizers; Adam with it is AdamW. Where torch does not apply it, `decay` does. The `share` of
    each group is its learning rate relative to the head's.
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
    # Fused kernels read the memory once: several times faster, on a CPU too.
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
    """Set the learning rate of the head, and that of each layer below to its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def decay(optimizer: Optimizer) -> None:
    """Multiply all weights that have a gradient by 1 - learning rate * decay, if the next step does not."""
    for group in optimizer.param_groups:
        factor = 1 - group["lr"] * group.get("decay", 0.0)
        if factor != 1:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.detach().mul_(factor)


def pull(optimizer: Optimizer, origins: Mapping[nn.Parameter, Tensor], share: float) -> None:
    """Draw weights that have a gradient back to their `origins`, by learning rate * `share` of the way."""
    for group in optimizer.param_groups if origins else ():
        way = min(1.0, float(group["lr"]) * share)
        for weight in group["params"]:
            if weight.grad is not None and weight in origins:
                weight.detach().lerp_(origins[weight], way)


def begin_momentum(optimizer: Optimizer) -> None:
    """Start the momentum of each parameter that has a gradient for the first time.

    PyTorch's fused SGD treats a group's parameters as all new or all old, and fails if a layer is unfrozen later.
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
    """Take over the moments of `old`, of the same class; `same` finds the old parameter for a new one.

    Momentum that is switched off is dropped: it would be stale if switched on again.
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
                ):  # it only makes buffers if it starts with momentum
                    zeros = torch.zeros_like(parameter)
                    optimizer.state[parameter].setdefault("momentum_buffer", zeros)
