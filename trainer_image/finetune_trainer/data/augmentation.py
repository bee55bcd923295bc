"""Varied copies of texts: words are replaced by synonyms, inserted, deleted or swapped.

After Wei and Zou, "EDA: Easy Data Augmentation Techniques", 2019.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer.cells.words import JOINT
from finetune_trainer.data.synonyms import Synonyms
from finetune_trainer.data.texts import Texts

_WORD = re.compile(r"(\w+(?:['\u2019-]\w+)*)")

Pieces: TypeAlias = list[str]
"""A text in pieces: words at odd positions, what stands between words at even ones."""

Operation: TypeAlias = Callable[[Pieces, int, Synonyms, np.random.Generator], None]
"""Changes that many words of a text, or as many as it can."""


@dataclass(frozen=True)
class VariableTexts:
    """The texts of all rows that may be training rows, which come first in a study, and synonyms of their words.

    It has only flat arrays, so Ray's object store shares one copy among the processes of a node.
    """

    columns: tuple[Texts, ...]
    """One or two texts per row."""

    dictionary: Texts
    """Each word with its synonyms, separated by tabs."""

    @classmethod
    def of(cls, columns: Iterable[Sequence[str]], synonyms: Synonyms) -> "VariableTexts":
        """The texts in `columns`, to be varied with `synonyms`."""
        entries = ["\t".join([word, *others]) for word, others in synonyms.items()]
        return cls(tuple(map(Texts.of, columns)), Texts.of(entries))

    @property
    def arrays(self) -> list[NDArray[np.generic]]:
        """Everything that decides what copies are made."""
        return [
            array
            for texts in (*self.columns, self.dictionary)
            for array in (texts.utf8, texts.offsets)
        ]

    @cached_property
    def synonyms(self) -> Synonyms:
        """The dictionary by word; made once per process."""
        entries = [self.dictionary[number].split("\t") for number in range(len(self.dictionary))]
        return {word: tuple(others) for word, *others in entries}

    def varied(
        self, rows: NDArray[np.int64], config: Hyperparameters, seed: int, epoch: int
    ) -> list[list[str]]:
        """`augmentationCopies` varied copies of each of `rows`, one after the other; a list for each column.

        A copy depends only on `seed`, `epoch`, its row and its number.
        """
        copies = [
            self._copy(int(row), config, np.random.default_rng((seed, epoch, int(row), number)))
            for row in rows
            for number in range(1, config.augmentation_copies + 1)
        ]
        return [list(column) for column in zip(*copies, strict=True)]

    def _copy(
        self, row: int, config: Hyperparameters, generator: np.random.Generator
    ) -> tuple[str, ...]:
        name: str = config.augmentation
        if name == "All":
            name = tuple(OPERATIONS)[generator.integers(len(OPERATIONS))]

        def varied(text: str) -> str:
            share = config.augmentation_share
            return vary(text, OPERATIONS[name], share, self.synonyms, generator)

        # Joined texts are varied separately.
        return tuple(JOINT.join(map(varied, column[row].split(JOINT))) for column in self.columns)


def words_of(text: str) -> list[str]:
    """The words of `text` in order: letters and digits, with apostrophes and hyphens inside."""
    return _WORD.findall(text)


def vary(
    text: str,
    operation: Operation,
    share: float,
    synonyms: Synonyms,
    generator: np.random.Generator,
) -> str:
    """`text` with `operation` done to `share` of its words, at least one."""
    pieces = _WORD.split(text)
    operation(pieces, max(1, round(share * (len(pieces) // 2))), synonyms, generator)
    return "".join(pieces).strip()


def _replace(
    pieces: Pieces, count: int, synonyms: Synonyms, generator: np.random.Generator
) -> None:
    """Replace words by synonyms."""
    able = [at for at in range(1, len(pieces), 2) if pieces[at].lower() in synonyms]
    for chosen in generator.permutation(len(able))[:count]:
        word = pieces[able[chosen]]
        synonym = _any_of(synonyms[word.lower()], generator)
        pieces[able[chosen]] = synonym[0].upper() + synonym[1:] if word[0].isupper() else synonym


def _insert(pieces: Pieces, count: int, synonyms: Synonyms, generator: np.random.Generator) -> None:
    """Insert synonyms of words before other words."""
    able = [word.lower() for word in pieces[1::2] if word.lower() in synonyms]
    for _ in range(count if able else 0):
        synonym = _any_of(synonyms[_any_of(able, generator)], generator)
        at = 1 + 2 * int(generator.integers(len(pieces) // 2))
        pieces[at:at] = [synonym, " "]


def _delete(pieces: Pieces, count: int, _: Synonyms, generator: np.random.Generator) -> None:
    """Delete words, but never the last one."""
    words = len(pieces) // 2
    places = generator.permutation(words)[: min(count, words - 1)]
    for place in sorted(places, reverse=True):
        before, after = pieces[2 * place], pieces[2 * place + 2]
        pieces[2 * place : 2 * place + 3] = [before.rstrip() + after]


def _swap(pieces: Pieces, count: int, _: Synonyms, generator: np.random.Generator) -> None:
    """Swap words in pairs, each word at most once."""
    words = len(pieces) // 2
    pairs = min(max(1, count // 2), words // 2)
    for one, other in generator.permutation(words)[: 2 * pairs].reshape(-1, 2):
        first, second = 2 * one + 1, 2 * other + 1
        pieces[first], pieces[second] = pieces[second], pieces[first]


def _any_of(choices: Sequence[str], generator: np.random.Generator) -> str:
    return choices[int(generator.integers(len(choices)))]


OPERATIONS: dict[str, Operation] = {
    "Synonyms": _replace,
    "Insertion": _insert,
    "Deletion": _delete,
    "Swap": _swap,
}
"""What `augmentation` can name, apart from All."""

NEED_SYNONYMS = frozenset({"Synonyms", "Insertion", "All"})
