"""Where rows are in their file, as messages say it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from finetune_trainer.errors import DataError

Unit = Literal["line", "row"]
"""How the rows of a file are found again: by a line's number, or (Parquet, a JSON array, the hub) by a row's."""

_SHOWN = 5
_VALUES = 3

Read = TypeVar("Read")


def numbered(numbers: Sequence[int], unit: Unit) -> str:
    """`line 7`, or `lines 2, 5, 8, 11, 14, …`: at most five numbers."""
    first = ", ".join(map(str, numbers[:_SHOWN])) + (", …" if len(numbers) > _SHOWN else "")
    return f"{unit} {first}" if len(numbers) == 1 else f"{unit}s {first}"


@dataclass(frozen=True)
class Places:
    """The numbers, from 1, that the rows of one part have in their source."""

    numbers: Sequence[int] | None = None
    """By row; None if the first row has number 1, and each the next."""

    unit: Unit = "row"
    file: str = ""
    """The file's name, without its folder."""

    def of(self, rows: Iterable[int]) -> str:
        """Where these rows (counted from 0, ascending) are: `lines 2, 5, 8, 11, 14, …`."""
        return numbered([self._number(row) for row in rows], self.unit)

    def exactly(self, row: int) -> str:
        """Where one row is, with its file: `line 2 of train.csv`."""
        return f"{self.of([row])}{f' of {self.file}' if self.file else ''}"

    def _number(self, row: int) -> int:
        return row + 1 if self.numbers is None else self.numbers[row]


IN_ORDER = Places()


class WrongCell(DataError):
    """A cell contains what cells of its column must not: `field` `must` (got `got`); `remedy`."""

    def __init__(self, field: str, must: str, got: str, remedy: str = "") -> None:
        super().__init__(field, f"{must} (got {got}){f'; {remedy}' if remedy else ''}")
        self.must = must
        self.got = got
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str]]:
        return DataError, (self.field, self.message)


def read_each(
    cells: Iterable[Any], read: Callable[[Any], Read], places: Places = IN_ORDER
) -> list[Read]:
    """What `read` makes of each cell of a column.

    Raises one DataError for all the cells for which `read` raises WrongCell and that break the same rule as the
    first of them: with their values, where each value is first, and how many more rows have it.
    """
    found: list[Read] = []
    wrong: list[tuple[int, WrongCell]] = []
    for row, cell in enumerate(cells):
        try:
            found.append(read(cell))
        except WrongCell as error:
            wrong.append((row, error.with_traceback(None)))
    if wrong:
        raise _together(wrong, places)
    return found


def _together(wrong: Sequence[tuple[int, WrongCell]], places: Places) -> DataError:
    """One error for all cells that break the same rule as the first one, values of most rows first."""
    rule = wrong[0][1]
    first: dict[str, tuple[int, WrongCell]] = {}
    counts: Counter[str] = Counter()
    for row, error in wrong:
        if (error.field, error.must) == (rule.field, rule.must):
            counts[error.got] += 1
            first.setdefault(error.got, (row, error))
    told: list[str] = []
    remedies: dict[str, None] = {}
    for got, count in counts.most_common(_VALUES):
        row, error = first[got]
        others = f" and in {count - 1} other row{'s' if count > 2 else ''}" if count > 1 else ""
        where = places.of([row]) if told else places.exactly(row)
        told.append(f"{got} on {where}{others}")
        remedies[error.remedy] = None
    left = len(counts) - len(told)
    if left:
        told.append(f"{left} other value{'s' if left > 1 else ''}")
    remedy = "".join(f"; {text}" for text in remedies if text)
    return DataError(rule.field, f"{rule.must} (got {'; '.join(told)}){remedy}")
