"""What is counted in the rows of a table, once it is known which columns are what."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from finetune_trainer.cells.words import name_of
from finetune_trainer.drafts.columns import parts_of
from finetune_trainer.drafts.roles import Roles
from finetune_trainer.tasks.tagging import OUTSIDE, is_marked

_RARE = 5
"""How many times as many rows the most frequent class has from which the rarest counts as rare."""

_FOREIGN = 0.005
"""Share of letters outside ASCII from which texts are taken for another language than English."""


@dataclass(frozen=True)
class Lengths:
    """How long texts are: half of them, 95 % of them and all of them have at most so much."""

    median: int
    most: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        """Those of texts with these lengths, at least one."""
        median, most = np.quantile(lengths, [0.5, 0.95], method="higher")
        return cls(int(median), int(most), int(max(lengths)))


@dataclass(frozen=True)
class Facts:
    """What was counted."""

    rows: int
    """Rows of the file that can be read."""

    usable: int
    """Of these, rows with a text and a label."""

    classes: tuple[tuple[str, int], ...]
    """Classes, labels or types of entities with their numbers, the most frequent first; none of numbers."""

    characters: Lengths
    """Of texts."""

    duplicates: int
    """Rows with the same texts as an earlier row."""

    is_english: bool
    """Whether the letters are nearly all of ASCII."""

    @property
    def has_rare_classes(self) -> bool:
        """Whether the rarest class has a fifth of the rows of the most frequent one, or less."""
        return len(self.classes) > 1 and self.classes[0][1] >= _RARE * self.classes[-1][1]


def texts_of(roles: Roles) -> list[tuple[str, ...] | None]:
    """The texts of each row, words joined by blanks; None for a row without."""
    columns = [roles.tokens] if roles.tokens is not None else roles.texts
    rows = zip(*(column.cells for column in columns), strict=True)
    return [
        None
        if None in row
        else tuple(" ".join(parts_of(each)) if roles.tokens else str(each) for each in row)
        for row in rows
    ]


def facts_of(roles: Roles) -> Facts:
    """What the rows have in common, and where they differ."""
    texts = texts_of(roles)
    labelled = [
        any(column.cells[row] is not None for column in roles.labels) for row in range(len(texts))
    ]
    usable = [text for text, has in zip(texts, labelled, strict=True) if has and text is not None]
    known = usable or [("",)]
    letters = "".join("".join(row) for row in known[:2000])
    foreign = sum(letter.isalpha() and not letter.isascii() for letter in letters)
    return Facts(
        rows=len(texts),
        usable=len(usable),
        classes=tuple(Counter(_classes(roles)).most_common()),
        characters=Lengths.of([sum(map(len, row)) for row in known]),
        duplicates=len(usable) - len({*usable}),
        is_english=foreign <= _FOREIGN * max(1, len(letters)),
    )


def _classes(roles: Roles) -> Iterator[str]:
    """Each class, label or entity in the rows."""
    if roles.task == "Regression":
        return
    if len(roles.labels) > 1:
        for column in roles.labels:
            yes = sum(
                str(cell).strip().lower() in ("1", "1.0", "true", "yes") for cell in column.cells
            )
            yield from [column.name] * yes
        return
    for cell in roles.label.cells:
        if cell is None:
            continue
        if roles.label.form == "Spans":
            yield from (str(span["label"]) for span in cell)
        elif roles.task == "TokenClassification":
            tags = [tag for tag in parts_of(cell) if tag != OUTSIDE]
            # An entity is counted once: by its tag B- or, where tags have no marks, by each word.
            yield from (
                tag[2:] if is_marked([tag]) else tag
                for tag in tags
                if tag[:2] not in ("I-", "E-", "L-", "M-")
            )
        elif roles.task == "MultiLabel":
            parts = cell if isinstance(cell, list) else cell.split(roles.separator)
            yield from {name for part in parts if (name := name_of(part)) is not None}
        else:
            yield name_of(cell) or str(cell)
