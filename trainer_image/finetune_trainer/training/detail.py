"""How a final model does on rows that it has not seen, in detail: for the study's report and for `finetune evaluate`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from numpy.typing import NDArray

from finetune_api.metrics import plain
from finetune_trainer.data.slices import Slices
from finetune_trainer.tasks import Labels, Logits
from finetune_trainer.tasks.base import TrainingTask
from finetune_trainer.tasks.calibration import Calibration
from finetune_trainer.tasks.mistakes import Mistake
from finetune_trainer.tasks.report import Report
from finetune_trainer.training.slices import SliceReport, interval, slice_reports


@dataclass(frozen=True)
class Detail:
    """How a model does on some rows."""

    report: Report
    intervals: dict[str, tuple[float, float]]
    """Where metrics lie in 95 % of samples of as many rows; of those that are defined in any."""

    calibration: Calibration | None
    """None where nothing that the model says is a probability."""

    mistakes: list[Mistake]
    """The worst first, without their texts."""

    slices: list[SliceReport]

    def to_json(self) -> dict[str, Any]:
        """As one JSON object: what `results/test_report.json` is."""
        found = {**self.report.to_json(), "intervals": self.intervals}
        if self.calibration is not None:
            found["calibration"] = self.calibration.to_json()
        found["mistakes"] = [one.to_json() for one in self.mistakes]
        if self.slices:
            found["slices"] = [asdict(one) for one in self.slices]
        return found


def detailed(
    task: TrainingTask,
    label_names: Sequence[str],
    logits: Logits,
    labels: Labels,
    metrics: Sequence[str],
    thresholds: NDArray[Any] | None,
    slices: Sequence[Slices] = (),
    are_ranks: bool = False,
) -> Detail:
    """How a model with these `logits` does on rows with these `labels`.

    `metrics` are those of the study, the objective's first; with `are_ranks` the logits stand for ranks (RankMean).
    """
    judged = task.name, logits, labels
    named = [name for name in metrics if name == plain(name)]
    between = {name: interval(*judged, name, thresholds) for name in named}
    mistakes = task.mistakes(label_names, logits, labels, thresholds)
    return Detail(
        report=task.report(label_names, logits, labels, thresholds),
        intervals={name: found for name, found in between.items() if found is not None},
        calibration=None if are_ranks else task.calibration(logits, labels),
        mistakes=[replace(one, probability=None) for one in mistakes] if are_ranks else mistakes,
        slices=slice_reports(*judged, metrics, thresholds, slices),
    )
