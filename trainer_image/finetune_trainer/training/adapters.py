"""Adds low-rank updates (LoRA, by peft) to an encoder, and merges them back into its weights."""

import copy
from typing import Any

from torch import nn

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer.errors import TrialFailure
from finetune_trainer.training.layers import Layers


def add_adapters(model: Any, config: Hyperparameters, layers: Layers) -> None:
    """Add low-rank updates to every linear layer of the encoder's layers; at first they change nothing.

    Raises TrialFailure("UserError") if the encoder has no such layer.
    """
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and few trials need it

    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and 0 < layers.depth(name) < layers.head - 1
    ]
    if not targets:
        raise TrialFailure(
            "UserError",
            "spec.model.name must be an encoder with linear layers in a list of layers to use loraRank "
            f"(got a model of type {model.config.model_type})",
        )
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
    )
    inject_adapter_in_model(lora, model)


def merged(model: nn.Module) -> nn.Module:
    """`model` with its low-rank updates, if it has any, merged into a copy of its weights."""
    if not any(hasattr(module, "lora_A") for module in model.modules()):
        return model
    whole = copy.deepcopy(model)
    for name, module in list(whole.named_modules()):
        if hasattr(module, "lora_A"):
            layer: Any = module
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(whole.get_submodule(parent), last, layer.base_layer)
    return whole
