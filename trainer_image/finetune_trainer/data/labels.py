"""What a label cell means for each task, and which rows can be used."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finetune_api.metrics import Task
from finetune_trainer.data.formats import is_unicode
from finetune_trainer.data.load import RawRows
from finetune_trainer.errors import DataError

Label: TypeAlias = str | tuple[str, ...] | float
"""A class (SingleLabel), any number of labels (MultiLabel) or a number (Regression)."""

LABEL_FIELD = "spec.dataset.labelColumn"


@dataclass
class LabelledRows:
    """Usable rows of one part: texts by column, and a label for each row."""

    field: str
    part: str
    texts: tuple[list[str], ...]
    labels: list[Label]

    def __len__(self) -> int:
        return len(self.labels)

    def keep(self, rows: Iterable[int]) -> "LabelledRows":
        """These rows alone, in this order."""
        chosen = list(rows)
        texts = tuple([column[row] for row in chosen] for column in self.texts)
        return LabelledRows(self.field, self.part, texts, [self.labels[row] for row in chosen])


def usable_rows(
    raw: RawRows, task: Task, separator: str | None, warnings: list[str]
) -> LabelledRows:
    """The rows of `raw` that have a text and a label; the others are counted in `warnings`.

    Raises DataError for a label that the task cannot have, and if no row is left.
    """
    read = _reader(task, separator)
    labels = [read(value) for value in raw.labels]
    texts = tuple([_text(value, raw) for value in column] for column in raw.texts)
    no_label = [row for row, label in enumerate(labels) if label is None]
    no_text = {row for column in texts for row, text in enumerate(column) if text is None}
    no_text -= set(no_label)
    dropped = no_text.union(no_label)
    if len(dropped) == len(raw):
        earlier = [text.removeprefix(f"{raw.field}: ") for text in warnings if raw.field in text]
        raise DataError(
            raw.field,
            f"must have {raw.part} rows with a text and a label (got {len(raw)} readable rows, "
            f"{len(no_label)} without a label, {len(no_text)} without a text"
            f"{''.join(f'; {text}' for text in earlier)})",
        )
    for count, what in ((len(no_label), "without a label"), (len(no_text), "without a text")):
        if count:
            warnings.append(f"{raw.field}: {count} of {len(raw)} {raw.part} rows {what} dropped")
    complete = LabelledRows(raw.field, raw.part, texts, labels)  # type: ignore[arg-type]  # None goes now
    return complete.keep(row for row in range(len(raw)) if row not in dropped)


def _text(value: Any, raw: RawRows) -> str | None:
    if isinstance(value, list | dict | bytes):
        raise DataError(
            "spec.dataset.textColumns",
            f"must name columns of text (got {_shown(value)} in the {raw.part} rows)",
        )
    if _is_missing(value):
        return None
    text = str(value)
    return text if text.strip() and is_unicode(text) else None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _reader(task: Task, separator: str | None) -> Callable[[Any], Label | None]:
    if task == "SingleLabel":
        return _class
    if task == "Regression":
        return _number
    return lambda value: _label_set(value, separator)


def _name(value: Any) -> str | None:
    """A class as text; None where it is missing. Whole numbers look the same as integers and floats."""
    if _is_missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return None if text == "" or text.lower() == "nan" or not is_unicode(text) else text


def _class(value: Any) -> str | None:
    if isinstance(value, list | dict):
        raise DataError(
            LABEL_FIELD, f"must hold one class a row with task SingleLabel (got {_shown(value)})"
        )
    return _name(value)


def _number(value: Any) -> float | None:
    if _is_missing(value) or (isinstance(value, str) and value.strip().lower() in ("", "nan")):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise DataError(
            LABEL_FIELD, f"must hold finite numbers with task Regression (got {_shown(value)})"
        )
    return number


def _label_set(value: Any, separator: str | None) -> tuple[str, ...] | None:
    if _is_missing(value):
        return None
    if isinstance(value, str):
        if separator is None:
            raise DataError(
                "spec.dataset.labelSeparator",
                f"must be given where the label column holds text, not lists (got {_shown(value)})",
            )
        value = value.split(separator)
        if not any(part.strip() for part in value):
            return None
    if not isinstance(value, list):
        raise DataError(
            LABEL_FIELD, f"must hold a list of labels with task MultiLabel (got {_shown(value)})"
        )
    return tuple(sorted({name for name in map(_name, value) if name is not None}))


def label_names(labels: Sequence[Label], task: Task, column: str) -> tuple[str, ...]:
    """The classes in order (whole numbers by value, others as text); the column's name for Regression.

    `labels` are those of the training rows. Raises DataError if they give nothing to learn.
    """
    if task == "Regression":
        names = [column]
    else:
        names = sorted({name for label in labels for name in names_of(label)}, key=_order)
    if len(set(labels)) < 2:
        raise DataError(
            LABEL_FIELD,
            f"must have at least two values in the training rows (got only {_shown(labels[0])})",
        )
    return tuple(names)


def names_of(label: Label) -> tuple[str, ...]:
    """The classes in one label."""
    if isinstance(label, float):
        return ()
    return (label,) if isinstance(label, str) else label


def _order(name: str) -> tuple[bool, int, str]:
    whole = name.removeprefix("-").isdecimal()
    return (not whole, int(name) if whole else 0, name)


def known_rows(rows: LabelledRows, names: Sequence[str], warnings: list[str]) -> LabelledRows:
    """The rows whose classes all occur in training; the others are counted in `warnings`.

    Raises DataError if no row is left.
    """
    known = set(names)
    kept = [row for row, label in enumerate(rows.labels) if known.issuperset(names_of(label))]
    if len(kept) == len(rows):
        return rows
    unseen = sorted({name for label in rows.labels for name in names_of(label)} - known)
    shown = ", ".join(unseen[:3]) + (", …" if len(unseen) > 3 else "")
    text = (
        f"{len(rows) - len(kept)} of {len(rows)} {rows.part} rows have labels no training row has"
    )
    if not kept:
        raise DataError(rows.field, f"{text} ({shown})")
    warnings.append(f"{rows.field}: {text} and are dropped ({shown})")
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
