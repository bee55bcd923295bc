"""What a cell of a column contains, whatever format it came in."""

import math
import re
from typing import Any

from finetune_trainer.data.formats import in_composed_form, is_unicode
from finetune_trainer.data.tokens import JOINT
from finetune_trainer.errors import DataError

TEXT_FIELD = "spec.dataset.textColumns"
_YES = frozenset({"1", "1.0", "true", "yes"})
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
"""A whole number that may be written as a float."""

_NO = frozenset({"0", "0.0", "false", "no"})


def is_missing(value: Any) -> bool:
    """Whether the cell is empty: None, or the NaN of a column of numbers."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: Any) -> str:
    """The cell as errors quote it, cut to 60 characters."""
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


def decoded(value: Any, field: str) -> Any:
    """The cell, with bytes decoded as UTF-8. Raises DataError, naming `field`, if they are not."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            field, f"must hold text (got {shown(value)}, bytes that are not UTF-8)"
        ) from error


def group_of(value: Any) -> str | None:
    """The group that a cell of `groupColumn` names; None if it is empty. Raises DataError for a list."""
    field = "spec.dataset.groupColumn"
    if isinstance(value, list | dict):
        raise DataError(field, f"must have one value per row (got {shown(value)})")
    return name_of(decoded(value, field))


def is_yes(value: Any, field: str) -> bool:
    """Whether a yes-or-no cell says yes; empty means no. Raises DataError, naming `field`, for other values."""
    word = (name_of(decoded(value, field)) or "no").lower()
    if word not in _YES | _NO:
        raise DataError(
            field, f"must hold 1, true or yes; or 0, false, no or nothing (got {shown(value)})"
        )
    return word in _YES
