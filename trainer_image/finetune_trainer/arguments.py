"""What a caller of `library.Study` gives: NumPy's values as Python's, and numbers that must be what they say."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from finetune_api.metrics import Goal
from finetune_trainer.errors import SpecError

_LARGEST = 2**63


def plain(value: Any) -> Any:
    """The same of Python's own types: NumPy's numbers and arrays become numbers and lists, at any depth."""
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def check_integers(field: str, value: Any) -> None:
    """Raises SpecError for an integer, at any depth, that 64 bits cannot hold: records and tables have no others."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            check_integers(f"{field}.{name}", one)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, one in enumerate(value):
            check_integers(f"{field}[{index}]", one)
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise SpecError(field, f"must be an integer of 64 bits, or text (got {value})")


def whole(field: str, value: Any, least: int) -> int:
    """A whole number of at least `least`. Raises SpecError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise SpecError(field, f"must be a whole number of at least {least} (got {value!r})")
    return number


def finite(field: str, value: Any, least: float = -math.inf) -> float:
    """A finite number of at least `least`. Raises SpecError."""
    given = plain(value)
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if number and math.isfinite(given) and given >= least:
        return float(given)
    beyond = "" if least == -math.inf else f" of at least {least:g}"
    raise SpecError(field, f"must be a finite number{beyond} (got {value!r})")


def one_goal(field: str, value: Any) -> Goal:
    """Whether more is better. Raises SpecError."""
    for goal in get_args(Goal):
        if value == goal:
            known: Goal = goal
            return known
    raise SpecError(field, f"must be one of {', '.join(get_args(Goal))} (got {value!r})")


def name(field: str, value: Any) -> str:
    """Text that is not empty. Raises SpecError."""
    if not isinstance(value, str) or not value.strip():
        raise SpecError(field, f"must be a name (got {value!r})")
    return value
