"""The labelled rows of a study: read, split, tokenised once, and shared by every trial."""

from finetune_trainer.data.model_source import ModelSource
from finetune_trainer.data.prepare import prepare
from finetune_trainer.data.prepared import PreparedData

__all__ = ["ModelSource", "PreparedData", "prepare"]
