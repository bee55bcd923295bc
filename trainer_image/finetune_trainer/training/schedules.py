"""The learning rate at each optimizer step."""

import math

from finetune_api.hyperparameters import Hyperparameters


def learning_rate(config: Hyperparameters, step: int, total: int) -> float:
    """The rate of optimizer step `step` (from 0) of `total`: a warm-up, then the schedule of `config`.

    The same as transformers' schedules of these names. It is a function of the step alone, so there is
    no state to save.
    """
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.learning_rate * step / max(1, warmup)
    done = (step - warmup) / max(1, total - warmup)
    match config.lr_schedule:
        case "Constant":
            factor = 1.0
        case "Linear":
            factor = max(0.0, 1.0 - done)
        case "Cosine":
            factor = max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    return config.learning_rate * factor
