"""Texts as token numbers: made once without truncation, cut and framed when rows are batched."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Piece: TypeAlias = NDArray[np.int32] | tuple[int, ...]

JOINT = "\x1f"
"""Stands between the texts of a row that are joined to one, until they are tokens: ASCII's unit separator."""

_CHUNK = 1000


@dataclass(frozen=True)
class Tokens:
    """Token numbers of many texts in one flat array, without special tokens.

    Text `i` is `ids[offsets[i]:offsets[i + 1]]`.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return np.diff(self.offsets)

    def followed_by(self, more: "Tokens") -> "Tokens":
        """These texts, and behind them those of `more`."""
        offsets = np.concatenate([self.offsets, self.offsets[-1] + more.offsets[1:]])
        return Tokens(np.concatenate([self.ids, more.ids]), offsets)

    @cached_property
    def digest(self) -> str:
        """A digest of all tokens."""
        digest = hashlib.sha256(np.ascontiguousarray(self.ids).data)
        digest.update(np.ascontiguousarray(self.offsets).data)
        return digest.hexdigest()[:32]


def tokenise(tokenizer: Any, texts: Sequence[str]) -> Tokens:
    """The tokens of `texts`, of any length.

    In the place of each `JOINT` is the tokenizer's separator token, or a line break if it has none.
    """
    separator = f" {tokenizer.sep_token} " if tokenizer.sep_token else "\n"
    chunks = []
    lengths = [0]
    for start in range(0, len(texts), _CHUNK):
        chunk = [text.replace(JOINT, separator) for text in texts[start : start + _CHUNK]]
        encoded = _ids(tokenizer, chunk)
        lengths += [len(ids) for ids in encoded]
        chunks.append(np.fromiter((i for ids in encoded for i in ids), dtype=np.int32))
    ids = np.concatenate(chunks) if chunks else np.empty(0, dtype=np.int32)
    return Tokens(ids, np.cumsum(lengths, dtype=np.int64))


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return list(encoded["input_ids"])


@dataclass(frozen=True)
class Frame:
    """The special tokens around one text or a pair of texts, as the tokenizer would place them."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, ...] | None
    """Segment numbers of `before`, the first text, `between`, the second text and `after`, if used."""

    pad: int

    @classmethod
    def of(cls, tokenizer: Any, pair: bool) -> "Frame":
        """The frame that `tokenizer` puts around texts; `pair` for two texts a row."""
        texts = ["a", "b"] if pair else ["a"]
        first, *second = ([*ids] for ids in _ids(tokenizer, texts))
        encoded = tokenizer(*texts, return_token_type_ids=True)
        ids, segments = list(encoded["input_ids"]), list(encoded["token_type_ids"])
        start = _find(ids, first, 0)
        end = start + len(first)
        start_2 = _find(ids, second[0], end) if second else len(ids)
        end_2 = start_2 + len(second[0]) if second else len(ids)
        between = ids[end:start_2] if second else []
        after = ids[end_2:] if second else ids[end:]
        used = "token_type_ids" in tokenizer.model_input_names
        return cls(
            before=tuple(ids[:start]),
            between=tuple(between),
            after=tuple(after),
            types=_types(segments, start, end, start_2, end_2) if used else None,
            pad=int(tokenizer.pad_token_id or 0),
        )

    @property
    def special(self) -> int:
        """How many special tokens a row has."""
        return len(self.before) + len(self.between) + len(self.after)

    def pieces(self, texts: Sequence[NDArray[np.int32]]) -> list[tuple[Piece, int]]:
        """What a row of one or two texts consists of, in order, and the segment number of each piece."""
        first, *rest = texts
        second: Piece = rest[0] if rest else ()
        tokens: tuple[Piece, ...] = (self.before, first, self.between, second, self.after)
        return list(zip(tokens, self.types or (0, 0, 0, 0, 0), strict=True))


def _types(segments: list[int], start: int, end: int, start_2: int, end_2: int) -> tuple[int, ...]:
    def at(position: int, default: int) -> int:
        return segments[position] if position < len(segments) else default

    first = segments[start]
    second = at(start_2, first)
    after = at(end_2 if start_2 < len(segments) else end, second)
    return (segments[0], first, at(end, first), second, after)


def _find(ids: list[int], part: list[int], start: int) -> int:
    for position in range(start, len(ids) - len(part) + 1):
        if ids[position : position + len(part)] == part:
            return position
    raise ValueError(f"the tokenizer frames {part} as {ids}, which does not hold it")


def cut(lengths: Sequence[NDArray[np.int64]], room: int) -> list[NDArray[np.int64]]:
    """Tokens that each of one or two texts keeps where a row has `room` for them.

    Of a pair the longer text is cut first, as the tokenizers' `longest_first` does.
    """
    if len(lengths) == 1:
        return [np.minimum(lengths[0], room)]
    first, second = lengths
    shorter = np.minimum(first, second)
    small = np.where(shorter > room, room, shorter)
    large = np.maximum(small, room - small)
    both = small + large > room
    small, large = np.where(both, room // 2, small), np.where(both, room - room // 2, large)
    fits = first + second <= room
    swapped = first > second
    kept_first = np.where(fits, first, np.where(swapped, large, small))
    kept_second = np.where(fits, second, np.where(swapped, small, large))
    return [kept_first, kept_second]
