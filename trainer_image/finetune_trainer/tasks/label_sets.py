"""Cells that hold several labels: lists, lists as text, and text with a separator."""

import ast
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from finetune_trainer.cells.places import WrongCell
from finetune_trainer.cells.words import LABEL_FIELD, is_missing, name_of, shown
from finetune_trainer.errors import DataError

_BRACKETS = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
_QUOTED = re.compile(r"""\s*\[\s*['"]""")
_SIDE_BY_SIDE = re.compile(r"""['"]\s+['"]""")
"""Lists as NumPy prints them: without commas."""

_MARKS = frozenset({"0", "1", "True", "False"})


def unpacked(value: Any) -> Any:
    """What `list_in` finds in a cell of a MultiLabel task."""
    return list_in(value, LABEL_FIELD, "labels with task MultiLabel")


def list_in(value: Any, field: str, what: str) -> Any:
    """The list that a cell contains as text (JSON, or as Python prints it); any other cell as it is.

    Raises WrongCell, naming `field`, for what begins like a list of quoted texts but is not one; `what` it is a list of.
    """
    if not isinstance(value, str) or not _BRACKETS.fullmatch(value):
        return value
    found: Any = None
    if not _SIDE_BY_SIDE.search(value):  # Python would join two labels into one
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                found = read(value.strip())
                break
    if isinstance(found, list) and not any(isinstance(one, list | dict | tuple) for one in found):
        return found
    if not _QUOTED.match(value):
        return value  # labels may contain brackets
    must = f"must hold lists of {what}"
    remedy = 'a list as text must be JSON, as in ["a", "b"]'
    raise WrongCell(field, must, shown(value), remedy)


def refuse_marks(cells: Sequence[Any]) -> None:
    """Raises DataError if each row has yes or no for each label, which would give labels named 0 and 1."""
    lists = [value for value in cells if isinstance(value, list)]
    lengths = {len(value) for value in lists}
    if lengths == {0} or len(lengths) != 1 or lengths == {1}:
        return
    if all(name_of(one) in _MARKS for value in lists for one in value):
        raise DataError(
            LABEL_FIELD,
            f"must hold the labels of each row (got {shown(lists[0])}, yes or no for each of"
            f" {len(lists[0])} labels): give each label a column and name them in labelColumns",
        )


def read(value: Any, separator: str | None) -> tuple[str, ...] | None:
    """The labels in a cell, each once and in order; None if it is empty. Raises WrongCell."""
    if is_missing(value):
        return None
    if isinstance(value, str):
        if separator is None:
            must = "must be given where the label column holds text, not lists"
            raise WrongCell("spec.dataset.labelSeparator", must, shown(value))
        value = value.split(separator)
        if not any(part.strip() for part in value):
            return None
    if not isinstance(value, list):
        raise WrongCell(
            LABEL_FIELD, "must hold a list of labels with task MultiLabel", shown(value)
        )
    return tuple(sorted({name for name in map(name_of, value) if name is not None}))
