"""Texts as token ids: made once without truncation; cut and framed when rows are batched."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.cells.words import JOINT
from finetune_trainer.tasks.ragged import Ragged

Piece: TypeAlias = NDArray[np.int32] | tuple[int, ...]

_CHUNK = 1000


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts in one flat array, without special tokens.

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
        """These texts, followed by those of `more`."""
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

    Each `JOINT` becomes the tokenizer's separator token, or a line break if it has none.
    """
    chunks = []
    lengths = [0]
    for start in range(0, len(texts), _CHUNK):
        chunk = [_separated(tokenizer, text) for text in texts[start : start + _CHUNK]]
        encoded = _ids(tokenizer, chunk)
        lengths += [len(ids) for ids in encoded]
        chunks.append(np.fromiter((i for ids in encoded for i in ids), dtype=np.int32))
    ids = np.concatenate(chunks) if chunks else np.empty(0, dtype=np.int32)
    return Tokens(ids, np.cumsum(lengths, dtype=np.int64))


def tokens_of_words(tokenizer: Any, texts: Sequence[str], words: Ragged) -> tuple[Tokens, Ragged]:
    """The tokens of `texts`, and the number of the first token of each word among those of its text; -1 if it has none.

    `words` has the first character of each word and the one after its last, (words, 2). Two words may share a token.
    Raises ValueError for a tokenizer that does not tell which characters a token comes from.
    """
    if not tokenizer.is_fast:
        raise ValueError("it does not tell which characters its tokens come from: a fast one does")
    tokens = tokenise(tokenizer, texts)
    found = np.full(len(words.values), -1, dtype=np.int64)
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        encoded = tokenizer(
            chunk,
            add_special_tokens=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for row, offsets in enumerate(encoded["offset_mapping"], start):
            at = np.array(offsets, dtype=np.int64).reshape(-1, 2)
            word = words.row(row)
            first = np.searchsorted(np.maximum.accumulate(at[:, 1]), word[:, 0], side="right")
            inside = np.append(at[:, 0], np.iinfo(np.int64).max)[first] < word[:, 1]
            found[words.offsets[row] : words.offsets[row + 1]] = np.where(inside, first, -1)
    return tokens, words.with_values(found)


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

    left: bool = field(default=False, repr=False)
    """Whether long texts are cut at their beginning. Not shown if False, so that digests stay what they were."""

    @classmethod
    def of(cls, tokenizer: Any, columns: Sequence[Sequence[str]]) -> "Frame":
        """The frame that `tokenizer` puts around the texts of `columns`, one or two, tried out on some of them.

        Raises ValueError if it makes no token of any text of a column.
        """
        texts = [_shortest(tokenizer, column) for column in columns]
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
            left=tokenizer.truncation_side == "left",
        )

    def kept(self, tokens: NDArray[np.int32], count: int) -> NDArray[np.int32]:
        """The `count` tokens that a text keeps when it is cut."""
        return tokens[len(tokens) - count :] if self.left else tokens[:count]

    @property
    def special(self) -> int:
        """How many special tokens a row has."""
        return len(self.before) + len(self.between) + len(self.after)

    def padded(
        self,
        columns: Sequence[Tokens],
        rows: NDArray[np.int64],
        kept: Sequence[NDArray[np.int64]],
        limit: int,
        multiple: int = 1,
    ) -> tuple[dict[str, NDArray[np.int64]], bool]:
        """A model's arguments (rows, tokens) for `rows` of `columns`, and whether none of them is padded.

        `kept` has the tokens that each text keeps, one array per column. The rows are padded to the longest, rounded
        up to a `multiple` of tokens unless that exceeds `limit`.
        """
        lengths = np.sum(kept, axis=0) + self.special
        width = min(-(-int(lengths.max()) // multiple) * multiple, limit)
        ids = np.full((len(rows), width), self.pad, dtype=np.int64)
        segments = np.zeros_like(ids)
        for at, row in enumerate(rows):
            position = 0
            texts = [
                self.kept(column[row], int(count[at]))
                for column, count in zip(columns, kept, strict=True)
            ]
            for tokens, segment in self.pieces(texts):
                end = position + len(tokens)
                ids[at, position:end] = tokens
                segments[at, position:end] = segment
                position = end
        mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
        arrays = {"input_ids": ids, "attention_mask": mask}
        if self.types is not None:
            arrays["token_type_ids"] = segments
        return arrays, bool((lengths == width).all())

    def pieces(self, texts: Sequence[NDArray[np.int32]]) -> list[tuple[Piece, int]]:
        """What a row of one or two texts consists of, in order, and the segment number of each piece."""
        first, *rest = texts
        second: Piece = rest[0] if rest else ()
        tokens: tuple[Piece, ...] = (self.before, first, self.between, second, self.after)
        return list(zip(tokens, self.types or (0, 0, 0, 0, 0), strict=True))


def _shortest(tokenizer: Any, texts: Sequence[str]) -> str:
    """The shortest of `texts` that has any tokens."""
    separated = [_separated(tokenizer, text) for text in sorted(texts, key=len)]
    for start in range(0, len(separated), _CHUNK):
        chunk = separated[start : start + _CHUNK]
        for text, ids in zip(chunk, _ids(tokenizer, chunk), strict=True):
            if ids:
                return text
    raise ValueError(f"it makes no tokens from any of {len(texts):,} texts")


def _separated(tokenizer: Any, text: str) -> str:
    """`text` with each `JOINT` replaced by the tokenizer's separator token, or a line break if it has none."""
    return text.replace(JOINT, f" {tokenizer.sep_token} " if tokenizer.sep_token else "\n")


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
    raise ValueError(f"the tokenizer turns {part} into {ids}, which does not contain it")


def cut(lengths: Sequence[NDArray[np.int64]], room: int) -> list[NDArray[np.int64]]:
    """Tokens that each of one or two texts keeps if a row has `room` for them.

    Of a pair, the longer text is cut first, like the tokenizers' `longest_first`.
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
