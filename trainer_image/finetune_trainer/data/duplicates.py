"""Rows with the same texts: repeated, in more than one part, or with different labels."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from finetune_trainer.data.labels import Label, LabelledRows
from finetune_trainer.data.load import PARTS
from finetune_trainer.data.steps import Account


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
            why = f"with the texts of a {' or '.join(held_out)} row"
            once[name] = once[name].without(leaks, "duplicates", why, account)
    return once


def warn_of_shared_texts(parts: Mapping[str, LabelledRows], folds: int, account: Account) -> None:
    """Warn of held-out rows whose texts the model trains on: what they measure is too good.

    Those of the test rows count as shared with training and validation rows, on both of which the final model
    trains. With cross-validation the validation rows are those of the folds.
    """
    field, remedy = "spec.dataset.cleaning.duplicates", "Drop leaves the training rows out"
    train, validation, test = (parts[name].by_row() for name in PARTS)
    searched = [*train, *validation]
    counts = Counter(searched)
    if folds > 1:
        held_out, shared = searched, [key for key in searched if counts[key] > 1]
        other = "another row, perhaps of another fold"
    else:
        known = set(train)
        held_out, shared = validation, [key for key in validation if key in known]
        other = "a training row"
    for name, rows, found, where in (
        ("validation", held_out, shared, other),
        (
            "test",
            test,
            [key for key in test if key in counts],
            "a row that the final model trains on",
        ),
    ):
        if found:
            account.warn(
                field,
                f"{len(found)} of {len(rows)} {name} rows have the same texts as {where}, so the {name} metrics "
                f"are too good; {remedy}",
            )


def _first_of_each(rows: LabelledRows, account: Account) -> LabelledRows:
    seen: set[tuple[tuple[str, ...], Label]] = set()
    repeated = set()
    for row, known in enumerate(zip(rows.by_row(), rows.labels, strict=True)):
        if known in seen:
            repeated.add(row)
        seen.add(known)
    why = "with the texts and the label of an earlier row"
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
        why = "with the texts of a row with another label"
        if conflicts == "Drop":
            found[name] = rows.without(unclear, "conflicts", why, account)
            continue
        account.add(name, "conflicts", len(rows), f"{len(unclear)} {why}, kept")
        if unclear:
            count = f"{len(unclear)} of {len(rows)}"
            account.warn(rows.field, f"kept {count} {name} rows {why}")
    return found
