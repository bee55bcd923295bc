"""The final model as its users get it: read back from its folder."""

from pathlib import Path
from typing import Any

import transformers

from finetune_trainer.data.model_source import quiet_transformers
from finetune_trainer.tasks import auto_class_of
from finetune_trainer.training.pooling import is_pooled, load_classifier


def load_exported(folder: Path) -> Any:
    """The model that a trial has written to `folder`, on the CPU in float32, ready to predict.

    Call it with token ids and their mask; it returns `logits`: of rows, or of each token of a model that tags words. No code in `folder` is run.
    """
    with quiet_transformers():
        if is_pooled(folder):
            return load_classifier(folder)
        names = transformers.AutoConfig.from_pretrained(folder).architectures or []
        auto = getattr(transformers, auto_class_of(names))
        model = auto.from_pretrained(folder, dtype="float32")
    return model.eval()
