"""Rows of tagged words that are longer than a model reads: cut into windows that overlap, and put together again."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.data.tokens import Tokens
from finetune_trainer.tasks.ragged import Ragged, ends, ranges

OVERLAP = 4
"""A window shares one part in so many of its tokens with the next one, so that each word has some text around it."""

NO_TOKEN = -1
"""The token of a word of which the tokenizer makes none."""


@dataclass(frozen=True)
class Units:
    """What batches consist of: the rows of a study or, of tagged words, their windows.

    Each word that has a token is labelled in one window only: the one in which more of its text is around it.
    """

    data: PreparedData
    """The same rows as units, for training and prediction; parts have the numbers of their units."""

    rows: PreparedData
    """The study's rows."""

    of_row: NDArray[np.int64] | None = None
    """The units of row `i` are `of_row[i]` to `of_row[i + 1]`; None if each row is one."""

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the units of `rows`, in order."""
        return rows if self.of_row is None else _numbers(self.of_row, rows)

    def joined(self, answers: Any, rows: NDArray[np.int64]) -> Any:
        """What a model says of `rows`, from its answers for their units."""
        tokens = self.rows.word_tokens
        if tokens is None:
            return answers
        there = tokens[rows].values != NO_TOKEN
        shape = (len(there), *answers.values.shape[1:])
        values = np.full(shape, np.nan, dtype=np.float32)
        values[there] = answers.values
        return replace(answers, values=values, offsets=tokens[rows].offsets)


def units_of(data: PreparedData, max_length: int) -> Units:
    """The units of the rows of `data` for a trial that reads at most `max_length` tokens at a time."""
    if data.word_tokens is None:
        return Units(data, data)
    (column,), room = data.columns, data.limit(max_length) - data.frame.special
    found = windows_of(column, data.word_tokens, room)
    labels = replace(
        data.labels, values=data.labels.values[found.known], offsets=found.word_tokens.offsets
    )
    changed = replace(
        data,
        columns=(found.tokens,),
        labels=labels,
        word_tokens=found.word_tokens,
        groups=None if data.groups is None else data.groups[found.row],
        slices=tuple(one.at(found.row) for one in data.slices),
        train=_numbers(found.of_row, data.train),
        validation=_numbers(found.of_row, data.validation),
        test=_numbers(found.of_row, data.test),
    )
    return Units(changed, data, found.of_row)


@dataclass(frozen=True)
class Windows:
    """Texts in windows of a few tokens."""

    tokens: Tokens
    row: NDArray[np.int64]
    """The text of each window; those of a text follow each other."""

    of_row: NDArray[np.int64]
    """The windows of text `i` are `of_row[i]` to `of_row[i + 1]`."""

    word_tokens: Ragged
    """The first token of each word that the window labels, counted within it."""

    known: NDArray[np.int64]
    """The numbers of those words of all texts that have a token: the words of all windows in turn."""


def windows_of(column: Tokens, word_tokens: Ragged, room: int) -> Windows:
    """The windows of at most `room` tokens of the texts in `column`, whose words begin with `word_tokens`."""
    row, start, own_from, own_to = _windows(column.lengths, room)
    end = np.minimum(start + room, column.lengths[row])
    ids = column.ids[ranges(column.offsets[row] + start, end - start)]
    known = np.flatnonzero(word_tokens.values != NO_TOKEN)
    word_row, token = word_tokens.rows[known], word_tokens.values[known]
    # Windows are in the order of their texts, and in each text in that of the tokens they own.
    width = int(column.lengths.max(initial=0)) + 1
    window = np.searchsorted(row * width + own_from, word_row * width + token, side="right") - 1
    assert (token < own_to[window]).all()
    words = ends(np.bincount(window, minlength=len(row)))
    return Windows(
        Tokens(ids, ends(end - start)),
        row,
        ends(np.bincount(row, minlength=len(column))),
        Ragged(token - start[window], words),
        known,
    )


def _windows(lengths: NDArray[np.int64], room: int) -> tuple[NDArray[np.int64], ...]:
    """The windows of texts with so many tokens: the text of each, its first token, and which tokens it labels: from
    the first number to before the second.
    """
    found: list[tuple[int, int, int, int]] = []
    step = max(1, room - room // OVERLAP)
    for row, length in enumerate(lengths.tolist()):
        last = max(0, length - room)
        starts = [*range(0, last, step), last]
        # Between two windows, the middle of what they share.
        borders = [(next_one + one + room) // 2 for one, next_one in pairwise(starts)]
        for start, begin, end in zip(starts, [0, *borders], [*borders, length], strict=True):
            found.append((row, start, begin, end))
    return tuple(np.array(found, dtype=np.int64).reshape(-1, 4).T)


def _numbers(first: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers from `first[row]` to before `first[row + 1]`, of each of `rows` in turn."""
    return Ragged(np.arange(first[-1]), first)[rows].values
