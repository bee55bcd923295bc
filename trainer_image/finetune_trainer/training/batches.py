"""Which rows are batched together, and the tensors of a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.data.tokens import cut

Rows: TypeAlias = NDArray[np.int64]

_POOL = 50
"""Batches whose rows are sorted by length together: little padding, and still random batches."""


def training_steps(
    rows: Rows,
    lengths: NDArray[np.int64],
    batch_size: int,
    accumulation: int,
    seed: int,
    epoch: int,
) -> list[list[Rows]]:
    """The batches of each optimizer step of an epoch: a pure function of its arguments.

    Rows are shuffled, sorted by length within pools of batches, and the batches shuffled, so that a
    batch needs little padding.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(rows))
    pool = batch_size * max(1, min(len(rows) // (batch_size * 4), _POOL))
    batches = []
    for start in range(0, len(order), pool):
        members = order[start : start + pool]
        members = members[np.argsort(-lengths[members], kind="stable")]
        batches += [
            rows[members[at : at + batch_size]] for at in range(0, len(members), batch_size)
        ]
    shuffled = [batches[number] for number in generator.permutation(len(batches))]
    return [shuffled[at : at + accumulation] for at in range(0, len(shuffled), accumulation)]


def steps_per_epoch(rows: int, batch_size: int, accumulation: int) -> int:
    """How many optimizer steps `training_steps` makes of so many rows."""
    return math.ceil(math.ceil(rows / batch_size) / accumulation)


def evaluation_batches(rows: Rows, lengths: NDArray[np.int64], batch_size: int) -> list[Rows]:
    """`rows` in batches of like length, the longest first, so that a lack of memory shows at once."""
    order = rows[np.argsort(-lengths, kind="stable")]
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


@dataclass(frozen=True)
class Batch:
    """The tensors of some rows on the device: `inputs` are the model's keyword arguments."""

    inputs: dict[str, Tensor]
    labels: Tensor


class Batcher:
    """Makes batches of a study's rows, cut to `max_length` and padded to the longest among them."""

    def __init__(self, data: PreparedData, max_length: int, device: torch.device) -> None:
        self._data = data
        self._limit = data.limit(max_length)
        self._device = device
        # Tensor cores want multiples of 8; on a CPU that only costs time.
        self._multiple = 8 if device.type == "cuda" else 1

    def __call__(self, rows: Rows) -> Batch:
        """The batch of `rows`."""
        frame = self._data.frame
        texts = [[column[row] for column in self._data.columns] for row in rows]
        framed = [frame.framed(row, self._limit) for row in texts]
        width = max(len(row) for row in framed)
        width = min(self._limit, -(-width // self._multiple) * self._multiple)
        ids = np.full((len(rows), width), frame.pad, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for at, row in enumerate(framed):
            ids[at, : len(row)] = row
            mask[at, : len(row)] = 1
        arrays = {"input_ids": ids, "attention_mask": mask}
        if frame.types is not None:
            arrays["token_type_ids"] = self._segments(texts, width)
        inputs = {name: self._tensor(array) for name, array in arrays.items()}
        return Batch(inputs, self._tensor(self._data.labels[rows]))

    def _segments(
        self, texts: Sequence[Sequence[NDArray[np.int32]]], width: int
    ) -> NDArray[np.int64]:
        frame = self._data.frame
        segments = np.zeros((len(texts), width), dtype=np.int64)
        for at, row in enumerate(texts):
            kept = cut([np.array([len(text)]) for text in row], self._limit - frame.special)
            types = frame.segments([int(length[0]) for length in kept])
            segments[at, : len(types)] = types
        return segments

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)
