"""What a label cell means for each task, and which rows are usable."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as default
from functools import partial
from typing import Any

from finetune_api.dataset import Dataset
from finetune_api.tasks import Task
from finetune_trainer.cells.places import WrongCell, read_each
from finetune_trainer.cells.words import (
    LABEL_FIELD,
    decoded,
    group_of,
    is_yes,
    shown,
)
from finetune_trainer.data.load import RawRows
from finetune_trainer.data.lost_labels import warn_of_separator, warn_of_words
from finetune_trainer.data.steps import Account
from finetune_trainer.errors import DataError
from finetune_trainer.tasks import TrainingTask, task_of
from finetune_trainer.tasks.base import Label, Stratum


@dataclass
class LabelledRows:
    """Usable rows of one part: texts by column, and a label and a group for each row."""

    field: str
    part: str
    texts: tuple[list[str], ...]
    labels: list[Label]
    groups: list[str | None]
    """The values of `groupColumn`; None for a row in no group."""

    sides: Mapping[str, list[Any]] = default(default_factory=dict)
    """The columns that slices need, by name."""

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
            sides={name: [column[row] for row in chosen] for name, column in self.sides.items()},
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
        account.warn(self.field, f"left out {count} {self.part} rows {why}")
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
    cells, labels = _read(raw, task_of(task), dataset, account)
    if names is not None:
        labels = read_each(labels, lambda label: _named(label, names), raw.places)
    no_label = [row for row, label in enumerate(labels) if label is None]
    told: set[int] = set()
    if dataset.label_column is not None and task_of(task).has_classes:  # a number may be nan
        told = warn_of_words(raw, cells, dataset.label_separator, {*no_label}, account)
    empty = {row for column in raw.texts for row, text in enumerate(column) if text is None}
    no_text = sorted(empty - {*no_label})
    unusable = {*no_label, *no_text}
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
        tell_dropped(raw, step, f"without a {step}", dropped, account, told)
    groups = read_each(raw.groups, group_of, raw.places)
    complete = LabelledRows(raw.field, raw.part, raw.texts, labels, groups, raw.sides)  # type: ignore[arg-type]  # no None is left
    return complete.keep(row for row in range(len(raw)) if row not in unusable)


def tell_dropped(
    raw: RawRows,
    step: str,
    why: str,
    dropped: Sequence[int],
    account: Account,
    told: Collection[int] = (),
) -> None:
    """Count the rows of `raw` that have nothing for `step`, and warn of those that nobody has been `told` of."""
    account.add(raw.part, step, len(raw), why, dropped=len(dropped))
    untold = [row for row in dropped if row not in told]
    if untold:
        share = f"{len(untold)} of {len(raw)} {raw.part} rows ({len(untold) / len(raw):.1%})"
        where = raw.places.of(untold)
        account.warn(raw.field, f"{share} have no {step} and are left out ({where})")


def _read(
    raw: RawRows, task: TrainingTask, dataset: Dataset, account: Account
) -> tuple[list[Any], list[Label | None]]:
    """The cells of the label column (none of label columns), as lists where they are such, and the label of each row."""
    if dataset.label_columns is not None:
        return [], [*_marked(raw, dataset.label_columns)]
    places, separator = raw.places, dataset.label_separator
    cells = read_each(raw.labels[0], lambda value: decoded(value, LABEL_FIELD), places)
    cells = read_each(cells, task.unpacked, places)
    task.check_cells(cells)
    if separator is not None and raw.part == "train":
        warn_of_separator(cells, separator, account)
    return cells, read_each(cells, partial(task.label_of, separator=separator), places)


def _named(label: Label | None, names: Sequence[str]) -> Label | None:
    """`label` with names instead of numbers. Raises WrongCell for a number without a name."""
    if label is None:
        return None
    if isinstance(label, tuple):
        return tuple(sorted({name_at(each, names) for each in label}))
    return name_at(str(label), names)


def name_at(number: str, names: Sequence[str], field: str = LABEL_FIELD) -> str:
    """The name of the label with this number. Raises WrongCell, naming `field`, if there is none."""
    if not number.isdecimal() or int(number) >= len(names):
        must = f"must hold numbers from 0 to {len(names) - 1}, the positions in spec.dataset.labelNames"
        raise WrongCell(field, must, shown(number))
    return names[int(number)]


def _marked(raw: RawRows, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The label set of each row, where each label has a yes-or-no column of its own."""
    marks = [
        read_each(column, partial(is_yes, field=f"{LABEL_FIELD}s[{number}]"), raw.places)
        for number, column in enumerate(raw.labels)
    ]
    return [
        tuple(sorted(name for name, yes in zip(names, row, strict=True) if yes))
        for row in zip(*marks, strict=True)
    ]


def label_names(
    labels: Sequence[Label], task: Task, dataset: Dataset, account: Account
) -> tuple[str, ...]:
    """The outputs of the model: `labelColumns` as given; the classes in order (whole numbers by value,
    others as text); for Regression the column's name.

    `labels` are those of the training rows. Raises DataError if there is nothing to learn from them.
    """
    field = label_field(dataset)
    if len(set(labels)) < 2:
        raise DataError(
            field,
            f"must have at least two values in the training rows (got only {shown(labels[0])})",
        )
    found = {name for label in labels for name in names_of(task_of(task).stratum(label))}
    if dataset.label_columns is not None:
        never = [name for name in dataset.label_columns if name not in found]
        if never:
            account.warn(field, f"no training row has {', '.join(never)}")
        return tuple(dataset.label_columns)
    return (
        tuple(sorted(found, key=_order))
        if task_of(task).has_classes
        else (str(dataset.label_column),)
    )


def label_field(dataset: Dataset) -> str:
    """The field of the study that names the column, or columns, of labels."""
    names = {
        "labelColumn": dataset.label_column,
        "labelColumns": dataset.label_columns,
        "tagsColumn": dataset.tags_column,
        "spansColumn": dataset.spans_column,
    }
    return next(f"spec.dataset.{name}" for name, given in names.items() if given is not None)


def names_of(label: Stratum) -> tuple[str, ...]:
    """The classes in one label, or what it is divided by."""
    if isinstance(label, float):
        return ()
    return (label,) if isinstance(label, str) else label


def _order(name: str) -> tuple[bool, int, str]:
    whole = name.removeprefix("-").isdecimal()
    return (not whole, int(name) if whole else 0, name)


def known_rows(
    rows: LabelledRows, task: Task, outputs: Sequence[str], account: Account
) -> LabelledRows:
    """The rows whose classes all occur in training; the others are counted in `account`.

    `outputs` are the names of the model's outputs. Raises DataError if no row is left.
    """
    names = task_of(task).kinds(outputs)
    known, strata = set(names), [task_of(task).stratum(label) for label in rows.labels]
    kept = [row for row, label in enumerate(strata) if known.issuperset(names_of(label))]
    lost = len(rows) - len(kept)
    account.add(
        rows.part, "knownLabel", len(rows), "with labels that no training row has", dropped=lost
    )
    if not lost:
        return rows
    unseen = sorted({name for label in strata for name in names_of(label)} - known)
    text = f"{lost} of {len(rows)} {rows.part} rows have labels that no training row has"
    which = f"({listed(unseen)}; the training rows have {listed(names)})"
    if not kept:
        raise DataError(rows.field, f"{text} {which}")
    account.warn(rows.field, f"{text} and are left out {which}")
    return rows.keep(kept)


def listed(names: Sequence[str]) -> str:
    """The first three names."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
