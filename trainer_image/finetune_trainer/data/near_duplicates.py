"""Rows that say nearly the same: found once for a study, left out of training as each trial's threshold says."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.embeddings import embed
from finetune_trainer.data.model_source import ModelSource
from finetune_trainer.errors import DataError

MAX_PAIRS = 5_000_000
"""Pairs that a study may have: more mean that the threshold is too low for its texts."""

_BLOCK = 2048
"""Texts that are compared at a time: comparing all with all would not fit into memory."""

_CHUNK = 1 << 14
_MARGIN = 1e-4
"""An upper bound of the error of a cosine in single precision."""

log = logging.getLogger("finetune.data")


@dataclass(frozen=True)
class NearDuplicates:
    """Which rows of a study have the same texts, and which texts are similar.

    It has only flat arrays, so Ray's object store shares one copy among the processes of a node.
    """

    texts: NDArray[np.int32]
    """(rows,) Number of each row's texts: rows with the same texts have the same number."""

    later: NDArray[np.int32]
    earlier: NDArray[np.int32]
    """(pairs,) Numbers of the two texts of each pair."""

    cosine: NDArray[np.float32]
    """(pairs,) Their similarities: at least the lowest threshold that a trial of the study can have."""

    @classmethod
    def find(
        cls, columns: Sequence[Sequence[str]], encoder: ModelSource, lowest: float, field: str
    ) -> "NearDuplicates":
        """Find texts with a similarity of at least `lowest` among rows whose one or two texts are in `columns`.

        The similarity of two pairs of texts is the mean of those of their texts. The result decides which rows a
        trial sees, so it must be the same on any machine and with any number of threads: texts that are close in
        single precision are compared in double precision, and cosines have 6 digits. Raises ModelError if
        the encoder cannot be loaded, DataError, naming `field`, if there are more than `MAX_PAIRS`.
        """
        numbers: dict[tuple[str, ...], int] = {}
        texts = [numbers.setdefault(row, len(numbers)) for row in zip(*columns, strict=True)]
        rows = list(numbers)
        pairs = close_pairs(_vectors(encoder, rows, "float32"), lowest - _MARGIN, field)
        cosine = np.empty(0, dtype=np.float32)
        if len(pairs):
            close, places = np.unique(pairs, return_inverse=True)
            vectors = _vectors(encoder, [rows[number] for number in close], "float64")
            cosine = _cosines(vectors, places.reshape(pairs.shape))
        alike = cosine >= np.float32(lowest)
        later, earlier = np.ascontiguousarray(pairs[alike].T)
        log.info(
            "%d pairs of %d texts have a similarity of %g or more", len(later), len(rows), lowest
        )
        return cls(np.array(texts, dtype=np.int32), later, earlier, cosine[alike])

    @property
    def arrays(self) -> list[NDArray[np.generic]]:
        """Everything that decides which rows are left out."""
        return [self.texts, self.later, self.earlier, self.cosine]

    def stay(
        self, train: NDArray[np.int64], others: NDArray[np.int64], threshold: float
    ) -> NDArray[np.bool_]:
        """Which rows of `train` (ascending) stay: those whose similarity is below `threshold` both to all of
        `others` and to all earlier ones of `train` that stay."""
        close = self.cosine >= threshold
        later, earlier = self.later[close], self.earlier[close]
        leaking = self._leaking(others, later, earlier)
        first = np.full(len(leaking), len(train))
        np.minimum.at(first, self.texts[train], np.arange(len(train)))
        kept = ~leaking & (first < len(train))
        both = kept[later] & kept[earlier]
        _keep_first(kept, first, later[both], earlier[both])
        stays = np.zeros(len(train), dtype=np.bool_)
        stays[first[kept]] = True
        return stays

    def _leaking(
        self, others: NDArray[np.int64], later: NDArray[np.int32], earlier: NDArray[np.int32]
    ) -> NDArray[np.bool_]:
        """Which texts are among those of `others`, or similar to one of them."""
        held_out = np.zeros(int(self.texts.max()) + 1, dtype=np.bool_)
        held_out[self.texts[others]] = True
        leaking = held_out.copy()
        leaking[later[held_out[earlier]]] = True
        leaking[earlier[held_out[later]]] = True
        return leaking


def _keep_first(
    kept: NDArray[np.bool_],
    place: NDArray[np.int64],
    ones: NDArray[np.int32],
    others: NDArray[np.int32],
) -> None:
    """Of each pair keep only the one that comes first by `place`, unless that one is not kept itself."""
    swapped = place[ones] < place[others]
    behind, ahead = np.where(swapped, others, ones), np.where(swapped, ones, others)
    order = np.argsort(place[behind], kind="stable")
    behind, ahead = behind[order], ahead[order]
    starts = np.flatnonzero(np.diff(behind, prepend=-1))
    for start, end in zip(starts, [*starts, len(behind)][1:], strict=True):
        if kept[ahead[start:end]].any():
            kept[behind[start]] = False


def _vectors(
    encoder: ModelSource,
    rows: Sequence[tuple[str, ...]],
    precision: Literal["float32", "float64"],
) -> NDArray[Any]:
    """A unit vector (rows, width of all texts) for each row; each text is encoded once."""
    places = {text: at for at, text in enumerate(dict.fromkeys(chain.from_iterable(rows)))}
    vectors = embed(encoder, list(places), precision)
    joined = [vectors[[places[text] for text in column]] for column in zip(*rows, strict=True)]
    return np.concatenate(joined, axis=1) / math.sqrt(len(joined))


def close_pairs(vectors: NDArray[np.float32], lowest: float, field: str) -> NDArray[np.int32]:
    """Numbers (pairs, 2) of the later and the earlier of two unit vectors (texts, width) with a cosine of at
    least `lowest`. Raises DataError, naming `field`, if there are more than `MAX_PAIRS`.
    """
    found, count = [np.empty((0, 2), dtype=np.int32)], 0
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        for other in range(0, start + 1, _BLOCK):
            close = block @ vectors[other : other + _BLOCK].T >= lowest
            if other == start:
                close = np.tril(close, -1)
            pairs = np.argwhere(close) + np.array([start, other])
            found.append(pairs.astype(np.int32))
            count += len(pairs)
            if count > MAX_PAIRS:
                raise DataError(
                    field,
                    f"must be higher for these rows: more than {MAX_PAIRS:,} pairs of texts are similar "
                    f"by the lowest threshold (got {lowest:g})",
                )
    return np.concatenate(found)


def _cosines(vectors: NDArray[np.float64], pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """The cosine (pairs,) of each pair, with 6 digits."""
    cosines = np.empty(len(pairs))
    for start in range(0, len(pairs), _CHUNK):
        later, earlier = pairs[start : start + _CHUNK].T
        cosines[start : start + _CHUNK] = (vectors[later] * vectors[earlier]).sum(axis=1)
    return np.round(cosines, 6).astype(np.float32)
