"""The finished model as a folder that transformers loads without this project."""

from pathlib import Path
from typing import Any

from torch import nn

from finetune_trainer.data.model_source import quiet_transformers
from finetune_trainer.data.prepared import PreparedData


def export_model(model: nn.Module, data: PreparedData, max_length: int, folder: Path) -> None:
    """Write weights (safetensors), configuration with the label names, and tokenizer into `folder`.

    The tokenizer cuts where the trial did, if it is asked to truncate.
    """
    tokenizer = data.model.tokenizer()
    tokenizer.model_max_length = data.limit(max_length)
    exported: Any = model
    with quiet_transformers():
        exported.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
