"""What is particular to each task of a study: one object a task, asked by everything else.

What a study of a task may say is in `finetune_api.tasks`. `docs/architecture.md` says how a task is added.
"""

from finetune_trainer.tasks.base import Labels, Logits, TrainingTask
from finetune_trainer.tasks.registry import auto_class_of, task_of

__all__ = ["Labels", "Logits", "TrainingTask", "auto_class_of", "task_of"]
