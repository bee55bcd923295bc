"""The labelled rows of a study: read, split and tokenised once, and shared by all trials."""

from finetune_trainer.data.model_source import ModelSource
from finetune_trainer.data.prepare import prepare
from finetune_trainer.data.prepared import PreparedData

__all__ = ["ModelSource", "PreparedData", "prepare"]
