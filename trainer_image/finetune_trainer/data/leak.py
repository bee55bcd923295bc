"""Refuses texts that contain their own label."""

import re
from collections.abc import Sequence

from finetune_trainer.cells.words import TEXT_FIELD, shown
from finetune_trainer.data.labels import LabelledRows, names_of
from finetune_trainer.errors import DataError
from finetune_trainer.tasks.base import Stratum, TrainingTask

_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)*")


def refuse_labels_in_texts(rows: LabelledRows, task: TrainingTask) -> None:
    """Raise DataError if most of these training rows contain their own label word for word.

    A row does if all of its labels appear in its texts as whole words, in any case. Numbers and labels of one
    character do not count: they appear by chance.
    """
    texts = ["\n".join(row) for row in rows.by_row()]
    leaking = [
        row
        for row, (label, text) in enumerate(zip(rows.labels, texts, strict=True))
        if _gives_away(text.casefold(), _telling(task.stratum(label)))
    ]
    if 2 * len(leaking) <= len(rows):
        return
    first = leaking[0]
    raise DataError(
        TEXT_FIELD,
        f"must not contain the labels: {len(leaking)} of {len(rows)} training rows contain theirs word for "
        f"word (got {shown(texts[first])} labelled {shown(rows.labels[first])}); leave out "
        "the column that has it or, if the task is to find it, set spec.dataset.allowLabelInText",
    )


def _telling(label: Stratum) -> list[str]:
    names = [name.casefold() for name in names_of(label)]
    return [name for name in names if len(name) > 1 and not _NUMBER.fullmatch(name)]


def _gives_away(text: str, names: Sequence[str]) -> bool:
    # A plain search first: it is fast, and usually finds nothing.
    return bool(names) and all(
        name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
        for name in names
    )
