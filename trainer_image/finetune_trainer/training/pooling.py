"""A head of our own over the last hidden states of an encoder: pooling, then a small network."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import SequenceClassifierOutput

from finetune_api.hyperparameters import Hyperparameters

_HEAD = "head.safetensors"
_SHAPE = "head.json"


class PooledClassifier(nn.Module):
    """An encoder, the first token's last hidden state or the mean of all, and a head."""

    base_model_prefix = "encoder"

    def __init__(self, encoder: Any, pooling: str, widths: list[int], dropout: float) -> None:
        """`widths` are the widths of the head's hidden layers, and last the number of outputs."""
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # it would be computed and not used
        self.encoder = encoder
        self.config = encoder.config
        self.shape = {"pooling": pooling, "widths": widths, "dropout": dropout}
        self._mean = pooling == "Mean"
        self.head = new_head(encoder.config, widths, dropout)

    @property
    def base_model(self) -> nn.Module:
        """The encoder, under the name that transformers models have for it."""
        encoder: nn.Module = self.encoder
        return encoder

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """The logits (rows, outputs) of token numbers with their mask, which may be missing if no row is padded."""
        hidden = self.encoder(**inputs).last_hidden_state
        return SequenceClassifierOutput(
            logits=self.head(self.pool(hidden, inputs.get("attention_mask")))
        )

    def pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """(rows, tokens, width) to (rows, width)."""
        if not self._mean:
            return hidden[:, 0]
        if mask is None:
            return hidden.mean(dim=1)
        shares = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * shares).sum(dim=1) / shares.sum(dim=1)

    def save_pretrained(self, folder: Path) -> None:
        """Write the encoder as transformers does, and the head beside it; `load_classifier` reads both."""
        self.encoder.save_pretrained(folder)
        save_file(self.head.state_dict(), folder / _HEAD)
        (folder / _SHAPE).write_text(json.dumps(self.shape))


def new_head(encoder: Any, widths: list[int], dropout: float) -> nn.Sequential:
    """A head over vectors of the encoder with configuration `encoder`, its weights drawn anew."""
    layers: list[nn.Module] = []
    width = int(encoder.hidden_size)
    for hidden in widths[:-1]:
        layers += [nn.Dropout(dropout), nn.Linear(width, hidden), nn.GELU()]
        width = hidden
    head = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, widths[-1]))
    for module in head:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=getattr(encoder, "initializer_range", 0.02))
            nn.init.zeros_(module.bias)
    return head


def head_widths(encoder: Any, config: Hyperparameters, outputs: int) -> list[int]:
    """The widths of the head's hidden layers, and last the number of outputs."""
    return [config.head_width or int(encoder.hidden_size)] * config.head_layers + [outputs]


def load_classifier(folder: str | Path) -> nn.Module:
    """The final model of a study with pooling Cls or Mean, ready to predict.

    It is called like a model of transformers and answers with `logits`. Raises FileNotFoundError if
    `folder` is not such a model; one with the pooling of its architecture is loaded by
    `AutoModelForSequenceClassification.from_pretrained`.
    """
    folder = Path(folder)
    shape = json.loads((folder / _SHAPE).read_text())
    encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    model = PooledClassifier(encoder, **shape)
    encoder.load_state_dict(load_file(folder / "model.safetensors"))
    model.head.load_state_dict(load_file(folder / _HEAD))
    return model.eval()
