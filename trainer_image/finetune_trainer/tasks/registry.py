"""The tasks by their names."""

from finetune_api.tasks import TASKS, Task
from finetune_trainer.tasks.base import TrainingTask
from finetune_trainer.tasks.multi_label import MultiLabel
from finetune_trainer.tasks.regression import Regression
from finetune_trainer.tasks.single_label import SingleLabel

_TASKS: dict[Task, TrainingTask] = {
    task.name: task for task in (SingleLabel(), MultiLabel(), Regression())
}
assert _TASKS.keys() == TASKS.keys(), "a task has a contract and no object, or the other way about"


def task_of(name: Task) -> TrainingTask:
    """The task with this name."""
    return _TASKS[name]
