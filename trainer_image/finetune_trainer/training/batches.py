"""Which rows are batched together, and the tensors of a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.tasks.ragged import Ragged, flat

Rows: TypeAlias = NDArray[np.int64]

_POOL = 50
"""How many batches are sorted by length together: little padding, yet random batches."""


def balanced_rows(
    rows: Rows, classes: NDArray[np.int64], balance: str, seed: int, epoch: int
) -> Rows:
    """The rows of an epoch in which every class has equally many: as many as the most frequent or the rarest class.

    `classes` are those of `rows`. `balance` is Oversample, which repeats rows of rare classes as evenly as
    whole rows allow, or Undersample. The rows to repeat or leave out are drawn anew each epoch.
    """
    generator = np.random.default_rng((seed, epoch, 1))
    counts = np.bincount(classes)
    size = counts.max() if balance == "Oversample" else counts[counts > 0].min()
    chosen = []
    for number in np.flatnonzero(counts):
        members = rows[classes == number]
        whole, rest = divmod(int(size), len(members))
        chosen += [members] * whole
        chosen.append(generator.permutation(members)[:rest])
    return np.sort(np.concatenate(chosen))


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


def evaluation_batches(rows: Rows, lengths: NDArray[np.int64], batch_size: int) -> list[Rows]:
    """`rows` in batches of similar length, the longest first, so that a lack of memory shows at once."""
    order = rows[np.argsort(-lengths, kind="stable")]
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


@dataclass(frozen=True)
class Batch:
    """The tensors of some rows on the device: `inputs` are the model's keyword arguments."""

    inputs: dict[str, Tensor]
    labels: Tensor
    """Of rows or, where words have labels, of all their words in turn."""

    filled: bool = False
    """Whether no row is padded, so that the mask is not needed."""

    places: Tensor | None = None
    """Where the tokens of the labels are among those of the padded rows one after another; None: rows have labels."""

    def labelled(self, outputs: Tensor) -> Tensor:
        """The outputs that `labels` are of: (labels, outputs)."""
        return outputs if self.places is None else outputs.flatten(0, 1)[self.places]


class Batcher:
    """Makes batches of a study's rows, cut to `max_length` and padded to the longest row of the batch."""

    def __init__(self, data: PreparedData, max_length: int, device: torch.device) -> None:
        self._data = data
        self._max_length = max_length
        self._device = device
        # Tensor cores need multiples of 8; on a CPU that only costs time.
        self._multiple = 8 if device.type == "cuda" and not data.padding_matters else 1

    def __call__(self, rows: Rows) -> Batch:
        """The batch of `rows`."""
        data, length = self._data, self._max_length
        kept = data.kept_tokens(rows, length)
        limit = data.limit(length)
        arrays, filled = data.frame.padded(data.columns, rows, kept, limit, self._multiple)
        inputs = {name: self.tensor(array) for name, array in arrays.items()}
        width = arrays["input_ids"].shape[1]
        return Batch(inputs, self.labels(rows), filled, self._places(rows, width))

    def _places(self, rows: Rows, width: int) -> Tensor | None:
        if self._data.word_tokens is None:
            return None
        tokens = self._data.word_tokens[rows]
        inside = len(self._data.frame.before) + tokens.values
        return self.tensor(tokens.rows * width + inside)

    def together(self, rows: Rows) -> list[Rows]:
        """`rows` in parts that can go through the model together: all or, where padding matters, those of each length."""
        if not self._data.padding_matters:
            return [rows]
        lengths = self.lengths(rows)
        return [rows[lengths == length] for length in np.unique(lengths)]

    def labels(self, rows: Rows) -> Tensor:
        """The labels of `rows`."""
        return self.tensor(flat(self._data.labels[rows]))

    def weight(self, rows: Rows) -> int:
        """How much `rows` count in a loss: each counts one or, where words have labels, each of these."""
        labels = self._data.labels
        return int(labels.lengths[rows].sum()) if isinstance(labels, Ragged) else len(rows)

    def lengths(self, rows: Rows) -> NDArray[np.int64]:
        """Tokens of each of `rows` as batched."""
        return self._data.lengths(rows, self._max_length)

    def prepare(
        self, rows: Rows, should_pause: Callable[[], bool], progress: Callable[[str], None]
    ) -> bool:
        """Get ready for batches of `rows`: nothing to do, the tokens are there."""
        return True

    def tensor(self, array: NDArray[np.generic]) -> Tensor:
        """The array on the device."""
        return self.place(torch.from_numpy(array))

    def place(self, tensor: Tensor) -> Tensor:
        """The tensor on the device."""
        if self._device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)
