"""Optimizers and learning-rate schedules."""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from finetune_api.hyperparameters import Hyperparameters


def make_optimizer(model: torch.nn.Module, config: Hyperparameters) -> torch.optim.Optimizer:
    """The optimizer of `config`; biases and normalisation weights (one dimension) do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "AdamW":
        betas = (config.adam_beta1, config.adam_beta2)
        return torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=True
        )
    if config.optimizer == "SGD":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.RMSprop(
        groups,
        lr=config.learning_rate,
        alpha=config.rmsprop_alpha,
        eps=config.adam_epsilon,
        momentum=config.momentum,
    )


def learning_rate_factor(step: int, total: int, config: Hyperparameters) -> float:
    """The share of the peak learning rate at optimizer step `step` of `total`, in [0, 1]."""
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return step / warmup
    if config.lr_schedule == "Constant":
        return 1.0
    left = max(0.0, (total - step) / max(1, total - warmup))
    return left if config.lr_schedule == "Linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))


def make_schedule(
    optimizer: torch.optim.Optimizer, config: Hyperparameters, total: int
) -> LambdaLR:
    """The schedule of `config` over `total` optimizer steps: all epochs, so a promoted trial just goes on."""
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, config))
