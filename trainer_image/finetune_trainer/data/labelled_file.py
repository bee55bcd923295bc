"""The labelled rows of one file, for a model that is there already."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune_api.dataset import Dataset
from finetune_api.objective import Slice
from finetune_api.tasks import Task
from finetune_trainer.data.cleaning import cleaned, joined
from finetune_trainer.data.labels import LabelledRows, known_rows, usable_rows
from finetune_trainer.data.load import load, named_labels
from finetune_trainer.data.steps import Account
from finetune_trainer.data.tagged import tagged_rows
from finetune_trainer.tasks import task_of
from finetune_trainer.tasks.tagging import OUTSIDE


def labelled_file(
    dataset: Dataset,
    task: Task,
    outputs: Sequence[str],
    slices: Sequence[Slice],
    account: Account,
) -> LabelledRows:
    """The rows of the only file of `dataset` that have a text and labels, among `outputs` if they are names.

    They are cleaned, and what is left out is told in `account`. Raises DataError naming the field that is wrong.
    """
    names = named_labels(dataset, task, Path())
    sides = {
        str(one.column): f"spec.validation.slices[{at}].column" for at, one in enumerate(slices)
    }
    raw = replace(load(dataset, Path(), account, sides)["train"], part="given")
    if task_of(task).tags_words:
        # Whatever these rows are told apart by, the model's own outputs say how tags are to be read.
        singles = outputs[0] != OUTSIDE
        rows = tagged_rows({"train": raw}, dataset, account, names, singles)["train"]
    else:
        texts = cleaned(raw, dataset.cleaning, account)
        if dataset.join_text_columns:
            texts = joined(texts, account)
        rows = usable_rows(texts, task, dataset, account, names)
    return known_rows(rows, task, outputs, account) if task_of(task).has_classes else rows
