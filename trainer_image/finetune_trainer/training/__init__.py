"""The training loop and its parts, which can be used and measured alone, without Ray."""

from finetune_trainer.training.baseline import baseline_metrics
from finetune_trainer.training.pretrained import Pretrained
from finetune_trainer.training.run import EpochResult, TrialRun

__all__ = ["EpochResult", "Pretrained", "TrialRun", "baseline_metrics"]
