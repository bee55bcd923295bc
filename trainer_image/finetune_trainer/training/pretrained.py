"""The pretrained encoder with a fresh head: read from disk once a process, copied for every trial."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.metrics import Task
from finetune_trainer.data.model_source import FIELD, ModelSource, quiet_transformers
from finetune_trainer.errors import ModelError
from finetune_trainer.training.dropouts import set_dropouts

_PROBLEM_TYPES: dict[Task, str] = {
    "SingleLabel": "single_label_classification",
    "MultiLabel": "multi_label_classification",
    "Regression": "regression",
}


@dataclass(frozen=True)
class Pretrained:
    """Weights of a pretrained encoder in memory, and the configuration of the task's model."""

    source: ModelSource
    config: Any
    weights: dict[str, Tensor]
    """Pretrained tensors by name, on the CPU in float32; those of a new head are not among them."""

    new: frozenset[str]
    """Names of the tensors that no pretrained weights exist for: those of the task's head."""

    model_class: type[Any]

    @classmethod
    def load(cls, source: ModelSource, task: Task, label_names: Sequence[str]) -> "Pretrained":
        """Read the model. Raises ModelError if it cannot be read or does not fit its own configuration."""
        config = source.config(
            num_labels=len(label_names),
            id2label=dict(enumerate(label_names)),
            label2id={name: number for number, name in enumerate(label_names)},
            problem_type=_PROBLEM_TYPES[task],
        )
        model, info = source.weights(config)
        new = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
        _check_encoder(model, new, source)
        weights = {
            name: tensor.detach() for name, tensor in model.state_dict().items() if name not in new
        }
        return cls(source, config, weights, frozenset(new), type(model))

    def fresh_model(self, hyperparameters: Hyperparameters, seed: int) -> nn.Module:
        """A copy of the model with these dropouts, its head drawn from `seed`."""
        config = copy.deepcopy(self.config)
        set_dropouts(config, hyperparameters)
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            # transformers adopts the tensors it is given: without a copy, trials would share weights.
            model: nn.Module = self.model_class.from_pretrained(
                None,
                config=config,
                state_dict={name: tensor.clone() for name, tensor in self.weights.items()},
                dtype="float32",
            )
        return model


def _check_encoder(model: Any, new: set[str], source: ModelSource) -> None:
    prefix = f"{model.base_model_prefix}."
    encoder = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    absent = [name for name in encoder if name in new]
    if len(absent) * 2 > len(encoder):
        raise ModelError(
            FIELD,
            f"must be a model whose weights fit its configuration (got {source.name}: {len(absent)} of "
            f"{len(encoder)} encoder tensors are missing, such as {absent[0]})",
        )
