"""The texts themselves, for steps that need more than their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Texts:
    """Many texts as UTF-8 in one flat array. Text `i` is `utf8[offsets[i]:offsets[i + 1]]`."""

    utf8: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """`texts`, in the same order."""
        encoded = [text.encode() for text in texts]
        lengths = [0, *map(len, encoded)]
        utf8 = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(utf8, np.cumsum(lengths, dtype=np.int64))

    def __getitem__(self, number: int) -> str:
        return self.utf8[self.offsets[number] : self.offsets[number + 1]].tobytes().decode()

    def __len__(self) -> int:
        return len(self.offsets) - 1
