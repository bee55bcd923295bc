"""What a label cell means for each task, and which rows are usable."""

import ast
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finetune_api.metrics import Task
from finetune_api.study import Dataset
from finetune_trainer.data.cells import decoded, group_of, is_missing, is_yes, name_of, shown
from finetune_trainer.data.load import RawRows
from finetune_trainer.data.steps import Account
from finetune_trainer.errors import DataError

Label: TypeAlias = str | tuple[str, ...] | float
"""A class (SingleLabel), any number of labels (MultiLabel) or a number (Regression)."""

LABEL_FIELD = "spec.dataset.labelColumn"
_LARGEST = float(np.finfo(np.float32).max)
_BRACKETS = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
_QUOTED = re.compile(r"""\s*\[\s*['"]""")
_SIDE_BY_SIDE = re.compile(r"""['"]\s+['"]""")
"""Lists as NumPy prints them: without commas."""

_MARKS = frozenset({"0", "1", "True", "False"})


@dataclass
class LabelledRows:
    """Usable rows of one part: texts by column, and a label and a group for each row."""

    field: str
    part: str
    texts: tuple[list[str], ...]
    labels: list[Label]
    groups: list[str | None]
    """The values of `groupColumn`; None for a row in no group."""

    def __len__(self) -> int:
        return len(self.labels)

    def by_row(self) -> list[tuple[str, ...]]:
        """The texts of each row: to a model, rows with the same texts are the same."""
        return list(zip(*self.texts, strict=True))

    def keep(self, rows: Iterable[int]) -> "LabelledRows":
        """Only these rows, in this order."""
        chosen = list(rows)
        return replace(
            self,
            texts=tuple([column[row] for row in chosen] for column in self.texts),
            labels=[self.labels[row] for row in chosen],
            groups=[self.groups[row] for row in chosen],
        )

    def without(
        self, dropped: Collection[int], step: str, why: str, account: Account
    ) -> "LabelledRows":
        """The rows that `step` leaves; those it drops are counted in `account`, with `why` as the reason.

        Raises DataError if no row is left.
        """
        account.add(self.part, step, len(self), why, dropped=len(dropped))
        if not dropped:
            return self
        if len(dropped) == len(self):
            text = f"must have {self.part} rows left after {step} (got {len(self)} rows, all {why})"
            raise DataError(self.field, text)
        count = f"{len(dropped)} of {len(self)}"
        account.warn(self.field, f"dropped {count} {self.part} rows {why}")
        return self.keep(row for row in range(len(self)) if row not in dropped)


def usable_rows(
    raw: RawRows,
    task: Task,
    dataset: Dataset,
    account: Account,
    names: Sequence[str] | None = None,
) -> LabelledRows:
    """The rows of `raw` that have a text and a label; its texts are cleaned already.

    `names` are the labels' names where the rows have numbers. Raises DataError for a label that the task
    cannot have, and if no row is left.
    """
    labels = _read(raw, task, dataset)
    if names is not None:
        labels = [_named(label, names) for label in labels]
    no_label = {row for row, label in enumerate(labels) if label is None}
    no_text = {row for column in raw.texts for row, text in enumerate(column) if text is None}
    no_text -= no_label
    unusable = no_label | no_text
    if len(unusable) == len(raw):
        earlier = [
            text.removeprefix(f"{raw.field}: ") for text in account.warnings if raw.field in text
        ]
        raise DataError(
            raw.field,
            f"must have {raw.part} rows with a text and a label (got {len(raw)} readable rows, "
            f"{len(no_label)} without a label, {len(no_text)} without a text"
            f"{''.join(f'; {text}' for text in earlier)})",
        )
    for step, dropped in (("label", no_label), ("text", no_text)):
        account.add(raw.part, step, len(raw), f"without a {step}", dropped=len(dropped))
        if dropped:
            count = f"{len(dropped)} of {len(raw)}"
            account.warn(raw.field, f"dropped {count} {raw.part} rows without a {step}")
    groups = [group_of(value) for value in raw.groups]
    complete = LabelledRows(raw.field, raw.part, raw.texts, labels, groups)  # type: ignore[arg-type]  # no None is left
    return complete.keep(row for row in range(len(raw)) if row not in unusable)


def _read(raw: RawRows, task: Task, dataset: Dataset) -> list[Label | None]:
    if dataset.label_columns is not None:
        return [*_marked(raw.labels, dataset.label_columns)]
    read = _reader(task, dataset.label_separator)
    cells = [decoded(value, LABEL_FIELD) for value in raw.labels[0]]
    if task == "MultiLabel":
        cells = [_as_list(value) for value in cells]
        _refuse_marks(cells)
    return [read(value) for value in cells]


def _named(label: Label | None, names: Sequence[str]) -> Label | None:
    """`label` with names instead of numbers. Raises DataError for a number without a name."""
    if label is None:
        return None
    if isinstance(label, tuple):
        return tuple(sorted({_name_at(each, names) for each in label}))
    return _name_at(str(label), names)


def _name_at(number: str, names: Sequence[str]) -> str:
    if not number.isdecimal() or int(number) >= len(names):
        raise DataError(
            LABEL_FIELD,
            f"must hold numbers from 0 to {len(names) - 1}, the positions in spec.dataset.labelNames (got {shown(number)})",
        )
    return names[int(number)]


def _as_list(value: Any) -> Any:
    """The list that a cell contains as text (JSON, or as Python prints it); any other cell as it is.

    Raises DataError for what begins like a list of quoted labels but is not one.
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
    raise DataError(
        LABEL_FIELD,
        f"must hold lists of labels with task MultiLabel (got {shown(value)}: a list as text must be JSON,"
        ' as in ["a", "b"])',
    )


def _refuse_marks(cells: Sequence[Any]) -> None:
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


def _marked(columns: Sequence[list[Any]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """The label set of each row, where each label has a yes-or-no column of its own."""
    marks = [
        [is_yes(value, f"{LABEL_FIELD}s[{number}]") for value in column]
        for number, column in enumerate(columns)
    ]
    return [
        tuple(sorted(name for name, yes in zip(names, row, strict=True) if yes))
        for row in zip(*marks, strict=True)
    ]


def _reader(task: Task, separator: str | None) -> Callable[[Any], Label | None]:
    if task == "SingleLabel":
        return _class
    if task == "Regression":
        return _number
    return lambda value: _label_set(value, separator)


def _class(value: Any) -> str | None:
    if isinstance(value, list | dict):
        raise DataError(
            LABEL_FIELD, f"must hold one class per row with task SingleLabel (got {shown(value)})"
        )
    return name_of(value)


def _number(value: Any) -> float | None:
    if is_missing(value) or (isinstance(value, str) and value.strip().lower() in ("", "nan")):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if not math.isfinite(number):
        raise DataError(
            LABEL_FIELD, f"must hold finite numbers with task Regression (got {shown(value)})"
        )
    if abs(number) > _LARGEST:
        raise DataError(
            LABEL_FIELD,
            f"must hold numbers of at most {_LARGEST:.2g} with task Regression, which float32 can hold"
            f" (got {shown(value)})",
        )
    return number


def _label_set(value: Any, separator: str | None) -> tuple[str, ...] | None:
    if is_missing(value):
        return None
    if isinstance(value, str):
        if separator is None:
            raise DataError(
                "spec.dataset.labelSeparator",
                f"must be given where the label column holds text, not lists (got {shown(value)})",
            )
        value = value.split(separator)
        if not any(part.strip() for part in value):
            return None
    if not isinstance(value, list):
        raise DataError(
            LABEL_FIELD, f"must hold a list of labels with task MultiLabel (got {shown(value)})"
        )
    return tuple(sorted({name for name in map(name_of, value) if name is not None}))


def label_names(
    labels: Sequence[Label], task: Task, dataset: Dataset, account: Account
) -> tuple[str, ...]:
    """The outputs of the model: `labelColumns` as given; the classes in order (whole numbers by value,
    others as text); for Regression the column's name.

    `labels` are those of the training rows. Raises DataError if there is nothing to learn from them.
    """
    field = LABEL_FIELD if dataset.label_columns is None else f"{LABEL_FIELD}s"
    if len(set(labels)) < 2:
        raise DataError(
            field,
            f"must have at least two values in the training rows (got only {shown(labels[0])})",
        )
    found = {name for label in labels for name in names_of(label)}
    if dataset.label_columns is not None:
        never = [name for name in dataset.label_columns if name not in found]
        if never:
            account.warn(field, f"no training row has {', '.join(never)}")
        return tuple(dataset.label_columns)
    return (
        (str(dataset.label_column),) if task == "Regression" else tuple(sorted(found, key=_order))
    )


def names_of(label: Label) -> tuple[str, ...]:
    """The classes in one label."""
    if isinstance(label, float):
        return ()
    return (label,) if isinstance(label, str) else label


def _order(name: str) -> tuple[bool, int, str]:
    whole = name.removeprefix("-").isdecimal()
    return (not whole, int(name) if whole else 0, name)


def known_rows(rows: LabelledRows, names: Sequence[str], account: Account) -> LabelledRows:
    """The rows whose classes all occur in training; the others are counted in `account`.

    Raises DataError if no row is left.
    """
    known = set(names)
    kept = [row for row, label in enumerate(rows.labels) if known.issuperset(names_of(label))]
    lost = len(rows) - len(kept)
    account.add(
        rows.part, "knownLabel", len(rows), "with labels that no training row has", dropped=lost
    )
    if not lost:
        return rows
    unseen = sorted({name for label in rows.labels for name in names_of(label)} - known)
    listed = ", ".join(unseen[:3]) + (", …" if len(unseen) > 3 else "")
    text = f"{lost} of {len(rows)} {rows.part} rows have labels that no training row has"
    if not kept:
        raise DataError(rows.field, f"{text} ({listed})")
    account.warn(rows.field, f"{text} and are dropped ({listed})")
    return rows.keep(kept)


def encode(labels: Sequence[Label], task: Task, names: Sequence[str]) -> NDArray[Any]:
    """Labels as an array: int64 (rows,), bool (rows, names) or float32 (rows,)."""
    if task == "Regression":
        return np.asarray(labels, dtype=np.float32)
    index = {name: position for position, name in enumerate(names)}
    if task == "SingleLabel":
        return np.asarray([index[str(label)] for label in labels], dtype=np.int64)
    matrix = np.zeros((len(labels), len(names)), dtype=np.bool_)
    for row, label in enumerate(labels):
        matrix[row, [index[name] for name in names_of(label)]] = True
    return matrix
