"""Checks that a model can read the rows of a study, once before any trial starts."""

from typing import Any

import numpy as np
import torch

from finetune_trainer.data.hub import first_line
from finetune_trainer.data.model_source import FIELD, ModelSource, quiet_transformers
from finetune_trainer.data.tokens import Frame, Tokens, cut
from finetune_trainer.errors import ModelError
from finetune_trainer.storage.locations import shown

_ROUNDING = 1e-4
"""Difference of outputs, relative to their size if that is above 1, that may come from rounding."""


def check_reads(
    model: Any, source: ModelSource, columns: tuple[Tokens, ...], frame: Frame, limit: int
) -> bool:
    """Let `model` read the longest and the shortest row together, each cut to `limit` tokens.

    Returns whether padding changes its output for the shorter one. Raises ModelError if it cannot read them:
    tokens or segments that it has no embedding for, more tokens than positions, no token to pad with.
    """
    lengths = np.sum([column.lengths for column in columns], axis=0)
    longest, shortest = int(lengths.argmax()), int(lengths.argmin())

    def states(*numbers: int) -> Any:
        """The last hidden states (tokens, width) of the last of these rows."""
        rows = np.array(numbers)
        kept = cut([column.lengths[rows] for column in columns], limit - frame.special)
        inputs, _ = frame.padded(columns, rows, kept, limit)
        _check_embeddings(model, source, columns, inputs)
        caught: list[Any] = []
        handle = model.base_model.register_forward_hook(lambda *said: caught.append(said[-1][0]))
        with torch.inference_mode(), quiet_transformers():
            try:
                model.eval()(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            except Exception as error:  # whatever the architecture raises
                width = inputs["input_ids"].shape[1]
                no_padding = len(rows) > 1 and getattr(model.config, "pad_token_id", None) is None
                remedy = "; set pad_token_id in the model's configuration" if no_padding else ""
                raise _refused(
                    source,
                    f"on {len(rows)} rows of up to {width} tokens it raises {_told(error)}{remedy}",
                ) from error
            finally:
                handle.remove()
        return caught[0][-1, : inputs["attention_mask"][-1].sum()].float().numpy()

    padded, alone = states(longest, shortest), states(shortest)
    allowed = _ROUNDING * np.maximum(1, np.abs(alone))
    return bool((np.abs(padded - alone) > allowed).any())


def _check_embeddings(
    model: Any, source: ModelSource, columns: tuple[Tokens, ...], inputs: dict[str, Any]
) -> None:
    try:
        embeddings = getattr(model.base_model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # its embeddings are elsewhere
        embeddings = None
    highest = max(int(column.ids.max(initial=0)) for column in columns)
    if embeddings is not None and highest >= embeddings:
        raise _refused(
            source,
            f"its tokenizer gives the texts token {highest}, but its vocabulary ends with {embeddings - 1}: "
            "were tokens added to one but not to the other?",
        )
    kinds = getattr(model.config, "type_vocab_size", None)
    segments = inputs.get("token_type_ids")
    if kinds and segments is not None and segments.max() >= kinds:
        raise _refused(
            source,
            f"its tokenizer numbers the texts of a pair as segments 0 to {segments.max()}, but it has only {kinds}",
        )


def _refused(source: ModelSource, why: str) -> ModelError:
    return ModelError(
        FIELD, f"must be a model that can read the rows (got {shown(source.name)}: {why})"
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
