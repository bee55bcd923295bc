"""The learning rate at each optimizer step."""

import math

from finetune_api.hyperparameters import Hyperparameters


def learning_rate(config: Hyperparameters, step: int, each: int, reductions: int = 0) -> float:
    """The rate of optimizer step `step` (from 0), with `each` steps per epoch: a warm-up, then the schedule.

    `reductions` is how often ReduceOnPlateau has reduced it so far. Equals the schedules of these names in
    transformers and torch. It depends on its arguments alone, so there is no state to save.
    """
    total = config.epochs * each
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * step / max(1, warmup)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    epochs = (step - warmup) / each
    match config.lr_schedule:
        case "Constant":
            factor = 1.0
        case "Linear":
            factor = 1.0 - done
        case "Cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * done))
        case "CosineWithRestarts":
            cycle = (config.lr_cycles * done) % 1.0 if done < 1.0 else 1.0
            factor = 0.5 * (1.0 + math.cos(math.pi * cycle))
        case "Polynomial":
            factor = (1.0 - done) ** config.lr_power
        case "Step":
            factor = config.lr_gamma ** math.floor(epochs / config.lr_patience)
        case "Exponential":
            factor = config.lr_gamma**epochs
        case "InverseSqrt":
            scale = warmup or each
            factor = math.sqrt(scale / (scale + step - warmup))
        case "ReduceOnPlateau":
            factor = config.lr_gamma**reductions
    return config.learning_rate * factor
