"""Whether the rows of a study can be used, as `finetune plan` asks, without its model."""

from pathlib import Path

from finetune_api.study import StudySpec
from finetune_trainer.data.labels import label_names
from finetune_trainer.data.leak import refuse_labels_in_texts
from finetune_trainer.data.parts import labelled_parts
from finetune_trainer.data.steps import Account
from finetune_trainer.data.tagged import tag_names
from finetune_trainer.errors import DataError
from finetune_trainer.tasks import task_of


def refusal_of_rows(spec: StudySpec, base: Path) -> str | None:
    """Why the rows cannot be used; None if they can."""
    account, task = Account(), task_of(spec.task)
    try:
        train = labelled_parts(spec, base, account)["train"]
        if task.tags_words:
            tag_names(train, spec.dataset)
        else:
            label_names(train.labels, spec.task, spec.dataset, account)
        if task.leaks_labels:
            refuse_labels_in_texts(train, task)
    except DataError as error:
        return str(error)
    return None
