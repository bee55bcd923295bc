"""Arrays of different lengths, one for each row."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """One array for each row, all in one: that of row `i` is `values[offsets[i]:offsets[i + 1]]`."""

    values: NDArray[Any]
    """(items,) or (items, n)."""

    offsets: NDArray[np.int64]
    """(rows + 1,)."""

    @classmethod
    def of(cls, rows: Iterable[Iterable[Any]], dtype: Any, **more: Any) -> Self:
        """From the items of each row."""
        arrays = [np.fromiter(row, dtype=dtype) for row in rows]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
        return cls(values, ends([len(array) for array in arrays]), **more)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: NDArray[Any] | slice) -> Self:
        """Those of `rows`, in this order: numbers, truth of each row, or a slice."""
        numbers = np.arange(len(self))[rows]
        lengths = self.lengths[numbers]
        return replace(self, values=self.values[self.items(numbers)], offsets=ends(lengths))

    def row(self, number: int) -> NDArray[Any]:
        """The array of one row."""
        found: NDArray[Any] = self.values[self.offsets[number] : self.offsets[number + 1]]
        return found

    def items(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in `values` the items of `rows` are, in this order."""
        return ranges(self.offsets[rows], self.lengths[rows])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items of each row, (rows,)."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each item, (items,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def with_values(self, values: NDArray[Any]) -> "Ragged":
        """Other items for the same rows."""
        return Ragged(values, self.offsets)


def ends(lengths: Any) -> NDArray[np.int64]:
    """Where each of some arrays of these lengths begins in one after another, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """From each start so many numbers that follow each other, one range after another."""
    offsets = ends(lengths)
    found: NDArray[np.int64] = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    return found


def flat(labels: Any) -> NDArray[Any]:
    """The items of all rows where rows have several, else the array as it is."""
    values: NDArray[Any] = labels.values if isinstance(labels, Ragged) else labels
    return values


def arrays_of(labels: Any) -> list[NDArray[Any]]:
    """All that `labels` consist of."""
    return [labels.values, labels.offsets] if isinstance(labels, Ragged) else [labels]


def made_of(arrays: Sequence[NDArray[Any]]) -> Any:
    """What `arrays_of` took apart."""
    return arrays[0] if len(arrays) == 1 else Ragged(*arrays)
