"""The slices of a study's rows (`spec.validation.slices`): which value of each division a row has."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.expressions import Expression, ExpressionError
from finetune_api.objective import Slice
from finetune_api.study import StudySpec
from finetune_trainer.cells.words import in_composed_form
from finetune_trainer.data.labels import LabelledRows
from finetune_trainer.data.load import PARTS
from finetune_trainer.errors import DataError

FIELD = "spec.validation.slices"
MOST_VALUES = 32
FEW_ROWS = 30
"""Of fewer rows than these, metrics say little."""

MISSING = "(none)"
"""The value of rows that have none."""


@dataclass(frozen=True)
class Slices:
    """One division of rows."""

    division: str
    values: tuple[str, ...]
    of_row: NDArray[np.int64]
    """The position of each row's value in `values`: (rows,)."""

    def at(self, rows: NDArray[np.int64]) -> "Slices":
        """The same division of only these rows, in this order."""
        return replace(self, of_row=self.of_row[rows])

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Each value that some row has, with the positions of the rows that have it."""
        for at in np.unique(self.of_row):
            yield self.values[at], np.flatnonzero(self.of_row == at)


def columns_of_slices(spec: StudySpec) -> dict[str, str]:
    """The columns that slices need, and the fields that name them. Raises DataError for what is not valid CEL."""
    found: dict[str, str] = {}
    for at, one in enumerate(spec.validation.slices or ()):
        if one.column is not None:
            found.setdefault(one.column, f"{FIELD}[{at}].column")
        else:
            expression = _expression(at, one)
            for name in expression.names:
                found.setdefault(name, expression.field)
    return found


def slices_of(spec: StudySpec, parts: Mapping[str, LabelledRows]) -> tuple[Slices, ...]:
    """The divisions of the rows of all parts in turn. Raises DataError naming the field of one that cannot be made."""
    rows = [parts[name] for name in PARTS]
    return divided(spec.validation.slices or (), rows)


def divided(slices: Sequence[Slice], parts: Sequence[LabelledRows]) -> tuple[Slices, ...]:
    """The divisions of the rows of `parts` in turn, in whose `sides` is all that `slices` need. Raises DataError."""
    return tuple(_divided(at, one, parts) for at, one in enumerate(slices))


def few_rows(slices: Sequence[Slices], rows: NDArray[np.int64]) -> Iterator[str]:
    """Warnings about slices of which `rows`, those that trials are measured on, have few or none."""
    for at, one in enumerate(slices):
        counts = Counter(dict.fromkeys(one.values, 0))
        counts.update({value: len(chosen) for value, chosen in one.at(rows)})
        few = [f"{value} {count}" for value, count in counts.items() if count < FEW_ROWS]
        if few:
            shown = ", ".join(few[:5]) + (", …" if len(few) > 5 else "")
            yield (
                f"{FIELD}[{at}]: {len(few)} of {len(counts)} slices of {one.division} have fewer than {FEW_ROWS}"
                f" validation rows ({shown}), so that their metrics are uncertain"
            )


def _divided(at: int, one: Slice, parts: Sequence[LabelledRows]) -> Slices:
    if one.column is not None:
        cells: list[str] = [_named(cell) for rows in parts for cell in rows.sides[one.column]]
    else:
        holds = _truth(_expression(at, one))
        cells = list(chain.from_iterable(map(holds, parts)))
    values = tuple(sorted(set(cells)))
    if len(values) > MOST_VALUES:
        raise DataError(
            f"{FIELD}[{at}].column",
            f"must have at most {MOST_VALUES} values (got {len(values)} in {one.column}, such as"
            f" {', '.join(values[:3])}); an expression divides rows by ranges or groups of values",
        )
    numbers = {value: number for number, value in enumerate(values)}
    return Slices(one.division, values, np.array([numbers[cell] for cell in cells], np.int64))


def _expression(at: int, one: Slice) -> Expression:
    try:
        return Expression(f"{FIELD}[{at}].expression", one.expression or "")
    except ExpressionError as error:
        raise DataError(error.field, error.message) from error


def _truth(expression: Expression) -> Callable[[LabelledRows], Iterator[str]]:
    def of(rows: LabelledRows) -> Iterator[str]:
        columns = [rows.sides[name] for name in expression.names]
        for row in range(len(rows)):
            given = {
                name: column[row] for name, column in zip(expression.names, columns, strict=True)
            }
            try:
                yield "true" if expression.holds(given) else "false"
            except ExpressionError as error:
                raise DataError(error.field, error.message) from error

    return of


def _named(cell: Any) -> str:
    """What a slice is called whose rows have this value."""
    if cell is None or cell != cell:  # NaN
        return MISSING
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return in_composed_form(str(cell).strip()) or MISSING
