"""The trainer: fine-tunes encoder models, searches their hyperparameters on Ray Tune, keeps the records.

`from finetune_trainer import Study` runs the same search over any Python function.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_trainer.library import Resource, Study, StudyFailed

__all__ = ["Resource", "Study", "StudyFailed"]


def __getattr__(name: str) -> Any:
    # Late: the library needs Ray, which data, training and search do without.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from finetune_trainer import library

    return getattr(library, name)
