"""The layers of an encoder from the bottom up: which are trained, from which epoch, and at which rate.

Depth 0 has the embeddings and what all layers share, 1 to n the encoder's layers, n + 1 what lies above them
in the encoder (a last normalisation, a pooler), n + 2 the head and whatever else is not pretrained.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer.errors import TrialFailure

_LORA = "lora_"
_BESIDE: dict[str, dict[str, int]] = {
    "mpnet": {"encoder.relative_attention_bias": 0},
    "deberta-v2": {"encoder.LayerNorm": 0, "encoder.conv": 1},
}
"""By model type, the depth of modules that lie outside the list of layers but are used within it: the one that
turns relative positions into attention, and the convolution whose output is added to that of the first layer."""


@dataclass(frozen=True)
class Layers:
    """The depth of everything in a model."""

    prefix: str
    """Of the names of the encoder's tensors."""

    stack: str
    """Name of the encoder's list of layers, below the prefix; empty if it has none."""

    count: int
    model_type: str = ""
    """As in the model's configuration."""

    new: frozenset[str] = frozenset()
    """Names of the tensors that are not pretrained, including those within the encoder."""

    @classmethod
    def of(cls, model: Any, new: Collection[str] = ()) -> "Layers":
        """The layers of a transformers model, or of any with `base_model`, `base_model_prefix` and `config`.

        `new` names the tensors that are not pretrained.
        """
        lists = {
            name: len(module)
            for name, module in model.base_model.named_modules()
            if isinstance(module, nn.ModuleList) and name.rsplit(".", 1)[-1] in ("layer", "layers")
        }
        stack = max(lists, key=lambda name: lists[name], default="")
        prefix, kind = f"{model.base_model_prefix}.", model.config.model_type
        return cls(prefix, stack, lists.get(stack, 0), kind, frozenset(new))

    @property
    def head(self) -> int:
        """The depth of the head."""
        return self.count + 2

    def depth(self, name: str) -> int:
        """The depth of the tensor or module called `name`."""
        if not name.startswith(self.prefix) or name in self.new:
            return self.head
        inside = name.removeprefix(self.prefix)
        found = re.match(re.escape(self.stack) + r"\.(\d+)(\.|$)", inside) if self.stack else None
        if found:
            return int(found[1]) + 1
        for beside, depth in _BESIDE.get(self.model_type, {}).items():
            if f"{inside}.".startswith(f"{beside}."):
                return depth
        return 0 if "embed" in inside else self.head - 1

    def frozen_below(self, config: Hyperparameters, epochs: float) -> int:
        """The depth from which everything is trained after `epochs` epochs.

        Raises TrialFailure("UserError") if the encoder has no list of layers and `config` needs one.
        """
        lowest = self.always_frozen_below(config)
        if not config.unfreeze_epochs:
            return lowest
        stage = int(epochs / config.unfreeze_epochs + 1e-9)
        opened = self.head if stage == 0 else self.head - 1 - stage
        return max(lowest, opened)

    def always_frozen_below(self, config: Hyperparameters) -> int:
        """The depth below which nothing is ever trained. Raises the same as `frozen_below`."""
        self._must_have_layers(config)
        lowest = {
            "None": 0,
            "Embeddings": 1,
            "Layers": 1 + min(config.frozen_layers, self.count),
            "Encoder": self.head,
        }[config.freeze]
        if config.adversarial_epsilon and lowest > 1:
            raise TrialFailure(
                "UserError",
                f"adversarialEpsilon must be 0 for frozen layers (freeze {config.freeze}): they are computed once, so"
                f" that what moves below them is not seen (got {config.adversarial_epsilon:g})",
            )
        if config.reinit_layers and lowest > self.first_anew(config):
            raise TrialFailure(
                "UserError",
                f"reinitLayers must leave out frozen layers: freeze {config.freeze} would keep what is drawn at"
                f" random (got {config.reinit_layers} of {self.count} layers)",
            )
        return lowest

    def first_anew(self, config: Hyperparameters) -> int:
        """The depth of the lowest layer that `reinitLayers` lets begin anew."""
        return 1 + self.count - min(config.reinit_layers, self.count)

    def is_pretrained(self, name: str, config: Hyperparameters) -> bool:
        """Whether the tensor called `name` begins with pretrained values."""
        return self.depth(name) < self.head and _LORA not in name and not self.is_anew(name, config)

    def is_anew(self, name: str, config: Hyperparameters) -> bool:
        """Whether the tensor called `name` is of a layer that `reinitLayers` lets begin anew."""
        if not config.reinit_layers:
            return False
        return self.first_anew(config) <= self.depth(name) <= self.count

    def modules(self, model: Any) -> list[nn.Module]:
        """The encoder's layers, from the bottom up."""
        return list(model.get_submodule(f"{self.prefix}{self.stack}")) if self.stack else []

    def cut_off(self, model: Any, count: int) -> None:
        """Keep only the lowest `count` layers of `model`."""
        del model.get_submodule(f"{self.prefix}{self.stack}")[count:]

    def rate(self, name: str, config: Hyperparameters) -> float:
        """Learning rate of a tensor relative to that of the head."""
        return config.layer_decay ** max(0, self.head - 1 - self.depth(name))

    def _must_have_layers(self, config: Hyperparameters) -> None:
        wanted = {
            "freeze: Layers": config.freeze == "Layers",
            "unfreezeEpochs": config.unfreeze_epochs > 0,
            "layerDecay": config.layer_decay < 1,
            "encoderLayers": config.encoder_layers > 0,
            "reinitLayers": config.reinit_layers > 0,
        }
        asked = [name for name, is_wanted in wanted.items() if is_wanted]
        if asked and not self.stack:
            raise TrialFailure(
                "UserError",
                f"spec.model.name must be an encoder with a list of layers to use {', '.join(asked)}",
            )


def trainable(
    model: nn.Module, layers: Layers, frozen_below: int, has_lora: bool
) -> dict[str, nn.Parameter]:
    """The parameters at depth `frozen_below` or above that training may change, by name.

    With low-rank updates, these are trained instead of the encoder.
    """
    found = dict(model.named_parameters())

    def is_trained(name: str) -> bool:
        depth = layers.depth(name)
        replaced = has_lora and depth < layers.head and _LORA not in name
        return depth >= frozen_below and not replaced

    return {name: parameter for name, parameter in found.items() if is_trained(name)}


def set_trained(model: nn.Module, layers: Layers, frozen_below: int, has_lora: bool) -> None:
    """Enable gradients for what is `trainable`, and disable dropout in training below `frozen_below`."""
    trained = trainable(model, layers, frozen_below, has_lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for name, module in model.named_modules():
        if module.training and layers.depth(name) < frozen_below:
            module.training = False
