"""Rows with the same texts: repeated, in more than one part, or with different labels."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from finetune_trainer.data.labels import LabelledRows
from finetune_trainer.data.load import PARTS
from finetune_trainer.data.steps import Account
from finetune_trainer.tasks.base import Label


def without_duplicates(
    parts: Mapping[str, LabelledRows], account: Account
) -> dict[str, LabelledRows]:
    """`parts` with each pair of texts and label once per part, and no texts that a later part tests.

    Training rows with the texts of a validation or test row are left out, and so are validation rows with those of
    a test row, because the final model trains on them. Raises DataError if a part has no row left.
    """
    once = {name: _first_of_each(rows, account) for name, rows in parts.items()}
    for name, held_out in (("train", PARTS[1:]), ("validation", PARTS[2:])):
        seen = {key for part in held_out if part in once for key in once[part].by_row()}
        if name in once and any(part in once for part in held_out):
            leaks = {row for row, key in enumerate(once[name].by_row()) if key in seen}
            why = f"with the same texts as a {' or '.join(held_out)} row"
            once[name] = once[name].without(leaks, "duplicates", why, account)
    return once


def warn_of_shared_texts(parts: Mapping[str, LabelledRows], folds: int, account: Account) -> None:
    """Warn of validation and test rows with texts that the model is trained on: their metrics are too optimistic.

    The final model is trained on training and validation rows. With cross-validation both are divided into
    `folds`, so a row shares its texts with training if another of them, of either part, has the same.
    """
    train, validation, test = (parts[name].by_row() for name in PARTS)
    trained = Counter([*train, *validation])
    if folds > 1:
        count = sum(times for times in trained.values() if times > 1)
        whose = f"{len(train) + len(validation)} rows of the folds"
        _warn_if_shared(count, whose, "another one, perhaps of another fold", "validation", account)
    else:
        known = {*train}
        count = sum(texts in known for texts in validation)
        whose = f"{len(validation)} validation rows"
        _warn_if_shared(count, whose, "a training row", "validation", account)
    count = sum(texts in trained for texts in test)
    whose = f"{len(test)} test rows"
    _warn_if_shared(count, whose, "a training or validation row", "test", account)


def _warn_if_shared(count: int, whose: str, other: str, metrics: str, account: Account) -> None:
    if count:
        account.warn(
            "spec.dataset.cleaning.duplicates",
            f"{count} of {whose} have the same texts as {other}, so {metrics} metrics are too optimistic "
            "(duplicates: Drop prevents this)",
        )


def _first_of_each(rows: LabelledRows, account: Account) -> LabelledRows:
    seen: set[tuple[tuple[str, ...], Label]] = set()
    repeated = set()
    for row, known in enumerate(zip(rows.by_row(), rows.labels, strict=True)):
        if known in seen:
            repeated.add(row)
        seen.add(known)
    why = "with the same texts and label as an earlier row"
    return rows.without(repeated, "duplicates", why, account)


def without_conflicts(
    parts: Mapping[str, LabelledRows],
    trained: Sequence[str],
    conflicts: Literal["Keep", "Report", "Drop"],
    account: Account,
) -> dict[str, LabelledRows]:
    """`parts`, in which rows of the `trained` ones that have the same texts but different labels are kept,
    kept with a warning, or all left out.

    Raises DataError if a part has no row left.
    """
    labels: dict[tuple[str, ...], set[Label]] = defaultdict(set)
    for name in trained:
        for key, label in zip(parts[name].by_row(), parts[name].labels, strict=True):
            labels[key].add(label)
    found = dict(parts)
    for name in trained if conflicts != "Keep" else ():
        rows = parts[name]
        unclear = {row for row, key in enumerate(rows.by_row()) if len(labels[key]) > 1}
        alike = "the same texts as a row with a different label"
        if conflicts == "Drop":
            found[name] = rows.without(unclear, "conflicts", f"with {alike}", account)
            continue
        account.add(name, "conflicts", len(rows), f"with {alike}", kept=len(unclear))
        if unclear:
            account.warn(
                "spec.dataset.cleaning.conflicts",
                f"{len(unclear)} of {len(rows)} {name} rows have {alike}; they were kept "
                "(conflicts: Drop leaves them out)",
            )
    return found
