"""Which features a trial can train on instead of running the frozen part of its model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.training.features import (
    RowFeatures,
    can_be_cut,
    hidden_features,
    pooled_features,
)
from finetune_trainer.training.layers import Layers
from finetune_trainer.training.pooling import needs_head
from finetune_trainer.training.pretrained import Pretrained


@dataclass(frozen=True)
class Frozen:
    """The frozen part of a trial's model."""

    pretrained: Pretrained
    data: PreparedData
    config: Hyperparameters
    seed: int
    device: torch.device
    precision: str

    def count(self, layers: Layers) -> int:
        """How many of the encoder's layers are never trained; -1 if not even its embeddings are frozen."""
        return min(layers.count, layers.always_frozen_below(self.config) - 1)

    def pooled(self) -> RowFeatures | None:
        """The vectors of all rows, if only a head over them is trained."""
        config, data = self.config, self.data
        has_head = needs_head(self.pretrained.config, config)
        if config.freeze != "Encoder" or not has_head or not self._has_fixed_texts:
            return None

        def make() -> RowFeatures:
            fresh = self.pretrained.fresh_model(config, self.seed)
            return pooled_features(fresh.model.to(self.device).eval(), fresh.layers, data)

        return self._kept(config.pooling, len(data.labels), make)

    def hidden(self, model: Any, layers: Layers) -> RowFeatures | None:
        """The hidden states of all rows above the layers of `model` that are never trained."""
        config, data, count = self.config, self.data, self.count(layers)
        if count < 1 or not can_be_cut(model) or not self._has_fixed_texts:
            return None

        def make() -> RowFeatures:
            lower = self.pretrained.fresh_model(config, self.seed).model.to(self.device).eval()
            layers.cut_off(lower, count)
            return hidden_features(lower, layers, count, data, config.max_length)

        tokens = data.lengths(np.arange(len(data.labels)), config.max_length).sum()
        return self._kept(count, int(tokens), make)

    @property
    def _has_fixed_texts(self) -> bool:
        """Whether the texts are the same in every epoch."""
        return self.config.augmentation == "None"

    def _kept(
        self, kind: str | int, vectors: int, make: Callable[[], RowFeatures]
    ) -> RowFeatures | None:
        """The process's features of this kind, by everything that they depend on."""
        digests = tuple(column.digest for column in self.data.columns)
        config = self.config
        key = (
            kind,
            config.encoder_layers,
            config.max_length,
            self.precision,
            str(self.device),
            digests,
        )
        weights = sum(tensor.nbytes for tensor in self.pretrained.weights.values())
        size = vectors * int(self.pretrained.config.hidden_size) * 4 + weights
        return self.pretrained.features.get(key, size, make)
