"""How well a final model does on rows that have labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.dataset import Dataset
from finetune_api.objective import Slice
from finetune_api.tasks import TASKS
from finetune_trainer.artifacts.entities import places_of
from finetune_trainer.artifacts.predictor import Predictor
from finetune_trainer.data.labelled_file import labelled_file
from finetune_trainer.data.labels import LabelledRows
from finetune_trainer.data.slices import divided
from finetune_trainer.data.steps import Account
from finetune_trainer.tasks import Labels, Logits
from finetune_trainer.tasks.mistakes import Mistake
from finetune_trainer.training.detail import Detail, detailed
from finetune_trainer.training.metrics import compute_metrics

MOST_TEXT = 500
"""Characters of a text among the mistakes."""


@dataclass(frozen=True)
class Measured:
    """How well a model does on some rows."""

    rows: int
    metrics: dict[str, float]
    """All that the task has and these rows define, those that the study named first."""

    detail: Detail
    """In detail; intervals are those of the metrics that the study named."""

    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object; `report` is as `results/test_report.json`."""
        found = {"rows": self.rows, "metrics": self.metrics, "report": self.detail.to_json()}
        return {**found, "warnings": self.warnings}


def measure(predictor: Predictor, dataset: Dataset, slices: Sequence[Slice]) -> Measured:
    """Let the model predict the rows of the file of `dataset`, and compare that with their labels.

    Raises DataError for a file, a column or labels that do not fit the model.
    """
    task, names, account = predictor.about.task, list(predictor.labels), Account()
    rows = labelled_file(dataset, task, names, slices, account)
    labels, logits = predictor.task.encode(rows.labels, names), _logits(predictor, rows)
    named = predictor.about.metrics
    wanted = dict.fromkeys((*named, *TASKS[task].metrics))
    found = detailed(
        predictor.task,
        names,
        logits,
        labels,
        [*dict.fromkeys((*named, "loss"))],  # as the study measures
        predictor.thresholds,
        divided(slices, [rows]),
        predictor.says_ranks,
    )
    told = predictor.told_of_length
    return Measured(
        rows=len(rows),
        metrics=compute_metrics(task, logits, labels, wanted, predictor.thresholds),
        detail=replace(found, mistakes=[_with_text(rows, one) for one in found.mistakes]),
        warnings=[*account.warnings, *([told] if told else [])],
    )


def _with_text(rows: LabelledRows, one: Mistake) -> Mistake:
    texts = (column[one.row] for column in rows.texts)
    return replace(one, text=" | ".join(text[:MOST_TEXT] for text in texts))


def _logits(predictor: Predictor, rows: LabelledRows) -> Logits:
    if not predictor.task.tags_words:
        return predictor.logits(rows.texts)
    labels: Labels = rows.labels
    words = places_of([[*zip(one.starts, one.ends, strict=True)] for one in labels])
    return predictor.word_logits(rows.texts[0], words)
