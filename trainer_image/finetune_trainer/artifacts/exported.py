"""The final model as whoever uses it has it: read back from its folder."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification

from finetune_trainer.data.model_source import quiet_transformers
from finetune_trainer.training.pooling import is_pooled, load_classifier


def load_exported(folder: Path) -> Any:
    """The model that a trial has written to `folder`, on the CPU in float32, to predict.

    It is called with token numbers and their mask, and answers with `logits`. No code in `folder` is run.
    """
    with quiet_transformers():
        if is_pooled(folder):
            return load_classifier(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32")
    return model.eval()
