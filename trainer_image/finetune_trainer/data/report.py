"""The content of `results/data.json`: what happened to a study's rows."""

from dataclasses import asdict
from typing import Any

from finetune_trainer.data.load import PARTS
from finetune_trainer.data.prepared import PreparedData, label_counts
from finetune_trainer.tasks import task_of


def report(data: PreparedData) -> dict[str, Any]:
    """Rows of each part, how many of them have each label, the steps of the preparation, and warnings: JSON.

    Numbers are not counted.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name in PARTS:
        rows = data.part(name)
        parts[name] = {"rows": len(rows)}
        if task_of(data.task).has_classes:
            counts = label_counts(data, rows).tolist()
            parts[name]["labels"] = dict(zip(data.label_names, counts, strict=True))
    return {
        "fingerprint": data.fingerprint,
        "parts": parts,
        "steps": [asdict(step) for step in data.steps],
        "warnings": list(data.warnings),
    }
