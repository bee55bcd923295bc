"""Event files hold what the records say, once, and TensorBoard's own reader finds it there."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from finetune_trainer.records import events as ev
from finetune_trainer.records.log import RecordLog
from finetune_trainer.search.problem import Problem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import TENSORBOARD
from finetune_trainer.tracking.event_files import EventFiles
from finetune_trainer.tracking.journal import Journal
from finetune_trainer.tracking.runs import TrackedRun, TrackingError
from finetune_trainer.tracking.tracker import StudyTracker
from tests.trainer.object_store import object_store
from tests.trainer.tracked_studies import finished, runs_of, study


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[ev.Event]:
    return finished(study(), tmp_path_factory.mktemp("records"))


def scalars(reader: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def check(folder: Path, runs: Iterable[TrackedRun]) -> None:
    """What TensorBoard reads in `folder` is what the runs are."""
    for run in runs:
        reader = EventAccumulator(str(folder / TENSORBOARD / run.label))
        for name in ("accuracy", "f1_macro", "train_loss", "seconds") if run.points else ():
            expected: list[Any] = [
                (point.step, pytest.approx(point.values[name])) for point in run.points
            ]
            assert scalars(reader, name) == expected
        reader.Reload()
        assert run.ending is not None
        best: list[Any] = [(len(run.points), pytest.approx(run.ending.results["best_value"]))]
        assert scalars(reader, "best_value") == best
        about = reader.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        start = metadata.parse_session_start_info_plugin_data(about)
        assert start.group_name == run.key
        rate = start.hparams["learningRate"].number_value
        assert rate == run.params["learningRate"]
        assert start.hparams["optimizer"].string_value == "AdamW"
        about = reader.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
        end = metadata.parse_session_end_info_plugin_data(about)
        assert end.status == api_pb2.STATUS_SUCCESS


def test_tensorboard_reads_params_metrics_and_end(events: list[ev.Event], tmp_path: Path) -> None:
    runs = runs_of(study(), events)
    tracker = EventFiles(Storage.open(str(tmp_path)))
    for run in runs.values():
        tracker.write(run)
    assert {path.name for path in (tmp_path / TENSORBOARD).iterdir()} == set(runs)
    check(tmp_path, runs.values())


def test_a_restart_repeats_nothing(events: list[ev.Event], tmp_path: Path) -> None:
    half = len(events) // 2
    for run in runs_of(study(), events[:half]).values():
        EventFiles(Storage.open(str(tmp_path))).write(run)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*tfevents*")}
    runs = runs_of(study(), events)
    again = EventFiles(Storage.open(str(tmp_path)))
    for run in [*runs.values(), *runs.values()]:
        again.write(run)
    assert before
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.rglob("*tfevents*"))) > len(before)
    check(tmp_path, runs.values())


def test_an_open_tensorboard_sees_each_epoch_as_it_comes(
    events: list[ev.Event], tmp_path: Path
) -> None:
    winner = max(runs_of(study(), events).values(), key=lambda run: len(run.points)).label
    journal, tracker = (
        Journal(study(), Problem.of(study().spec)),
        EventFiles(Storage.open(str(tmp_path))),
    )
    reader: EventAccumulator | None = None
    seen = 0
    for event in events:
        for run in journal.take([event]):
            tracker.write(run)
            if run.label == winner and run.points:
                reader = reader or EventAccumulator(str(tmp_path / TENSORBOARD / winner))
                assert len(scalars(reader, "accuracy")) == len(run.points)
                seen = len(run.points)
    assert seen == 9


def test_event_files_in_an_object_store(events: list[ev.Event], tmp_path: Path) -> None:
    runs = runs_of(study(), events)
    with object_store() as store:
        half = len(events) // 2
        for some in (runs_of(study(), events[:half]), runs):
            tracker = EventFiles(Storage.open(store.uri))
            for run in some.values():
                tracker.write(run)
        Storage.open(store.uri).download(TENSORBOARD, tmp_path / TENSORBOARD)
    check(tmp_path, runs.values())


def test_records_that_make_no_sense_end_the_tracking_and_are_told(
    events: list[ev.Event], tmp_path: Path
) -> None:
    storage, told = Storage.open(str(tmp_path)), list[tuple[str, str]]()
    records, _ = RecordLog.start(storage, 1, 0.0)
    records.append([*events[1:10], ev.Reached(0.0, trial=999, finished=True, run=0)])
    tracked = study(tracking={"tensorboard": True})
    tracker = StudyTracker(tracked, storage, 1, lambda *words: told.append(words))
    tracker.start()
    tracker.finish(30)
    ((field, message),) = told
    assert field == "tensorboard"
    assert message.startswith("stopped; the study goes on: IndexError")


def test_a_diverged_trial_is_a_failed_session(tmp_path: Path) -> None:
    events = [
        ev.TermStarted(0.5, term=1),
        ev.Proposed(1.0, trial=0, params={"learningRate": 1e-3}),
        ev.Started(1.0, trial=0, slot="slot/1", to_epoch=9),
        ev.Failed(2.0, trial=0, failure_class="Diverged", message="the loss became NaN"),
    ]
    EventFiles(Storage.open(str(tmp_path))).write(runs_of(study(), events)["0"])
    reader = EventAccumulator(str(tmp_path / TENSORBOARD / "0"))
    reader.Reload()
    about = reader.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(about).status == api_pb2.STATUS_FAILURE


def test_storage_that_refuses_is_tried_again_without_repeating(
    events: list[ev.Event], tmp_path: Path
) -> None:
    runs = runs_of(study(), events)
    (tmp_path / TENSORBOARD).write_text("in the way of the folder")
    tracker = EventFiles(Storage(fs.LocalFileSystem(), str(tmp_path)))
    with pytest.raises(TrackingError, match="tensorboard"):
        tracker.write(runs["0"])
    (tmp_path / TENSORBOARD).unlink()
    for run in runs.values():
        tracker.write(run)
    check(tmp_path, runs.values())
