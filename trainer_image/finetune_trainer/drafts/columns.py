"""What the columns of a table hold, from their cells alone."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any, Literal, TypeAlias

from finetune_trainer.cells.numbers import number_of
from finetune_trainer.cells.places import WrongCell
from finetune_trainer.cells.words import LABEL_FIELD, is_missing, is_yes, name_of
from finetune_trainer.data.tagged import words_in
from finetune_trainer.tasks.label_sets import list_in
from finetune_trainer.tasks.tagging import OUTSIDE, is_marked

Form: TypeAlias = Literal["Nothing", "Text", "Numbers", "Lists", "Spans", "Other"]

_SAMPLE = 1000
"""Cells that tell how a column is written; what is counted is counted in all of them."""

_ID_NAME = re.compile(
    r"(^|[\W_])(id|ids|uuid|guid|key|index|idx|hash|url|uri|link|path|file|filename|date|time|timestamp"
    r"|created|updated|unnamed: \d+)$|[a-z](Id|ID|Key|Url|URL|Date|Time)$",
    re.IGNORECASE,
)
_ID_CELL = re.compile(
    r"\s*(https?://\S+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{16,}|\S+@\S+\.\w+"
    r"|\d{4}-\d\d-\d\d([T ][\d:.,+Z-]*)?|\d{1,2}[./]\d{1,2}[./]\d{2,4})\s*",
    re.IGNORECASE,
)
"""Addresses, numbers of objects, and dates."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column by what its cells are; `cells` are read, lists in texts included, and None where there is nothing."""

    name: str
    form: Form
    cells: Sequence[Any] = field(repr=False)

    @cached_property
    def filled(self) -> int:
        """Rows that have a value."""
        return sum(cell is not None for cell in self.cells)

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value is there, by its name."""
        return Counter(_key(cell) for cell in self.cells if cell is not None)

    @property
    def distinct(self) -> int:
        """Different values."""
        return len(self.counts)

    @cached_property
    def words(self) -> float:
        """Mean number of words of a text, where scripts without blanks have one for each letter; 0 for others."""
        texts = [cell for cell in self._sample if isinstance(cell, str)]
        return fmean(sum(1 for _ in words_in(text)) for text in texts) if texts else 0.0

    @cached_property
    def is_identifier(self) -> bool:
        """Whether its values name rows or things, or say where or when they are, and not what they are like."""
        if self.form == "Numbers" and self.distinct == self.filled > 2 and self.is_whole:
            numbers = sorted(int(cell) for cell in self.cells if cell is not None)
            if numbers[-1] - numbers[0] < 2 * len(numbers):
                return True
        if self.form in ("Text", "Numbers") and _ID_NAME.search(self.name.strip()):
            return True
        texts = [cell for cell in self._sample if isinstance(cell, str)]
        matching = sum(_ID_CELL.fullmatch(text) is not None for text in texts)
        return bool(texts) and matching > 0.9 * len(texts)

    @cached_property
    def is_whole(self) -> bool:
        """Whether it has whole numbers only."""
        return self.form == "Numbers" and all(
            cell.is_integer() for cell in self.cells if cell is not None
        )

    @cached_property
    def is_yes_or_no(self) -> bool:
        """Whether each cell says yes or no, and both are said."""
        try:
            said = {is_yes(cell, LABEL_FIELD) for cell in self.cells if cell is not None}
        except WrongCell:
            return False
        return len(said) == 2 and self.distinct == 2

    @cached_property
    def is_tags(self) -> bool:
        """Whether it has a list of tags for each row: O and such as B-PER, in a list or between blanks."""
        tags = [tag for cell in self._sample for tag in parts_of(cell)]
        marked = sum(tag != OUTSIDE and is_marked([tag]) for tag in tags)
        return marked > 0 and all(tag == OUTSIDE or is_marked([tag]) for tag in tags)

    @property
    def _sample(self) -> Iterator[Any]:
        found = 0
        for cell in self.cells:
            if cell is not None:
                yield cell
                found += 1
                if found == _SAMPLE:
                    return


def parts_of(cell: Any) -> list[str]:
    """The words of a list, or those between the blanks of a text."""
    if isinstance(cell, list):
        return [str(part) for part in cell]
    return cell.split() if isinstance(cell, str) else []


def column_of(name: str, cells: Sequence[Any]) -> Column:
    """The column with these cells, as a reader gives them."""
    known = [None if _is_nothing(cell) else cell for cell in cells]
    filled = [cell for cell in known if cell is not None]
    if not filled:
        return Column(name, "Nothing", known)
    for form, read in (("Spans", _spans), ("Numbers", _number), ("Lists", _list)):
        with suppress(WrongCell, TypeError):
            found = [None if cell is None else read(cell) for cell in known]
            if form != "Spans" or any(found):
                return Column(name, form, found)  # type: ignore[arg-type]  # mypy takes it for any text
    if all(isinstance(cell, str | bool | int | float) for cell in filled):
        return Column(name, "Text", [None if cell is None else str(cell) for cell in known])
    return Column(name, "Other", known)


def _number(cell: Any) -> float | None:
    """The number in a cell. Raises WrongCell if it is another thing, such as true."""
    if isinstance(cell, bool):
        raise WrongCell(LABEL_FIELD, "must hold numbers", "")
    return number_of(cell)


def _is_nothing(cell: Any) -> bool:
    return is_missing(cell) or (isinstance(cell, str) and not cell.strip())


def _spans(cell: Any) -> list[Any]:
    """The spans in a cell. Raises WrongCell if there are none."""
    if isinstance(cell, str):
        with suppress(ValueError, RecursionError):
            cell = json.loads(cell)
    wanted = {"start", "end", "label"}
    if not isinstance(cell, list) or any(
        not isinstance(one, dict) or not wanted <= one.keys() for one in cell
    ):
        raise WrongCell(LABEL_FIELD, "must hold spans", "")
    return cell


def _list(cell: Any) -> list[Any]:
    """The list in a cell. Raises WrongCell if there is none."""
    found = list_in(cell, LABEL_FIELD, "labels")
    if not isinstance(found, list) or any(isinstance(one, list | dict | bytes) for one in found):
        raise WrongCell(LABEL_FIELD, "must hold lists", "")
    return found


def _key(cell: Any) -> str:
    if isinstance(cell, list):
        return json.dumps(cell, ensure_ascii=False, sort_keys=True, default=str)
    return name_of(cell) or str(cell)
