"""Weights & Biases: what its own client writes, read from the files of offline runs."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import HistoryItem, Record

from finetune_api.outputs import WandbTracking
from finetune_trainer.records import events as ev
from finetune_trainer.search.problem import Problem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.tracking.journal import Journal
from finetune_trainer.tracking.runs import TrackedRun, TrackingError
from finetune_trainer.tracking.wandb_runs import WandbRuns
from tests.trainer.tracked_studies import finished, runs_of, study

TRACKING = WandbTracking(project="tickets", entity="nlp")
_BLOCK, _HEADER = 32768, struct.Struct("<IHB")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where offline runs are written to."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    yield tmp_path
    wandb.teardown()


def messages(path: Path) -> Iterator[Record]:
    """What a run's file holds: records of LevelDB's log format, each a message."""
    data, place, whole = path.read_bytes(), 7, b""  # after the file's own header
    while place + _HEADER.size <= len(data):
        if _BLOCK - place % _BLOCK < _HEADER.size:  # the rest of a block is padding
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = _HEADER.unpack_from(data, place)
        place += _HEADER.size
        whole += data[place : place + length]
        place += length
        if kind in (1, 4):  # the whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def value_of(item: HistoryItem) -> Any:
    kind = item.WhichOneof("value") if hasattr(item, "WhichOneof") else "value_json"
    found = getattr(item, kind or "value_json")
    return json.loads(found) if kind in (None, "value_json") else found


class Shown:
    """One offline run."""

    def __init__(self, path: Path) -> None:
        self.found = list(messages(path))
        self.run = next(record.run for record in self.found if record.HasField("run"))
        self.config = {
            item.key: json.loads(item.value_json)
            for record in self.found
            for update in (record.run.config.update, record.config.update)
            for item in update
        }
        self.history = [
            {".".join([item.key, *item.nested_key]).strip("."): value_of(item) for item in h.item}
            for h in (record.history for record in self.found if record.HasField("history"))
        ]
        self.summary = {
            ".".join([item.key, *item.nested_key]).strip("."): json.loads(item.value_json)
            for record in self.found
            for item in record.summary.update
        }
        self.exit_codes = [r.exit.exit_code for r in self.found if r.HasField("exit")]


def shown(folder: Path) -> dict[str, list[Shown]]:
    """Run id → its offline runs, in order; one each time it was opened.

    The client is shut down first: an offline run's file may be written after `finish` has returned.
    """
    wandb.teardown()
    found: dict[str, list[Shown]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        run = Shown(path)
        found.setdefault(run.run.run_id, []).append(run)
    return found


def test_a_run_has_its_id_config_history_and_end(folder: Path) -> None:
    runs = runs_of(study(), finished(study(), folder / "records"))
    runs = {label: runs[label] for label in ("0", "1", "study")}
    tracker = WandbRuns(TRACKING, Storage.open(str(folder / "records")))
    for run in runs.values():
        tracker.write(run)
    found = shown(folder)
    assert set(found) == {run.key for run in runs.values()}
    for label, run in runs.items():
        (there,) = found[run.key]
        assert (there.run.project, there.run.entity, there.run.run_group) == (
            "tickets",
            "nlp",
            "tickets",
        )
        assert there.run.display_name == f"tickets/{label}"
        assert there.config["learningRate"] == run.params["learningRate"]
        assert there.config["finetune"]["uid"] == run.facts["uid"]
        assert [entry["_step"] for entry in there.history] == [p.step for p in run.points]
        for entry, point in zip(there.history, run.points, strict=True):
            assert {name: entry[name] for name in point.values} == pytest.approx(point.values)
        assert run.ending is not None
        assert there.summary["best_value"] == run.ending.results["best_value"]
        assert there.exit_codes == [0]


def _events(*, failed: bool) -> list[ev.Event]:
    done = {"accuracy": 0.5}
    started: list[ev.Event] = [
        ev.TermStarted(0.5, term=1),
        ev.Proposed(1.0, trial=0, params={"learningRate": 1e-3}),
        ev.Started(1.0, trial=0, slot="slot/1", to_epoch=9),
        ev.EpochDone(
            2.0,
            trial=0,
            epoch=1,
            value=0.5,
            metrics=done,
            train_loss=0.1,
            seconds=1.0,
            gpu_seconds=0.0,
        ),
        ev.Requeued(3.0, trial=0),  # its pod was drained
        ev.Started(4.0, trial=0, slot="slot/2", to_epoch=9),
        ev.EpochDone(
            5.0,
            trial=0,
            epoch=2,
            value=0.5,
            metrics=done,
            train_loss=0.1,
            seconds=1.0,
            gpu_seconds=0.0,
        ),
    ]
    return (
        [*started, ev.Failed(6.0, trial=0, failure_class="Diverged", message="the loss became NaN")]
        if failed
        else started
    )


def test_a_run_that_waits_is_closed_and_opened_again_with_its_id(folder: Path) -> None:
    journal = Journal(study(), Problem.of(study().spec))
    tracker = WandbRuns(TRACKING, Storage.open(str(folder / "records")))
    run: TrackedRun | None = None
    for event in _events(failed=True):
        for run in journal.take([event]):
            tracker.write(run)
    assert run is not None
    ((before, after),) = shown(folder).values()
    assert before.run.run_id == after.run.run_id == run.key
    assert [entry["_step"] for entry in (*before.history, *after.history)] == [1, 2]
    assert (before.exit_codes, after.exit_codes) == ([0], [1])
    assert after.summary["failure"] == "Diverged"


def test_a_restart_opens_only_what_has_not_ended(folder: Path) -> None:
    events = finished(study(), folder / "records")
    first = runs_of(study(), events)["0"]
    storage = Storage.open(str(folder / "records"))
    WandbRuns(TRACKING, storage).write(first)
    again = WandbRuns(TRACKING, storage)
    again.write(first)
    again.write(runs_of(study(), events)["1"])
    assert [len(opened) for opened in shown(folder).values()] == [1, 1]


def test_missing_credentials_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = runs_of(study(), _events(failed=False))["0"]
    try:
        with pytest.raises(TrackingError, match=r"(?i)api.key|log ?in"):
            WandbRuns(TRACKING, Storage.open(str(tmp_path))).write(run)
    finally:
        wandb.teardown()
