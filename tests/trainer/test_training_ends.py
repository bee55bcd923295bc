"""How a training ends before its last epoch, and what a slot keeps of it then; with a tiny encoder."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_api.study import StudySpec
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.environment import SlotResources
from finetune_trainer.errors import TrialFailure
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.search.items import TrainItem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.training import EpochResult, Pretrained, TrialRun
from finetune_trainer.training.learner import Learner
from finetune_trainer.worker.item import Material
from finetune_trainer.worker.model_worker import ModelWorker
from tests.trainer.one_slot import Line, run_study
from tests.trainer.speller import speller_spec

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = Hyperparameters(epochs=9, batch_size=16, max_length=8, learning_rate=1e-3)
ACCURACY = Objective(metric="accuracy")

MakeSpec = Callable[..., StudySpec]


@pytest.fixture(scope="module")
def make_spec(tmp_path_factory: pytest.TempPathFactory) -> MakeSpec:
    folder = tmp_path_factory.mktemp("words")
    return lambda **changes: speller_spec(folder, **changes)


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec) -> PreparedData:
    return prepare(make_spec(), Path("/"))


@pytest.fixture(scope="module")
def pretrained(data: PreparedData) -> Pretrained:
    return Pretrained.load(data.model, data.task, data.label_names)


def start(
    pretrained: Pretrained, data: PreparedData, objective: Objective = ACCURACY, **changes: Any
) -> TrialRun:
    return TrialRun(pretrained, data, CONFIG.model_copy(update=changes), 5, objective)


class PauseAt:
    """Says yes at the given call."""

    def __init__(self, call: int) -> None:
        self.calls_left = call

    def __call__(self) -> bool:
        self.calls_left -= 1
        return self.calls_left < 0


def spoil(run: TrialRun, value: float) -> None:
    """Make one of the model's two outputs useless."""
    with torch.no_grad():
        run.model.classifier.bias[0] = value


# Divergence.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_one_of_whose_outputs_is_no_number_after_its_last_step_has_diverged(
    value: float, pretrained: Pretrained, data: PreparedData
) -> None:
    """The losses of the epoch were all finite; what would be measured is not."""
    run = start(pretrained, data)
    steps = math.ceil(len(data.train) / 16)
    assert run.train_to(1, PauseAt(steps)) is None  # at the first batch of the evaluation
    spoil(run, value)
    with pytest.raises(TrialFailure, match="the model's output became NaN or infinite") as error:
        run.train_to(1)
    assert error.value.failure_class == "Diverged"
    assert run.position == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_training_at_its_step(
    value: float, pretrained: Pretrained, data: PreparedData
) -> None:
    run = start(pretrained, data)
    assert run.train_to(1, PauseAt(1)) is None
    spoil(run, value)
    with pytest.raises(TrialFailure, match=r"the training loss became (nan|inf)") as error:
        run.train_to(1)
    assert error.value.failure_class == "Diverged"


def test_a_final_fit_that_diverges_has_no_validation_rows_to_show_it(
    pretrained: Pretrained, data: PreparedData
) -> None:
    run = start(pretrained, data.merged())
    spoil(run, math.nan)
    with pytest.raises(TrialFailure, match="the training loss became nan"):
        run.train_to(1)


# Patience.

CURVES: list[tuple[dict[str, Any], str, list[float], int]] = [
    ({"early_stopping_patience": 2}, "accuracy", [0.5, 0.6, 0.6, 0.55, 0.7], 4),
    ({"early_stopping_patience": 1}, "accuracy", [0.5, 0.6, 0.59, 0.7], 3),
    ({"early_stopping_patience": 2}, "loss", [0.9, 0.7, 0.7, 0.8, 0.1], 4),
    ({"early_stopping_patience": 1}, "loss", [0.9, 0.7, 0.6, 0.65], 4),
    (
        {"early_stopping_patience": 1, "early_stopping_min_delta": 0.1},
        "accuracy",
        [0.5, 0.65, 0.74],
        3,
    ),
    ({"early_stopping_patience": 0}, "accuracy", [0.5] * 9, 9),
]


@pytest.mark.parametrize(("changes", "metric", "values", "epochs"), CURVES)
def test_a_training_stops_after_so_many_epochs_that_were_no_better(
    changes: dict[str, Any],
    metric: str,
    values: list[float],
    epochs: int,
    pretrained: Pretrained,
    data: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Better is larger of an accuracy and smaller of a loss; as good is not better."""
    objective = Objective(metric="accuracy", early_stopping_metric=metric)
    run = start(pretrained, data, objective, **changes)
    told = iter(values)
    monkeypatch.setattr(
        run, "measure", lambda *_: {"accuracy": 0.5, "loss": 0.5, metric: next(told)}
    )
    results: list[EpochResult] = []
    while not run.finished:
        result = run.train_to(9)
        assert result is not None
        results.append(result)
    assert [result.epoch for result in results] == list(range(1, epochs + 1))


# What a slot keeps.


def test_on_rungs_of_rows_a_slot_saves_nothing_and_reports_the_end_on_all_rows_only(
    make_spec: MakeSpec, data: PreparedData, tmp_path: Path
) -> None:
    """On more rows a trial begins anew, so there is nothing to resume from."""
    scheduler = {"type": "SuccessiveHalving", "resource": "Samples", "minResource": 30}
    spec = make_spec(
        search={"algorithm": "Random", "seed": 7, "scheduler": scheduler},
        budget={"maxTrials": 3},
        refit=False,
    )
    events = run_study(spec, data, tmp_path)
    assert not [event for event in events if isinstance(event, ev.Saved)]
    reached = [event for event in events if isinstance(event, ev.Reached)]
    assert [event.finished for event in reached[:3]] == [False] * 3
    assert reached[-1].finished
    starts = [event for event in events if isinstance(event, ev.Started)]
    assert [start.run for start in starts[:4]] == [0, 0, 0, 1]
    epochs = [event.epoch for event in events if isinstance(event, ev.EpochDone)]
    assert epochs == [1, 2] * len(starts)


def test_a_slot_told_to_pause_saves_and_another_goes_on_from_there(
    make_spec: MakeSpec, data: PreparedData, tmp_path: Path
) -> None:
    spec = make_spec()
    claim(Storage.open(str(tmp_path)), parts_of(spec))
    material = Material(spec, str(tmp_path), None, SlotResources(1, 0))
    item = TrainItem(trial=3, params={"learningRate": 1e-3}, to_epoch=2, checkpoint=None, seed=1)
    unbroken = Line(lambda: False)
    (reached,) = ModelWorker(material, data).work(item, unbroken)
    assert isinstance(reached, ev.Reached)
    assert reached.finished

    pausing = Line(PauseAt(2))
    saved, requeued = ModelWorker(material, data).work(item, pausing)
    assert isinstance(saved, ev.Saved)
    assert isinstance(requeued, ev.Requeued)
    assert not requeued.lost
    assert [event.kind for event in pausing.said] == ["slot"]
    assert (tmp_path / saved.path).is_dir()

    resumed = Line(lambda: False)
    rest = TrainItem(
        trial=3, params={"learningRate": 1e-3}, to_epoch=2, checkpoint=saved.path, seed=1
    )
    (reached,) = ModelWorker(material, data).work(rest, resumed)
    assert isinstance(reached, ev.Reached)
    assert values(resumed) == values(unbroken)


def test_frozen_layers_say_how_far_they_are_before_the_first_epoch(
    make_spec: MakeSpec, data: PreparedData, tmp_path: Path
) -> None:
    spec = make_spec(hyperparameters={"freeze": "Encoder", "pooling": "Mean", "epochs": 2})
    claim(Storage.open(str(tmp_path)), parts_of(spec))
    material = Material(spec, str(tmp_path), None, SlotResources(1, 0))
    item = TrainItem(trial=3, params={"learningRate": 1e-3}, to_epoch=2, checkpoint=None, seed=1)
    line = Line(lambda: False)
    slot = ModelWorker(material, data)
    slot.work(item, line)
    assert line.told[0].startswith("frozen layers: 0 of ")
    again = Line(lambda: False)
    slot.work(replace(item, trial=4), again)
    assert again.told == [], "they are computed once"


def test_a_step_of_a_population_has_its_own_hyperparameters_also_where_its_parent_was_trained(
    make_spec: MakeSpec, data: PreparedData, tmp_path: Path
) -> None:
    """The slot has the parent's run in memory still, with the parent's hyperparameters."""
    spec = make_spec()
    claim(Storage.open(str(tmp_path)), parts_of(spec))
    material = Material(spec, str(tmp_path), None, SlotResources(1, 0))
    parent = TrainItem(trial=0, params={"learningRate": 1e-4}, to_epoch=1, checkpoint=None, seed=1)
    same = ModelWorker(material, data)
    saved, _ = same.work(parent, Line(lambda: False))
    assert isinstance(saved, ev.Saved)
    child = TrainItem(
        trial=1,
        params={"learningRate": 1e-2},
        to_epoch=2,
        checkpoint=saved.path,
        seed=1,
        inherits=True,
    )
    lines = [Line(lambda: False), Line(lambda: False)]
    for slot, line in zip((same, ModelWorker(material, data)), lines, strict=True):
        (reached,) = slot.work(child, line)
        assert isinstance(reached, ev.Reached)
    assert values(lines[0]) == values(lines[1]) != []
    unchanged = Line(lambda: False)
    ModelWorker(material, data).work(replace(child, params=parent.params), unchanged)
    assert values(unchanged)[0][2] != values(lines[0])[0][2]


def values(line: Line) -> list[tuple[float, dict[str, float], float]]:
    """What the epochs of an item showed."""
    done = [event for event in line.said if isinstance(event, ev.EpochDone)]
    return [(event.epoch, event.metrics, event.train_loss) for event in done]


def test_a_slot_reports_a_trial_that_diverges_with_its_class(
    make_spec: MakeSpec, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    claim(Storage.open(str(tmp_path)), parts_of(spec))
    monkeypatch.setattr(Learner, "predict", lambda *_: np.full((len(data.validation), 2), math.nan))
    item = TrainItem(trial=3, params={"learningRate": 1e-3}, to_epoch=2, checkpoint=None, seed=1)
    material = Material(spec, str(tmp_path), None, SlotResources(1, 0))
    (failed,) = ModelWorker(material, data).work(item, Line(lambda: False))
    assert isinstance(failed, ev.Failed)
    assert (failed.trial, failed.failure_class) == (3, "Diverged")
