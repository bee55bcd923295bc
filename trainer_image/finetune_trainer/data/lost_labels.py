"""Tells of labels that a column loses because of how it is written."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from finetune_trainer.cells.words import name_of, shown
from finetune_trainer.data.load import RawRows
from finetune_trainer.data.steps import Account

_SEPARATORS = (",", ";", "|", "\t", "/")
_WORDS = 3


def warn_of_words(
    raw: RawRows,
    cells: Sequence[Any],
    separator: str | None,
    unlabelled: Collection[int],
    account: Account,
) -> set[int]:
    """Warn of each word in the label cells of `raw` that is read as no label, as nan is: it may be a class.

    Returns which of the `unlabelled` rows have such a word.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, cell in enumerate(cells):
        for word in {*_words(cell, separator)}:
            if name_of(word) is None:
                rows[word].append(row)
    for word in sorted(rows, key=lambda word: -len(rows[word]))[:_WORDS]:
        share = (
            f"{len(rows[word])} of {len(raw)} {raw.part} rows ({len(rows[word]) / len(raw):.1%})"
        )
        lost = ", and are left out" if rows[word][0] in unlabelled else ""
        account.warn(
            raw.field,
            f"{share} say {shown(word)} as their label, which is read as no label{lost} "
            f"({raw.places.of(rows[word])}); rename it if it is a class",
        )
    return {row for found in rows.values() for row in found if row in unlabelled}


def _words(cell: Any, separator: str | None) -> Iterator[str]:
    """The labels in a cell that are written as text, without those that are empty."""
    if isinstance(cell, str) and separator is not None:
        cell = cell.split(separator)
    for one in cell if isinstance(cell, list) else [cell]:
        if isinstance(one, str) and one.strip():
            yield one.strip()


def warn_of_separator(cells: Sequence[Any], separator: str, account: Account) -> None:
    """Warn if no cell that is text contains the separator of labels, and name the one that they may have."""
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    if not texts or any(separator in text for text in texts):
        return
    bare = separator.replace("\\", "")
    likely = [bare] if bare and bare != separator else []
    counts = Counter(
        {mark: sum(mark in text for text in texts) for mark in (*likely, *_SEPARATORS)}
    )
    [(mark, count)] = counts.most_common(1)
    other = f"; {shown(mark)} is in {count}" if count else ", so each has one label"
    account.warn(
        "spec.dataset.labelSeparator",
        f"'{separator}' is in none of {len(texts)} rows with labels{other}",
    )
