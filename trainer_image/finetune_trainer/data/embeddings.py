"""The meaning of texts as vectors."""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from finetune_trainer.data.model_source import ModelSource, max_tokens
from finetune_trainer.data.tokens import Frame, Tokens, tokenise

_BATCH_TOKENS = 8192
_SECONDS_BETWEEN_REPORTS = 30.0

log = logging.getLogger("finetune.data")


def embed(
    source: ModelSource, texts: Sequence[str], precision: Literal["float32", "float64"]
) -> NDArray[Any]:
    """A unit vector (texts, width) for each text: the mean of the encoder's last hidden states over its tokens.

    Text beyond what the encoder can read is cut off. Raises ModelError if the encoder cannot be loaded.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = source.encoder(precision).to(device), source.tokenizer()
    frame, tokens = Frame.of(tokenizer, [texts]), tokenise(tokenizer, texts)
    limit = max_tokens(tokenizer, model.config)
    vectors = np.empty((len(texts), int(model.config.hidden_size)), dtype=precision)
    done, reported = 0, time.monotonic()
    with torch.inference_mode():
        for rows, ids, mask in _batches(tokens, frame, limit):
            vectors[rows] = _pooled(model, ids.to(device), mask.to(device)).cpu().numpy()
            done += len(rows)
            if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                log.info("%d of %d texts encoded to find near-duplicates", done, len(texts))
                reported = time.monotonic()
    return vectors


def _batches(
    tokens: Tokens, frame: Frame, limit: int
) -> Iterator[tuple[NDArray[np.int64], torch.Tensor, torch.Tensor]]:
    """Texts in batches of similar length, the longest first: their positions, token ids and mask."""
    kept = np.minimum(tokens.lengths, limit - frame.special)
    order = np.argsort(-kept, kind="stable")
    start = 0
    while start < len(order):
        width = int(kept[order[start]]) + frame.special
        rows = order[start : start + max(1, _BATCH_TOKENS // width)]
        ids = np.full((len(rows), width), frame.pad, dtype=np.int64)
        for at, row in enumerate(rows):
            pieces = (frame.before, frame.kept(tokens[row], int(kept[row])), frame.after)
            ids[at, : kept[row] + frame.special] = np.concatenate(pieces)
        mask = np.arange(width) < (kept[rows] + frame.special)[:, None]
        yield rows, torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
        start += len(rows)


def _pooled(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.unsqueeze(-1)
    return normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
