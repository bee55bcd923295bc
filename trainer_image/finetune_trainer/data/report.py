"""The content of `results/data.json`: what happened to a study's rows."""

from dataclasses import asdict
from typing import Any

from finetune_trainer.data.load import PARTS
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.tasks import task_of


def report(data: PreparedData) -> dict[str, Any]:
    """Rows of each part, how many of them have each label, the steps of the preparation, and warnings: JSON.

    Numbers are not counted.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name in PARTS:
        rows = data.part(name)
        parts[name] = {"rows": len(rows)}
        task = task_of(data.task)
        if task.has_classes:
            counts = task.kind_counts(data.labels[rows], len(data.label_names)).tolist()
            parts[name]["labels"] = dict(zip(task.kinds(data.label_names), counts, strict=True))
    return {
        "fingerprint": data.fingerprint,
        "parts": parts,
        "steps": [asdict(step) for step in data.steps],
        "warnings": list(data.warnings),
    }
