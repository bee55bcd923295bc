"""The final model as whoever uses it has it: read back from its folder."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification

from finetune_trainer.data.model_source import quiet_transformers
from finetune_trainer.training.pooling import load_classifier


def load_exported(folder: Path, pooling: str) -> Any:
    """The model that a trial with `pooling` has written to `folder`, on the CPU in float32, to predict.

    It is called with token numbers and their mask, and answers with `logits`.
    """
    if pooling != "Architecture":
        return load_classifier(folder)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32")
    return model.eval()
