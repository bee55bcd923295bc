"""The finished model as a folder, which transformers loads without this project unless it has a head of ours."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.model_source import quiet_transformers
from finetune_trainer.data.prepared import PreparedData

THRESHOLDS = "thresholds.json"
"""MultiLabel: label → probability from which it is predicted."""


def export_model(model: Any, data: PreparedData, max_length: int, folder: Path) -> None:
    """Write weights (safetensors), configuration with the label names, and tokenizer into `folder`.

    The tokenizer truncates to the same length as the trial, if it is asked to truncate. A model with pooling
    Cls or Mean is written by `PooledClassifier.save_pretrained`.
    """
    tokenizer = data.model.tokenizer()
    tokenizer.model_max_length = data.limit(max_length)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def write_thresholds(names: Sequence[str], thresholds: NDArray[np.float64], folder: Path) -> None:
    """Write `thresholds.json` beside the model: label → probability from which it is predicted."""
    found = dict(zip(names, thresholds.tolist(), strict=True))
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    (folder / THRESHOLDS).write_text(text, encoding="utf-8")
