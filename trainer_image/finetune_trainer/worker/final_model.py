"""Writes the final model with its card, and evaluates it on the test rows."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer.artifacts.about import ModelAbout
from finetune_trainer.artifacts.ensemble import EnsembleAbout
from finetune_trainer.artifacts.exported import load_exported
from finetune_trainer.artifacts.model_card import Card
from finetune_trainer.records.log import read_history
from finetune_trainer.search.items import RefitItem
from finetune_trainer.search.problem import problem_of
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.layout import ATTRIBUTIONS, TEST_REPORT
from finetune_trainer.tasks import task_of
from finetune_trainer.tasks.mistakes import Mistake
from finetune_trainer.tasks.report import LabelReport
from finetune_trainer.training import TrialRun, baseline_metrics
from finetune_trainer.training.detail import detailed
from finetune_trainer.training.ensemble import Answers
from finetune_trainer.training.metrics import compute_metrics
from finetune_trainer.training.run import metric_names
from finetune_trainer.training.slices import SliceReport
from finetune_trainer.worker.runs import Workbench

ONNX = "model.onnx"

MOST_TOKENS = 128
"""Of a text in a report."""


def export(bench: Workbench, run: TrialRun, folder: Path) -> float | None:
    """Write the model of `run`, also as ONNX if the study wants that, into `folder`.

    Returns the largest difference between the outputs of the two, as `export_onnx` does; None without ONNX.
    """
    run.export(folder)
    name, content = ModelAbout.of(bench.spec).file
    (folder / name).write_bytes(content)
    if not bench.spec.artifacts.onnx:
        return None
    from finetune_trainer.artifacts.onnx_export import export_onnx  # slow to import

    model = load_exported(folder)
    return export_onnx(model, run.data, run.config.max_length, folder / ONNX)


@dataclass(frozen=True)
class Judgement:
    """How the final model does on the test rows."""

    metrics: dict[str, float]
    slices: list[SliceReport]
    types: Sequence[LabelReport] = ()
    """Of entities, where words are tagged."""


def evaluate_test(bench: Workbench, answers: Answers) -> Judgement:
    """How good `answers` are on the test rows; the report on them goes into storage."""
    data, logits, thresholds = bench.data, answers.logits, answers.thresholds
    labels, names = data.labels[data.test], metric_names(bench.spec.objective)
    slices, task = data.slices_at(data.test), task_of(data.task)
    metrics = compute_metrics(data.task, logits, labels, names, thresholds, slices)
    found = detailed(
        task, data.label_names, logits, labels, names, thresholds, slices, answers.are_ranks
    )
    if bench.spec.artifacts.texts is not False:
        found = replace(found, mistakes=[_with_text(bench, one) for one in found.mistakes])
    text = json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n"
    bench.storage.write(TEST_REPORT, text.encode())
    types = found.report.labels if task.tags_words else None
    return Judgement(metrics, found.slices, types or ())


def _with_text(bench: Workbench, one: Mistake) -> Mistake:
    """The mistake with the beginning of its text, as the model reads it."""
    row, tokenizer = int(bench.data.test[one.row]), bench.data.model.tokenizer()
    texts = (
        tokenizer.decode(column[row][:MOST_TOKENS].tolist(), skip_special_tokens=True)
        + (" …" if len(column[row]) > MOST_TOKENS else "")
        for column in bench.data.columns
    )
    return replace(one, text=" | ".join(texts))


def card(
    bench: Workbench,
    item: RefitItem,
    config: Hyperparameters,
    tested: Judgement,
    onnx_difference: float | None = None,
    has_code: bool = False,
    ensemble: EnsembleAbout | None = None,
) -> Card:
    """The card of the winner trained again with `config`, or of the ensemble that it is part of."""
    history = read_history(bench.storage)
    state = StudyState.replayed(problem_of(bench.spec, bench.storage), history.events)
    return Card(
        name=bench.name,
        spec=bench.spec,
        data=bench.data.read_by(config.pretrained_model),
        state=state,
        winner=state.trials[item.trial],
        config=config,
        epochs=item.epochs,
        tested=tested.metrics,
        slices=tested.slices,
        types=tested.types,
        constant=baseline_metrics(bench.data, tested.metrics),
        setting=bench.setting,
        onnx_difference=onnx_difference,
        has_code=has_code,
        ensemble=ensemble,
    )


def attribute(
    bench: Workbench,
    path: str,
    config: Hyperparameters,
    thresholds: NDArray[np.float64] | None,
    should_pause: Callable[[], bool],
) -> bool:
    """Write attributions for the predictions of the model at `path` on test rows, spread evenly over all of
    them: neighbouring rows are often alike.

    False if it was told to pause on the way.
    """
    from finetune_trainer.artifacts.attributions import Attributor  # slow to import

    with bench.storage.fetched(path) as folder:
        model = load_exported(folder)
    data = bench.data.read_by(config.pretrained_model)
    attributor = Attributor(model, data, config.max_length, thresholds, bench.device)
    count = min(bench.spec.artifacts.attributed_rows, len(data.test))
    lines = []
    for number in np.linspace(0, len(data.test) - 1, count).round().astype(int).tolist():
        if should_pause():
            return False
        found = asdict(attributor(number))
        lines.append(json.dumps(found, ensure_ascii=False) + "\n")
    bench.storage.write(ATTRIBUTIONS, "".join(lines).encode())
    return True
