"""What a cell of a column says, whatever format it came in."""

import math
from typing import Any

from finetune_trainer.data.formats import is_unicode
from finetune_trainer.data.tokens import JOINT
from finetune_trainer.errors import DataError

TEXT_FIELD = "spec.dataset.textColumns"
_YES = frozenset({"1", "1.0", "true", "yes"})
_NO = frozenset({"0", "0.0", "false", "no"})


def is_missing(value: Any) -> bool:
    """Whether the cell is empty: None, or the NaN of a column of numbers."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: Any) -> str:
    """The cell as an error quotes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def text_of(value: Any, part: str) -> str | None:
    """The text in a cell of the rows of `part`, without `JOINT`; None if there is none, or none that UTF-8
    can hold.

    Raises DataError for lists, objects and bytes.
    """
    if isinstance(value, list | dict | bytes):
        raise DataError(
            TEXT_FIELD, f"must name columns of text (got {shown(value)} in the {part} rows)"
        )
    if is_missing(value):
        return None
    text = str(value).replace(JOINT, "")  # what stands for a separator is ours to write
    return text if text.strip() and is_unicode(text) else None


def name_of(value: Any) -> str | None:
    """The cell as a name; None if it is empty. Whole numbers look the same as integers and floats."""
    if is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return None if text == "" or text.lower() == "nan" or not is_unicode(text) else text


def group_of(value: Any) -> str | None:
    """The group that a cell of `groupColumn` names; None if it is empty. Raises DataError for a list."""
    if isinstance(value, list | dict):
        raise DataError(
            "spec.dataset.groupColumn", f"must hold one value a row (got {shown(value)})"
        )
    return name_of(value)


def is_yes(value: Any, field: str) -> bool:
    """Whether a cell of yes and no says yes; empty is no. Raises DataError, naming `field`, for others."""
    word = (name_of(value) or "no").lower()
    if word not in _YES | _NO:
        raise DataError(
            field, f"must hold 1, true or yes, 0, false, no or nothing (got {shown(value)})"
        )
    return word in _YES
