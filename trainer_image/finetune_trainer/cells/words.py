"""What a cell of a column contains, whatever format it came in."""

import math
import re
import unicodedata
from collections.abc import Sequence
from itertools import chain
from typing import Any

from finetune_trainer.cells.places import WrongCell

JOINT = "\x1f"
"""Separates the texts of a row that are joined into one, until they are tokens: ASCII's unit separator."""

TEXT_FIELD = "spec.dataset.textColumns"
LABEL_FIELD = "spec.dataset.labelColumn"
_YES = frozenset({"1", "1.0", "true", "yes"})
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
"""A whole number that may be written as a float."""

_NO = frozenset({"0", "0.0", "false", "no"})
_TRUTH = {"true": True, "false": False}


def is_missing(value: Any) -> bool:
    """Whether the cell is empty: None, or the NaN of a column of numbers."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: Any) -> str:
    """The cell as errors quote it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def text_of(value: Any) -> str | None:
    """The text in a cell, without `JOINT`; None if there is none, or none that UTF-8 can hold.

    Raises WrongCell for lists, objects and bytes.
    """
    if isinstance(value, list | dict | bytes):
        raise WrongCell(TEXT_FIELD, "must name columns of text", shown(value))
    if is_missing(value):
        return None
    text = str(value).replace(JOINT, "")  # only this project may write the separator
    return text if text.strip() and is_unicode(text) else None


def name_of(value: Any) -> str | None:
    """The cell as a name, in Unicode's composed form; None if it is empty.

    A whole number has the same name as an integer, as a float and as the text of either.
    """
    if is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = in_composed_form(str(value).strip())
    whole = _WHOLE.fullmatch(text)
    if whole:
        text = str(int(whole[1]))  # "-0.0" is 0
    return None if text == "" or text.lower() == "nan" or not is_unicode(text) else text


def with_one_spelling(columns: Sequence[list[Any]]) -> list[list[Any]]:
    """The same column of several files, with true and false spelt alike if some have them as values and others as
    text.

    The spelling is that of the texts, the first if they differ, because nothing else says which is meant.
    """
    spelt: dict[bool, str] = {}
    are_values = False
    for cell in chain.from_iterable(columns):
        if isinstance(cell, bool):
            are_values = True
        elif isinstance(cell, str) and cell.strip().lower() in _TRUTH:
            spelt.setdefault(_TRUTH[cell.strip().lower()], cell.strip())
    if not are_values or not spelt:
        return list(columns)
    for missing in {True, False} - spelt.keys():
        spelt[missing] = _like(spelt[not missing], str(missing))

    def same(cell: Any) -> Any:
        text = cell.strip().lower() if isinstance(cell, str) else str(cell).lower()
        known = isinstance(cell, bool | str) and text in _TRUTH
        return spelt[_TRUTH[text]] if known else cell

    return [[same(cell) for cell in column] for column in columns]


def _like(example: str, word: str) -> str:
    """`word` in the case of `example`: lower, upper, or with a capital."""
    if example.islower():
        return word.lower()
    return word.upper() if example.isupper() else word.capitalize()


def decoded(value: Any, field: str) -> Any:
    """The cell, with bytes decoded as UTF-8. Raises WrongCell, naming `field`, if they are not."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        got = f"{shown(value)}, bytes that are not UTF-8,"
        raise WrongCell(field, "must hold text", got) from error


def group_of(value: Any) -> str | None:
    """The group that a cell of `groupColumn` names; None if it is empty. Raises WrongCell for a list."""
    field = "spec.dataset.groupColumn"
    if isinstance(value, list | dict):
        raise WrongCell(field, "must have one value per row", shown(value))
    return name_of(decoded(value, field))


def is_yes(value: Any, field: str) -> bool:
    """Whether a yes-or-no cell says yes; empty means no. Raises WrongCell, naming `field`, for other values."""
    word = (name_of(decoded(value, field)) or "no").lower()
    if word not in _YES | _NO:
        must = "must hold 1, true or yes; or 0, false, no or nothing"
        raise WrongCell(field, must, shown(value))
    return word in _YES


def in_composed_form(name: str) -> str:
    """The name in Unicode's composed form (NFC), so that names that look the same are equal."""
    return unicodedata.normalize("NFC", name)


def is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogate, so that it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
