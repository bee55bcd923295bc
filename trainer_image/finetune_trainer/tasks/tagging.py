"""Entities and the tags that mark them: every notation that is in use, and IOB2, in which models learn."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.tasks.ragged import Ragged

OUTSIDE = "O"
"""The tag of a word that is in no entity."""

_MARKED = re.compile(r"([BIESLUM])-(.+)", re.DOTALL)
_BEGIN, _END = "BSU", "ELSU"

Span: TypeAlias = tuple[int, int, str]
"""The first word of an entity, the one after its last, and its type."""


def is_marked(tags: Iterable[str]) -> bool:
    """Whether tags say where an entity begins or ends: most of those that are not O have a prefix."""
    inside = [tag for tag in tags if tag != OUTSIDE]
    return 2 * sum(_MARKED.fullmatch(tag) is not None for tag in inside) > len(inside)


def spans_of(tags: Sequence[str], marked: bool) -> list[Span]:
    """The entities of a row, in order.

    With `marked` tags (IOB2, IOB1, BIOES, BILOU), one begins where a tag says so and where the type changes, and ends
    where a tag says so: what each notation allows is read alike in all of them. Without, equal neighbours are one.
    """
    found: list[Span] = []
    begun: tuple[int, str] | None = None
    for at, tag in enumerate((*tags, OUTSIDE)):
        mark, kind = _parts(tag, marked)
        if begun is not None and (kind != begun[1] or mark in _BEGIN):
            found.append((begun[0], at, begun[1]))
            begun = None
        if kind is None:
            continue
        begun = begun or (at, kind)
        if mark in _END:
            found.append((begun[0], at + 1, begun[1]))
            begun = None
    return found


def _parts(tag: str, marked: bool) -> tuple[str, str | None]:
    """A tag's prefix and its type; None for O."""
    if tag == OUTSIDE:
        return "O", None
    if not marked:
        return "I", tag
    match = _MARKED.fullmatch(tag)
    assert match is not None  # the caller knows that tags are marked
    return match[1], match[2]


def in_iob2(spans: Iterable[Span], words: int) -> list[str]:
    """The IOB2 tags of a row of so many words."""
    tags = [OUTSIDE] * words
    for start, end, kind in spans:
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tags


def outputs_of(types: Iterable[str]) -> list[str]:
    """The outputs of a model of entities: O, and for each type B and I."""
    return [OUTSIDE, *(f"{mark}-{kind}" for kind in types for mark in "BI")]


@dataclass(frozen=True)
class Tagged:
    """The words of one row, and what is right of each."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    """The first character of each word in the row's text, and the one after its last."""

    tags: tuple[str, ...]
    """The name of the output of each."""

    @property
    def types(self) -> tuple[str, ...]:
        """The types of the row's entities, each once and in order; the tags themselves where each word is one."""
        return tuple(
            sorted({tag[2:] if _MARKED.fullmatch(tag) else tag for tag in self.tags} - {OUTSIDE})
        )


@dataclass(frozen=True)
class Tags(Ragged):
    """The number of the output of each word, for each row; those of entities as in `outputs_of`."""

    singles: bool = False
    """Whether each word is an entity by itself, and each output a type."""


@dataclass(frozen=True)
class Entities:
    """The entities of some rows, in order."""

    row: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    """The first word, and the one after the last, counted over all rows."""

    kind: NDArray[np.int64]

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        """All of it."""
        return self.row, self.start, self.end, self.kind

    def same_words(self, others: "Entities") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers of those that have the words of one of the `others`, and the numbers of these."""
        _, one, other = np.intersect1d(
            self.start, others.start, assume_unique=True, return_indices=True
        )
        same = self.end[one] == others.end[other]
        return one[same], other[same]


def entities_of(tags: Tags) -> Entities:
    """The entities of each row, by IOB2 in its strict sense: only B begins one, and I of its type goes on with it."""
    values, rows = tags.values.astype(np.int64), tags.rows
    if tags.singles:
        at = np.arange(len(values))
        return Entities(rows, at, at + 1, values)
    begin = np.flatnonzero((values > 0) & (values % 2 == 1))
    goes_on = np.zeros(len(values) + 1, dtype=np.bool_)
    if len(values):
        inside = (values % 2 == 0) & (values > 0)
        kind = (values - 1) // 2
        goes_on[1:-1] = inside[1:] & (kind[1:] == kind[:-1]) & (rows[1:] == rows[:-1])
        goes_on[1:-1] &= values[:-1] > 0
    stops = np.flatnonzero(~goes_on)
    end = stops[np.searchsorted(stops, begin, side="right")]
    return Entities(rows[begin], begin, end, (values[begin] - 1) // 2)
