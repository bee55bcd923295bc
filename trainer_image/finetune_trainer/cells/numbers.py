"""The cells of a column of numbers, and how those that are not should be written."""

import math
import re
from typing import Any

import numpy as np

from finetune_trainer.cells.places import WrongCell
from finetune_trainer.cells.words import LABEL_FIELD, is_missing, shown

_LARGEST = float(np.finfo(np.float32).max)

_NOTHING = frozenset(
    (
        *(
            "-",
            "--",
            "---",
            "\u2013",
            "\u2014",
            ".",
            "?",
            "n/a",
            "na",
            "#n/a",
            "n.a.",
            "nil",
            "none",
            "null",
        ),
        *("<na>", "missing", "unknown", "undefined"),
    )
)
"""What people and programs write where there is no number, in lower case."""

_DRESS = re.compile(r"[$€£¥%]")
_BLANK = re.compile(r"(?<=\d)[\s'_](?=\d{3}(?!\d))")
"""Between groups of three digits."""

_GROUPS = re.compile(r"[-+]?\d{1,3}([.,])\d{3}(?:\1\d{3})+")
_GROUPS_AND_DECIMALS = re.compile(r"[-+]?\d{1,3}([.,])\d{3}(?:\1\d{3})*(?!\1)[.,]\d+")
_AMBIGUOUS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE | re.ASCII)
_HEXADECIMAL = re.compile(r"[-+]?0x[0-9a-f]+", re.IGNORECASE)
_TRUTH = {"true": "1", "false": "0"}


def number_of(value: Any) -> float | None:
    """The number in a cell of targets; None if the cell is empty or says nan.

    Raises WrongCell for anything but a finite number that float32 can hold.
    """
    if is_missing(value) or (isinstance(value, str) and value.strip().lower() in ("", "nan")):
        return None
    try:
        # Of a text, `float` would also take 1_2, which is Python's own way to write 12, and other scripts' digits.
        written = not isinstance(value, str) or _NUMBER.fullmatch(value.strip())
        number = float(value) if written else math.inf
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if not math.isfinite(number):
        must = "must hold finite numbers with task Regression"
        raise WrongCell(LABEL_FIELD, must, shown(value), _remedy(value))
    if abs(number) > _LARGEST:
        must = f"must hold numbers of at most {_LARGEST:.2g} with task Regression, which float32 can hold"
        raise WrongCell(LABEL_FIELD, must, shown(value))
    return number


def _remedy(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    if value.strip().lower() in _NOTHING:
        return "only an empty cell or nan counts as missing"
    right = plain(value)
    return f"write {shown(value)} as {right}" if right else ""


def plain(text: str) -> str | None:
    """The number that is written for people (`1.234,5`, `45%`, `$5`) or in hexadecimal, as `float` reads it.

    Two numbers if it could be either. None if it is not a number.
    """
    text = text.strip()
    if text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    if _HEXADECIMAL.fullmatch(text):
        return str(int(text, 16))
    bare = _BLANK.sub("", _DRESS.sub("", text).strip()).replace("\u2212", "-")
    grouped = _GROUPS.fullmatch(bare) or _GROUPS_AND_DECIMALS.fullmatch(bare)
    if grouped:
        bare = bare.replace(grouped[1], "")
    elif _AMBIGUOUS.fullmatch(bare):
        return f"{bare.replace(',', '')} or {bare.replace(',', '.')}"
    if _DECIMAL_COMMA.fullmatch(bare):
        bare = bare.replace(",", ".")
    return bare if _NUMBER.fullmatch(bare) else None
