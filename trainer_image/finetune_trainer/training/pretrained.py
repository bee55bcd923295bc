"""The pretrained encoder with a new head: read from disk once per process, copied for every trial."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune_api.hyperparameters import STRUCTURAL, Hyperparameters
from finetune_api.tasks import Task
from finetune_trainer.data.model_source import ModelSource, new_tensors, quiet_transformers
from finetune_trainer.tasks import task_of
from finetune_trainer.training.adapters import add_adapters
from finetune_trainer.training.dropouts import head_dropout, set_dropouts
from finetune_trainer.training.features import FeatureStore
from finetune_trainer.training.head import output_layer
from finetune_trainer.training.layers import Layers
from finetune_trainer.training.pooling import (
    PooledClassifier,
    head_widths,
    needs_head,
    new_head,
    own_pooling,
)


@dataclass(frozen=True)
class Pretrained:
    """Weights of a pretrained encoder in memory, and the configuration of the task's model."""

    source: ModelSource
    config: Any
    weights: dict[str, Tensor]
    """Pretrained tensors by name, on the CPU in float32; those of a new head are not among them."""

    new: frozenset[str]
    """Names of the tensors without pretrained weights: those of the task's head, and of a pooler
    that the checkpoint lacks."""

    model_class: type[Any]
    features: FeatureStore = field(default_factory=FeatureStore, compare=False)
    """The outputs of its frozen parts for the rows, shared by all trials of the process."""

    @classmethod
    def load(cls, source: ModelSource, task: Task, label_names: Sequence[str]) -> "Pretrained":
        """Read the model. Raises ModelError if it cannot be read or does not fit its own configuration."""
        config = source.config(
            num_labels=len(label_names),
            id2label=dict(enumerate(label_names)),
            label2id={name: number for number, name in enumerate(label_names)},
            problem_type=task_of(task).problem_type,
        )
        model, info = source.weights(config, task_of(task).auto_class)
        # The output layer is always new: one of the same size was trained for something else.
        new = new_tensors(info) | _output_tensors(model, len(label_names))
        weights = {
            name: tensor.detach() for name, tensor in model.state_dict().items() if name not in new
        }
        return cls(source, config, weights, frozenset(new), type(model))

    def fresh_model(self, hyperparameters: Hyperparameters, seed: int) -> "FreshModel":
        """A copy of the model, built as `hyperparameters` say; its new tensors are drawn from `seed`."""
        config = copy.deepcopy(self.config)
        set_dropouts(config, hyperparameters)
        cut = _keep_layers(config, hyperparameters.encoder_layers)
        own = own_pooling(config, hyperparameters)
        if own is not None:
            config.classifier_pooling = own
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = self._built(config, self.weights, cut)
            layers = Layers.of(model, self.new)
            kept = {
                name: tensor
                for name, tensor in self.weights.items()
                if not layers.is_anew(name, hyperparameters)
            }
            if len(kept) < len(self.weights):
                torch.default_generator.manual_seed(seed)
                model = self._built(config, kept, cut)
            new: Collection[str] = self.new
            if needs_head(config, hyperparameters):
                torch.default_generator.manual_seed(
                    seed
                )  # the same head, whatever was drawn before
                widths = head_widths(config, hyperparameters, len(config.id2label))
                dropout = head_dropout(config, hyperparameters)
                model = PooledClassifier(model.base_model, hyperparameters.pooling, widths, dropout)
                new = [f"head.{name}" for name in model.head.state_dict()]
            layers = Layers.of(model, new)
            output = output_layer(model, new)
            if hyperparameters.lora_rank:
                add_adapters(model, hyperparameters, layers)
        return FreshModel(model, layers, output)

    def _built(self, config: Any, weights: Mapping[str, Tensor], cut: bool) -> Any:
        """The task's model with copies of `weights`; whatever they lack is drawn."""
        # transformers keeps the tensors it is given: without a copy, trials would share weights.
        return self.model_class.from_pretrained(
            None,
            config=config,
            state_dict={name: tensor.clone() for name, tensor in weights.items()},
            dtype="float32",
            ignore_mismatched_sizes=cut,  # a tensor over all layers (ESM's contact head) is drawn anew
        )

    def fresh_head(self, hyperparameters: Hyperparameters, seed: int) -> nn.Sequential:
        """The head that `fresh_model` would make, by itself; for pooling Cls and Mean."""
        widths = head_widths(self.config, hyperparameters, len(self.config.id2label))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return new_head(self.config, widths, head_dropout(self.config, hyperparameters))


@dataclass(frozen=True)
class FreshModel:
    """A model that has not been trained yet."""

    model: Any
    layers: Layers
    output: nn.Linear | None
    """The output layer, if it is new."""


def structure(config: Hyperparameters) -> tuple[object, ...]:
    """What decides which tensors a model has, and which of them training changes."""
    return tuple(getattr(config, name) for name in STRUCTURAL)


def _output_tensors(model: Any, outputs: int) -> set[str]:
    """The names of the tensors of the head's last linear layer; empty if none has `outputs`."""
    encoder = f"{model.base_model_prefix}."
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == outputs
        and not name.startswith(encoder)
    ]
    return (
        {f"{found[-1]}.{name}" for name, _ in model.get_submodule(found[-1]).named_parameters()}
        if found
        else set()
    )


_OF_EACH_LAYER = ("layer_types", "attention_window")
"""Lists of a configuration with an entry for each layer, where it has them."""


def _keep_layers(config: Any, count: int) -> bool:
    """Let `config` have only the lowest `count` layers; False if it has no more anyway."""
    if not 0 < count < config.num_hidden_layers:
        return False
    config.num_hidden_layers = count
    for name in _OF_EACH_LAYER:
        entries = getattr(config, name, None)
        if isinstance(entries, list | tuple):
            setattr(config, name, list(entries[:count]))
    return True
