"""Batches of rows of similar length, padded to the longest of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_trainer.data.prepare import Encoded

_GROUP = 50
"""Batches that are sorted by length together: enough to save padding, few enough to stay random."""


@dataclass(frozen=True)
class Batch:
    """Model inputs (rows, tokens) and labels on one device."""

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Collator:
    """Cuts rows to `max_length`, pads them and moves them to the device."""

    max_length: int
    pad_token: int
    pads_left: bool
    has_types: bool
    device: torch.device

    def collate(self, rows: Encoded, indices: NDArray[np.int64]) -> Batch:
        """The batch of the rows at `indices`."""
        lengths = np.minimum(rows.lengths[indices], self.max_length)
        width = int(lengths.max())
        if (
            self.device.type == "cuda"
        ):  # tensor cores want multiples of 8; on a CPU padding only costs
            width = min(-(-width // 8) * 8, self.max_length)
        tokens = np.full((len(indices), width), self.pad_token, dtype=np.int64)
        types = np.zeros_like(tokens)
        mask = np.zeros_like(tokens)
        for i, (row, length) in enumerate(zip(indices, lengths, strict=True)):
            at = slice(width - length, width) if self.pads_left else slice(0, length)
            tokens[i, at] = self._cut(rows, rows.tokens, int(row), int(length))
            types[i, at] = self._cut(rows, rows.types, int(row), int(length))
            mask[i, at] = 1
        arrays: dict[str, NDArray[Any]] = {"input_ids": tokens, "attention_mask": mask}
        if self.has_types:
            arrays["token_type_ids"] = types
        inputs = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        return Batch(inputs, torch.from_numpy(rows.labels[indices]).to(self.device))

    def _cut(self, rows: Encoded, values: NDArray[Any], row: int, length: int) -> NDArray[Any]:
        start, end = rows.offsets[row], rows.offsets[row + 1]
        if end - start <= length or rows.tail == 0:
            return values[start : start + length]
        return np.concatenate(
            [values[start : start + length - rows.tail], values[end - rows.tail : end]]
        )


def training_order(
    lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """The batches (row indices) of one epoch: random, but rows of similar length together.

    A pure function of its arguments, so a resumed epoch goes on with the same batches.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    size = batch_size * _GROUP
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    ordered = [group[np.argsort(-lengths[group], kind="stable")] for group in groups]
    batches = [
        group[i : i + batch_size] for group in ordered for i in range(0, len(group), batch_size)
    ]
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_batches(
    rows: Encoded, collator: Collator, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """All rows, longest first (so that a batch too large for the device shows at once), with their indices."""
    order = np.argsort(-rows.lengths, kind="stable")
    for i in range(0, len(order), batch_size):
        indices = order[i : i + batch_size]
        yield indices, collator.collate(rows, indices)
