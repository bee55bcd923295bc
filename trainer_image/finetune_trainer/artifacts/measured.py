"""How well a final model does on rows that have labels."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from finetune_trainer.tasks.report import Report
from finetune_trainer.training.metrics import compute_metrics
from finetune_trainer.training.slices import SliceReport, interval, slice_reports


@dataclass(frozen=True)
class Measured:
    """How well a model does on some rows."""

    rows: int
    metrics: dict[str, float]
    """All that the task has and these rows define, those that the study named first."""

    intervals: dict[str, tuple[float, float]]
    """Of those that the study named: where they lie in 95 % of samples of as many rows."""

    report: Report
    slices: list[SliceReport]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {**asdict(self), "report": self.report.to_json()}


def measure(predictor: Predictor, dataset: Dataset, slices: Sequence[Slice]) -> Measured:
    """Let the model predict the rows of the file of `dataset`, and compare that with their labels.

    Raises DataError for a file, a column or labels that do not fit the model.
    """
    task, names, account = predictor.about.task, list(predictor.labels), Account()
    rows = labelled_file(dataset, task, names, slices, account)
    labels, logits = predictor.task.encode(rows.labels, names), _logits(predictor, rows)
    named = predictor.about.metrics
    thresholds, judged = predictor.thresholds, (task, logits, labels)
    wanted = dict.fromkeys((*named, *TASKS[task].metrics))
    intervals = {name: interval(*judged, name, thresholds) for name in named}
    told = predictor.told_of_length
    return Measured(
        rows=len(rows),
        metrics=compute_metrics(*judged, wanted, thresholds),
        intervals={name: found for name, found in intervals.items() if found is not None},
        report=predictor.task.report(names, logits, labels, thresholds),
        slices=slice_reports(*judged, named, thresholds, divided(slices, [rows])),
        warnings=[*account.warnings, *([told] if told else [])],
    )


def _logits(predictor: Predictor, rows: LabelledRows) -> Logits:
    if not predictor.task.tags_words:
        return predictor.logits(rows.texts)
    labels: Labels = rows.labels
    words = places_of([[*zip(one.starts, one.ends, strict=True)] for one in labels])
    return predictor.word_logits(rows.texts[0], words)
