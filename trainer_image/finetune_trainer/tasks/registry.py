"""The tasks by their names."""

from collections.abc import Sequence

from finetune_api.tasks import TASKS, Task
from finetune_trainer.tasks.base import TrainingTask
from finetune_trainer.tasks.multi_label import MultiLabel
from finetune_trainer.tasks.regression import Regression
from finetune_trainer.tasks.single_label import SingleLabel
from finetune_trainer.tasks.token_classification import TokenClassification

_TASKS: dict[Task, TrainingTask] = {
    task.name: task for task in (SingleLabel(), MultiLabel(), Regression(), TokenClassification())
}
assert _TASKS.keys() == TASKS.keys(), "a task has a contract and no object, or the other way about"


def task_of(name: Task) -> TrainingTask:
    """The task with this name."""
    return _TASKS[name]


def auto_class_of(architectures: Sequence[str]) -> str:
    """The class of transformers that loads a model that one of the tasks has trained, by what its configuration says."""
    kinds = {task.auto_class.removeprefix("AutoModel"): task.auto_class for task in _TASKS.values()}
    found = (auto for kind, auto in kinds.items() for name in architectures if name.endswith(kind))
    return next(found, _TASKS["SingleLabel"].auto_class)
