"""Checks the arguments of `library.Study`, and turns NumPy's values into Python's."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from finetune_api.metrics import Goal
from finetune_trainer.errors import SpecError

_LARGEST = 2**63


def plain(value: Any) -> Any:
    """`value` in Python's own types: NumPy's numbers and arrays become numbers and lists, at any depth."""
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def check_integers(field: str, value: Any) -> None:
    """Raises SpecError for an integer, at any depth, of more than 64 bits: records and tables cannot hold it."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            check_integers(f"{field}.{name}", one)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, one in enumerate(value):
            check_integers(f"{field}[{index}]", one)
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise SpecError(field, f"must be a 64-bit integer, or text (got {value})")


def check_points(value: Any) -> None:
    """Raises SpecError unless `value` is a list of configurations, each a mapping of names to values."""
    if not isinstance(value, list):
        raise SpecError("points", f"must be a list of configurations (got {value!r})")
    for index, point in enumerate(value):
        if not isinstance(point, Mapping):
            raise SpecError(
                f"points[{index}]", f"must be a mapping of names to values (got {point!r})"
            )
        for key, one in point.items():
            if not isinstance(key, str):
                raise SpecError(f"points[{index}]", f"must have names that are text (got {key!r})")
            if not isinstance(one, str | int | float):
                raise SpecError(
                    f"points[{index}].{key}",
                    f"must be a number, text, true or false (got {one!r})",
                )


def whole(field: str, value: Any, least: int) -> int:
    """`value` as an int, if it is a whole number of at least `least`. Raises SpecError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise SpecError(field, f"must be a whole number of at least {least} (got {value!r})")
    return number


def finite(field: str, value: Any, least: float = -math.inf) -> float:
    """`value` as a float, if it is finite and at least `least`. Raises SpecError."""
    given = plain(value)
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if number and math.isfinite(given) and given >= least:
        return float(given)
    beyond = "" if least == -math.inf else f" of at least {least:g}"
    raise SpecError(field, f"must be a finite number{beyond} (got {value!r})")


def one_goal(field: str, value: Any) -> Goal:
    """`value`, if it names a goal. Raises SpecError."""
    for goal in get_args(Goal):
        if value == goal:
            known: Goal = goal
            return known
    raise SpecError(field, f"must be one of {', '.join(get_args(Goal))} (got {value!r})")


def name(field: str, value: Any) -> str:
    """`value`, if it is text that is not empty. Raises SpecError."""
    if not isinstance(value, str) or not value.strip():
        raise SpecError(field, f"must be a name (got {value!r})")
    return value
