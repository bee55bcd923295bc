"""Turns the source of a study's rows into its three parts, cleaned and labelled."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from finetune_api.dataset import Dataset
from finetune_api.study import StudySpec
from finetune_api.tasks import Task
from finetune_trainer.cells.words import LABEL_FIELD
from finetune_trainer.data.cleaning import cleaned, joined, within_lengths
from finetune_trainer.data.duplicates import without_conflicts, without_duplicates
from finetune_trainer.data.groups import row_groups
from finetune_trainer.data.labels import LabelledRows, names_of, usable_rows
from finetune_trainer.data.load import PARTS, RawRows, load, named_labels
from finetune_trainer.data.slices import columns_of_slices
from finetune_trainer.data.split import split_rows
from finetune_trainer.data.steps import Account
from finetune_trainer.data.tagged import tagged_rows
from finetune_trainer.errors import DataError
from finetune_trainer.tasks import task_of

GROUP_FIELD = "spec.dataset.groupColumn"


def labelled_parts(spec: StudySpec, base: Path, account: Account) -> dict[str, LabelledRows]:
    """The usable rows of `train`, `validation` and `test`; each step is in `account`.

    Validation and test rows are never left out because of training rows. If the source lacks one of these
    parts, repeated rows are left out before it is split off, and rows with the same texts stay together.
    Raises DataError naming the field that is wrong.
    """
    dataset, cleaning = spec.dataset, spec.dataset.cleaning
    names = named_labels(dataset, spec.task, base)
    raws = load(dataset, base, account, columns_of_slices(spec))
    if task_of(spec.task).tags_words:
        tagged = tagged_rows(raws, dataset, account, names)
        parts = {part: within_lengths(rows, cleaning, account) for part, rows in tagged.items()}
    else:
        parts = {part: _labelled(raw, spec, account, names) for part, raw in raws.items()}
    if dataset.group_column is not None:
        _tell_of_groups(parts, account)
    if cleaning.duplicates == "Drop":
        parts = without_duplicates(parts, account)
    parts = split_parts(parts, dataset, spec.task, account)
    # Each fold also trains on most validation rows.
    trained = PARTS[:2] if spec.validation.cross_validation else PARTS[:1]
    return without_conflicts(parts, trained, cleaning.conflicts, account)


def _labelled(
    raw: RawRows, spec: StudySpec, account: Account, names: Sequence[str] | None
) -> LabelledRows:
    """The usable rows of one part, cleaned."""
    texts = cleaned(raw, spec.dataset.cleaning, account)
    if spec.dataset.join_text_columns:
        texts = joined(texts, account)
    rows = usable_rows(texts, spec.task, spec.dataset, account, names)
    return within_lengths(rows, spec.dataset.cleaning, account)


def _tell_of_groups(parts: Mapping[str, LabelledRows], account: Account) -> None:
    for name, rows in parts.items():
        alone = rows.groups.count(None)
        if alone:
            count = f"{alone} of {len(rows)} {name} rows"
            account.warn(GROUP_FIELD, f"{count} have no value; each is a group of its own")
    places = Counter(group for rows in parts.values() for group in {*rows.groups} - {None})
    shared = sum(count > 1 for count in places.values())
    if shared:
        account.warn(GROUP_FIELD, f"{shared} groups have rows in several parts of the source")


def split_parts(
    parts: Mapping[str, LabelledRows], dataset: Dataset, task: Task, account: Account
) -> dict[str, LabelledRows]:
    """`parts`, with missing ones split off the training rows.

    Raises DataError if there are too few rows or groups.
    """
    train, split = parts["train"], dataset.split
    missing = [name for name in PARTS[1:] if name not in parts]
    if not missing:
        return dict(parts)
    if len(train) < 2 * len(missing) + 1:
        raise DataError(
            train.field,
            f"must have at least {2 * len(missing) + 1} usable rows to be split (got {len(train)})",
        )
    groups = row_groups([train], dataset.cleaning.duplicates == "Drop")
    if groups is not None and groups.max() < len(missing):
        raise DataError(
            GROUP_FIELD if dataset.group_column else train.field,
            f"must give at least {len(missing) + 1} groups of rows to be split (got {groups.max() + 1})",
        )
    strata = [task_of(task).stratum(label) for label in train.labels]
    classes = {name for label in strata for name in names_of(label)}
    if dataset.label_column is not None and len(classes) == len(train) > 1 and split.stratify:
        raise DataError(
            LABEL_FIELD,
            f"must hold classes that several rows have: {dataset.label_column} has {len(classes)} different values "
            f"in {len(train)} rows; is it the right column?",
        )
    shares = [getattr(split, name) for name in missing]
    *aside, left = split_rows(strata, shares, split.seed, split.stratify, groups)
    if not len(left):
        taken = " and ".join(f"{getattr(split, name):g} for {name}" for name in missing)
        raise DataError(
            "spec.dataset.split",
            f"must leave rows for training (got {taken}, which is all of {len(train)} rows)",
        )
    why = f"set aside for {' and '.join(missing)}"
    account.add("train", "split", len(train), why, dropped=len(train) - len(left))
    found = {**parts, "train": train.keep(left)}
    for name, rows in zip(missing, aside, strict=True):
        if not len(rows):
            raise DataError(
                "spec.dataset.split.stratify",
                f"must be false: of {len(classes)} classes in {len(train)} rows, none has a row to spare for {name}",
            )
        found[name] = replace(train.keep(rows), part=name)
    return found
