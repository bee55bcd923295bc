"""A head of our own over the last hidden states of an encoder: pooling, then a small network."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel
from transformers.modeling_outputs import SequenceClassifierOutput

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer import modeling_finetune_pooled as handed_over
from finetune_trainer.modeling_finetune_pooled import (
    PooledConfig,
    PooledForSequenceClassification,
    PooledModel,
    head_of,
    pooled,
    without_pooler,
)

_SOURCE = Path(handed_over.__file__)
CODE = _SOURCE.name
"""The file with the classes of a head of ours, saved beside the model."""

_CLASSES = {
    "AutoConfig": PooledConfig,
    "AutoModel": PooledModel,
    "AutoModelForSequenceClassification": PooledForSequenceClassification,
}

_OWN_POOLING = {
    "modernbert": {"Cls": "cls", "Mean": "mean"},
    "eurobert": {"Cls": "bos", "Mean": "mean"},
}
"""Architectures whose own classifier can pool in either way, by `classifier_pooling`."""

_OLD_HEAD = "head.safetensors"
_OLD_SHAPE = "head.json"
"""Lies beside the encoder in folders written by older versions."""


class PooledClassifier(nn.Module):
    """An encoder, pooling (the first token's last hidden state or the mean of all), and a head."""

    base_model_prefix = "encoder"

    def __init__(self, encoder: Any, pooling: str, widths: list[int], dropout: float) -> None:
        """`widths` are the widths of the head's hidden layers, and last the number of outputs."""
        super().__init__()
        self.encoder = without_pooler(encoder)
        self.config = encoder.config
        self._pooling, self._widths, self._dropout = pooling, widths, dropout
        self.head = new_head(encoder.config, widths, dropout)

    @property
    def base_model(self) -> nn.Module:
        """The encoder, under the name that transformers models use for it."""
        encoder: nn.Module = self.encoder
        return encoder

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """The logits (rows, outputs) of token ids and their mask, which may be missing if no row is padded."""
        hidden = self.encoder(**inputs).last_hidden_state
        return SequenceClassifierOutput(
            logits=self.head(self.pool(hidden, inputs.get("attention_mask")))
        )

    def pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Pool (rows, tokens, width) to (rows, width)."""
        return pooled(hidden, mask, self._pooling)

    def save_pretrained(self, folder: Path) -> None:
        """Write the model with its code, so that transformers loads it with `trust_remote_code`."""
        encoder = self.config.to_dict()
        encoder.pop("_name_or_path", None)  # a path on this machine
        names = ("id2label", "label2id", "problem_type")
        config = PooledConfig(
            encoder=encoder,
            pooling=self._pooling,
            widths=self._widths[:-1],
            head_dropout=self._dropout,
            auto_map={auto: f"{_SOURCE.stem}.{one.__name__}" for auto, one in _CLASSES.items()},
            **{name: getattr(self.config, name) for name in names},
        )
        with torch.device("meta"):
            whole = PooledForSequenceClassification(config)
        whole.encoder, whole.head = self.encoder, self.head
        whole.save_pretrained(folder)
        shutil.copyfile(_SOURCE, folder / CODE)


def new_head(encoder: Any, widths: list[int], dropout: float) -> nn.Sequential:
    """A head on vectors of the encoder with configuration `encoder`, with new random weights."""
    head = head_of(int(encoder.hidden_size), widths[:-1], widths[-1], dropout)
    for module in head:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=getattr(encoder, "initializer_range", 0.02))
            nn.init.zeros_(module.bias)
    return head


def head_widths(encoder: Any, config: Hyperparameters, outputs: int) -> list[int]:
    """The widths of the head's hidden layers, and last the number of outputs."""
    return [config.head_width or int(encoder.hidden_size)] * config.head_layers + [outputs]


def own_pooling(encoder: Any, config: Hyperparameters) -> str | None:
    """What the architecture of configuration `encoder` calls the pooling of `config`; None if it needs a head of ours."""
    if config.head_layers:
        return None
    return _OWN_POOLING.get(encoder.model_type, {}).get(config.pooling)


def needs_head(encoder: Any, config: Hyperparameters) -> bool:
    """Whether `config` needs a head of ours on the encoder of configuration `encoder`."""
    return config.pooling != "Architecture" and own_pooling(encoder, config) is None


def is_pooled(folder: Path) -> bool:
    """Whether the model in `folder` has a head of ours."""
    if (folder / _OLD_SHAPE).is_file():
        return True
    config = json.loads((folder / "config.json").read_text())
    return bool(config.get("model_type") == PooledConfig.model_type)


def load_classifier(folder: str | Path) -> nn.Module:
    """Load the final model of a study with pooling Cls or Mean, ready to predict.

    Call it like a transformers model; it returns `logits`. No code in `folder` is run. Raises
    FileNotFoundError if `folder` has no such model; load one with its architecture's own pooling by
    `AutoModelForSequenceClassification.from_pretrained`.
    """
    folder = Path(folder)
    if (folder / _OLD_SHAPE).is_file():
        shape = json.loads((folder / _OLD_SHAPE).read_text())
        older = PooledClassifier(AutoModel.from_pretrained(folder, dtype="float32"), **shape)
        older.head.load_state_dict(load_file(folder / _OLD_HEAD))
        return older.eval()
    if not is_pooled(folder):
        raise FileNotFoundError(f"{folder} has no model with pooling Cls or Mean")
    config = PooledConfig.from_pretrained(folder)
    model: nn.Module = PooledForSequenceClassification.from_pretrained(
        folder, config=config, dtype="float32"
    )
    return model.eval()
