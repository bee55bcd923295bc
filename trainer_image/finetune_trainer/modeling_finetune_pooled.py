"""A text classifier: an encoder of transformers, its last hidden states pooled, and a small head.

This file needs only PyTorch and transformers. A copy lies beside each model of this kind, which therefore loads with
`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput


class PooledConfig(PretrainedConfig):  # type: ignore[misc]  # it has no types
    """The configuration of the encoder as a dictionary, and that of what lies above it."""

    model_type = "finetune_pooled"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        pooling: str = "Mean",
        widths: list[int] | None = None,
        head_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """`pooling` is Mean or Cls (the first token); `widths` are those of the hidden layers of the head."""
        self.encoder = dict(encoder or {})
        self.pooling = pooling
        self.widths = list(widths or [])
        self.head_dropout = head_dropout
        super().__init__(**kwargs)

    def of_encoder(self, **changes: Any) -> Any:
        """The configuration of the encoder with `changes`."""
        fields = {**self.encoder, **changes}
        return AutoConfig.for_model(fields.pop("model_type"), **fields)


class NoPooler(nn.Module):
    """Replaces an encoder's own pooler, which some encoders call without asking whether there is one."""

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        """The first token's last hidden state, (rows, width)."""
        return hidden[:, 0]


def pooled(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Pool (rows, tokens, width) to (rows, width); without a `mask` no row is padded."""
    if pooling != "Mean":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(dim=1)
    shares = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * shares).sum(dim=1) / shares.sum(dim=1)


def head_of(width: int, widths: list[int], outputs: int, dropout: float) -> nn.Sequential:
    """A head over vectors of `width` with hidden layers of `widths`."""
    layers: list[nn.Module] = []
    for hidden in widths:
        layers += [nn.Dropout(dropout), nn.Linear(width, hidden), nn.GELU()]
        width = hidden
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(width, outputs))


def without_pooler(encoder: Any) -> Any:
    """`encoder` without its own pooler, which would be computed and not used."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = NoPooler()
    return encoder


class PooledModel(PreTrainedModel):  # type: ignore[misc]  # it has no types
    """An encoder with pooling: the first token's last hidden state, or the mean of all."""

    config_class = PooledConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: PooledConfig) -> None:
        super().__init__(config)
        self.encoder = without_pooler(AutoModel.from_config(config.of_encoder()))
        self._build()
        self.post_init()

    def _build(self) -> None:
        """Make what lies above the encoder."""

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of the encoder."""
        embeddings: nn.Module = self.encoder.get_input_embeddings()
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """The hidden states (rows, tokens, width) of tokens (rows, tokens), and a vector for each row (rows, width)."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "inputs_embeds": inputs_embeds,
        }
        known = {name: tensor for name, tensor in given.items() if tensor is not None}
        hidden = self.encoder(**known).last_hidden_state
        vectors = pooled(hidden, attention_mask, self.config.pooling)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=vectors)


class PooledForSequenceClassification(PooledModel):
    """The same, with a head over the vectors."""

    def _build(self) -> None:
        config, width = self.config, int(self.encoder.config.hidden_size)
        self.head = head_of(width, config.widths, config.num_labels, config.head_dropout)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
    ) -> Any:
        """The logits (rows, outputs) of tokens (rows, tokens) and, with `labels`, the loss."""
        found = super().forward(input_ids, attention_mask, token_type_ids, inputs_embeds)
        logits = self.head(found.pooler_output)
        loss = None if labels is None else self._loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind == "regression":
            return functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        if kind == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return functional.cross_entropy(logits, labels.to(torch.long))
