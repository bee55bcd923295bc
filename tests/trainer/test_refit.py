"""The winner trained again, with a tiny encoder: on which rows, for how long, and from which save it goes on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from finetune_api.study import StudySpec
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.environment import SlotResources
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.records.log import RecordLog
from finetune_trainer.search.items import RefitItem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.training import TrialRun
from finetune_trainer.worker import refit
from finetune_trainer.worker.item import Material
from finetune_trainer.worker.model_worker import ModelWorker
from tests.trainer.one_slot import Line
from tests.trainer.search_studies import epoch_done
from tests.trainer.speller import speller_spec

pytestmark = pytest.mark.usefixtures("one_thread")

MakeSpec = Callable[..., StudySpec]

ITEM = RefitItem(
    trial=0,
    segments=(({"learningRate": 3e-3}, 1), ({"learningRate": 1e-2}, 3)),
    seed=11,
    values=(0.5, 0.6, 0.7),
)
"""Three epochs; the learning rate changed after the first, as PBT does it."""


@pytest.fixture(scope="module")
def make_spec(tmp_path_factory: pytest.TempPathFactory) -> MakeSpec:
    folder = tmp_path_factory.mktemp("words")
    fixed: dict[str, Any] = {
        "artifacts": {"onnx": False, "attributedRows": 0},
        "hyperparameters": {"epochs": 3, "maxLength": 8, "batchSize": 16},
    }
    return lambda **changes: speller_spec(folder, **{**fixed, **changes})


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec) -> PreparedData:
    return prepare(make_spec(), Path("/"))


class Asked:
    """Counts how often it is asked, once before each batch, and says yes at one of the times."""

    def __init__(self, pause: int = 0) -> None:
        self.times = 0
        self._pause = pause

    def __call__(self) -> bool:
        self.times += 1
        return self.times == self._pause


class Place:
    """A study's folder, and slots that refit in it."""

    def __init__(self, folder: Path, spec: StudySpec, data: PreparedData) -> None:
        self.folder = folder
        self._spec, self._data = spec, data
        storage = Storage.open(str(folder))
        claim(storage, parts_of(spec))
        log, _ = RecordLog.start(storage, 1, 0.0)
        log.append(
            [
                ev.Proposed(0.0, trial=0, params={"learningRate": 1e-2}),
                ev.Started(0.0, trial=0, slot="worker/slot", to_epoch=3),
                *(epoch_done(0, epoch, 0.4 + epoch / 10) for epoch in (1, 2, 3)),
                ev.Reached(0.0, trial=0, finished=True),
            ]
        )

    def refit(self, asked: Asked | None = None, item: RefitItem = ITEM) -> ev.Event:
        """The last event of one attempt by a slot that has just begun."""
        material = Material(self._spec, str(self.folder), None, SlotResources(1, 0))
        return ModelWorker(material, self._data).work(item, Line(asked or Asked()))[-1]

    def saves(self) -> list[int]:
        """The numbers of the saves."""
        found = self.folder.glob("checkpoints/refit/*/*/state.json")
        return sorted(int(path.parent.name) for path in found)

    def weights(self) -> dict[str, Any]:
        return dict(load_file(self.folder / "model" / "model.safetensors"))


@pytest.fixture(scope="module")
def whole(
    make_spec: MakeSpec, data: PreparedData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Place, Asked]:
    """A refit that nothing has interrupted."""
    place, asked = Place(tmp_path_factory.mktemp("whole"), make_spec(), data), Asked()
    done = place.refit(asked)
    assert isinstance(done, ev.RefitDone)
    return place, asked


def assert_same(one: Place, other: Place) -> None:
    """Their final models are the same, bit for bit."""
    ours, theirs = one.weights(), other.weights()
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("pause", [1, 2, 8, 12])
def test_a_refit_paused_anywhere_goes_on_from_there_and_makes_the_same_model(
    pause: int,
    make_spec: MakeSpec,
    data: PreparedData,
    whole: tuple[Place, Asked],
    tmp_path: Path,
) -> None:
    place, first, second = Place(tmp_path, make_spec(), data), Asked(pause), Asked()
    requeued = place.refit(first)
    assert isinstance(requeued, ev.RefitRequeued)
    assert (requeued.message, requeued.lost) == ("", False)
    assert not (tmp_path / "model").exists()
    assert place.saves() == [1]
    assert isinstance(place.refit(second), ev.RefitDone)
    assert first.times + second.times == whole[1].times + 1
    assert_same(place, whole[0])


def test_of_several_pauses_only_the_newest_save_stays(
    make_spec: MakeSpec, data: PreparedData, whole: tuple[Place, Asked], tmp_path: Path
) -> None:
    place = Place(tmp_path, make_spec(), data)
    for number in (1, 2, 3):
        assert isinstance(place.refit(Asked(3)), ev.RefitRequeued)
        assert place.saves() == [number]
    assert isinstance(place.refit(), ev.RefitDone)
    assert_same(place, whole[0])


def test_a_save_that_was_cut_off_leaves_the_one_before_it(
    make_spec: MakeSpec, data: PreparedData, whole: tuple[Place, Asked], tmp_path: Path
) -> None:
    place = Place(tmp_path, make_spec(), data)
    place.refit(Asked(3))
    (save,) = tmp_path.glob("checkpoints/refit/*/1")
    shutil.copytree(save, save.with_name("2"))
    (save.with_name("2") / "state.json").unlink()
    last = Asked()
    assert isinstance(place.refit(last), ev.RefitDone)
    assert last.times == whole[1].times - 2
    assert_same(place, whole[0])


def test_of_two_saves_it_goes_on_from_the_newest(
    make_spec: MakeSpec, data: PreparedData, whole: tuple[Place, Asked], tmp_path: Path
) -> None:
    """A driver was killed before it had deleted the older one."""
    place = Place(tmp_path, make_spec(), data)
    place.refit(Asked(3))
    (save,) = tmp_path.glob("checkpoints/refit/*/1")
    shutil.copytree(save, tmp_path / "older")
    place.refit(Asked(3))
    (tmp_path / "older").rename(save)
    assert place.saves() == [1, 2]
    last = Asked()
    assert isinstance(place.refit(last), ev.RefitDone)
    assert last.times == whole[1].times - 4
    assert_same(place, whole[0])


def test_a_refit_saves_once_an_epoch_ends_long_after_its_last_save(
    make_spec: MakeSpec, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refit, "SAVE_SECONDS", -1.0)
    place = Place(tmp_path, make_spec(), data)
    assert isinstance(place.refit(), ev.RefitDone)
    assert place.saves() == [2], "after the first and the second of three epochs"


@pytest.mark.parametrize("rows", ["Train", "TrainAndValidation"])
def test_it_trains_on_the_rows_that_were_asked_for(
    rows: str,
    make_spec: MakeSpec,
    data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    train_to = TrialRun.train_to

    def watched(run: TrialRun, *given: Any) -> Any:
        seen.append(len(run.data.train))
        return train_to(run, *given)

    monkeypatch.setattr(TrialRun, "train_to", watched)
    done = Place(tmp_path, make_spec(refitRows=rows), data).refit()
    assert isinstance(done, ev.RefitDone)
    others = len(data.validation) if rows == "TrainAndValidation" else 0
    assert set(seen) == {len(data.train) + others}


@pytest.mark.parametrize("pause", [0, 9])
def test_hyperparameters_change_where_they_changed_in_the_search(
    pause: int,
    make_spec: MakeSpec,
    data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[float, float] = {}
    train_to = TrialRun.train_to

    def watched(run: TrialRun, *given: Any) -> Any:
        seen[run.position] = run.config.learning_rate
        return train_to(run, *given)

    monkeypatch.setattr(TrialRun, "train_to", watched)
    place = Place(tmp_path, make_spec(), data)
    if pause:
        assert isinstance(place.refit(Asked(pause)), ev.RefitRequeued)
    assert isinstance(place.refit(), ev.RefitDone)
    assert seen == {0: 3e-3, 1: 1e-2, 2: 1e-2}


def test_it_tells_the_metrics_of_the_test_rows_and_of_a_constant(
    whole: tuple[Place, Asked], make_spec: MakeSpec, data: PreparedData, tmp_path: Path
) -> None:
    done = Place(tmp_path, make_spec(), data).refit()
    assert isinstance(done, ev.RefitDone)
    assert (done.trial, done.path) == (0, "model")
    assert set(done.test_metrics) == set(done.baseline) == {"accuracy", "loss"}
    assert done.baseline["accuracy"] == pytest.approx(
        np.mean(data.labels[data.test] == np.bincount(data.labels[data.train]).argmax())
    )
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "model" / name).exists()


def test_what_goes_wrong_in_it_is_told_with_its_class(
    make_spec: MakeSpec, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(TrialRun, "train_to", broken)
    requeued = Place(tmp_path, make_spec(), data).refit()
    assert isinstance(requeued, ev.RefitRequeued)
    assert requeued.message == "Internal: ValueError: a bug"
