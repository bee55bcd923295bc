"""The whole driver on this machine, with real Ray, model and data: killed, interrupted, gone on with."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune_api.manifest import dump_yaml, load_yaml, read_study
from finetune_api.status import Limits, StudyProgress
from finetune_trainer.driver import Driver, Workplace
from finetune_trainer.environment import SlotResources
from finetune_trainer.errors import DataError
from finetune_trainer.records import events as ev
from finetune_trainer.runtime.local_sink import LocalSink
from finetune_trainer.runtime.preparation import check_same_data
from tests.records import check_records, events_of
from tests.trainer.disks import disk_of
from tests.trainer.object_store import StoreProcess

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 4


@pytest.fixture
def study(tmp_path: Path, examples: Path) -> Path:
    """A small study on the first rows of the library data."""
    (tmp_path / "models").symlink_to(examples / "models")
    rows = (examples / "data" / "library.csv").read_text().splitlines()
    (tmp_path / "rows.csv").write_text("\n".join(rows[:161]) + "\n")
    manifest = load_yaml((ROOT / "examples" / "library.yaml").read_text())
    manifest["spec"] |= {
        "hyperparameters": {"epochs": 3, "maxLength": 16, "batchSize": 16},
        "searchSpaces": [{"learningRate": {"min": 1e-4, "max": 6e-4, "scale": "Log"}}],
        "budget": {"maxTrials": TRIALS},
        "tracking": {
            "tensorboard": True,
            "mlflow": {"trackingUri": "http://127.0.0.1:9", "experiment": "nobody listens"},
        },
    }
    manifest["spec"]["dataset"]["files"]["train"] = "rows.csv"
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(manifest))
    return path


def start(study: Path, into: Path, said: Path | None = None) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "finetune_trainer.cli", "run", str(study), "--into", str(into)]
    with (said or into.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def until(true: Callable[[], bool], run: "subprocess.Popen[bytes]", seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert run.poll() is None, "the run ended before"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def terms(into: Path) -> int:
    return sum(isinstance(event, ev.TermStarted) for event in events_of(into))


def saved(into: Path) -> int:
    return sum(isinstance(event, ev.Saved) for event in events_of(into)) if into.is_dir() else 0


@pytest.mark.slow
def test_killed_and_interrupted_runs_go_on_from_their_records(study: Path, tmp_path: Path) -> None:
    into = tmp_path / "run"
    run = start(study, into)
    until(lambda: saved(into) >= 1, run)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()

    run = start(study, into)
    until(lambda: terms(into) == 2, run)  # until then the first one's slots may still write
    before = saved(into)
    until(lambda: saved(into) > before, run)
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=240) == 1
    status = load_yaml((into / "study.yaml").read_text())["status"]
    assert status["state"] == "Suspended"

    (
        into / "term"
    ).unlink()  # as where a study adopts what another left: nothing has counted the terms
    run = start(study, into)
    assert run.wait(timeout=900) == 0, (tmp_path / "log.txt").read_text()
    check_records(into, TRIALS)
    status = load_yaml((into / "study.yaml").read_text())["status"]
    assert status["state"] == "Complete"
    assert status["attempts"] == 3
    assert status["trials"]["summary"] == f"{TRIALS}/{TRIALS}"
    assert set(status["final"]["testMetrics"]) >= {"accuracy", "f1_macro"}
    rows = list(csv.DictReader((into / "results" / "trials.csv").read_text().splitlines()))
    assert [int(row["trial"]) for row in rows] == list(range(TRIALS))
    assert max(float(row["value"]) for row in rows) == pytest.approx(status["best"]["value"])
    assert (into / "model" / "model.safetensors").is_file()
    assert not list((into / "checkpoints").rglob("*.safetensors"))
    check_event_files(into)
    (warning,) = (text for text in status["warnings"] if "mlflow" in text)
    assert warning.startswith(f"spec.tracking.mlflow: {TRIALS + 1} runs are incomplete there")
    assert "refused" in warning


def check_event_files(into: Path) -> None:
    """TensorBoard has each epoch of the records once, whichever driver wrote it."""
    done: dict[str, dict[int, float]] = {}
    for event in events_of(into):
        if isinstance(event, ev.EpochDone):
            done.setdefault(str(event.trial), {})[int(event.epoch)] = event.value
    folder = into / "tensorboard"
    assert {path.name for path in folder.iterdir()} == {*done, "study"}
    for label, values in done.items():
        reader = EventAccumulator(str(folder / label))
        reader.Reload()
        told = [(event.step, event.value) for event in reader.Scalars("accuracy")]
        assert told == [(epoch, pytest.approx(value)) for epoch, value in sorted(values.items())]


def test_fp16_without_a_gpu_is_refused_before_any_worker_starts(
    study: Path, tmp_path: Path
) -> None:
    manifest = load_yaml(study.read_text())
    manifest["spec"]["compute"] = {"precision": "FP16"}
    study.write_text(dump_yaml(manifest))
    run = start(study, tmp_path / "run")
    assert run.wait(timeout=240) == 1
    status = load_yaml((tmp_path / "run" / "study.yaml").read_text())["status"]
    failed = next(c for c in status["conditions"] if c["type"] == "Failed")
    assert failed["reason"] == "InvalidSpec"
    assert failed["message"].startswith("spec.compute.precision: must be FP32 or BF16")
    assert not (tmp_path / "run" / "records").exists() or not events_of(tmp_path / "run")


def test_data_that_cannot_be_used_fail_the_run_with_the_field(
    study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = load_yaml(study.read_text())
    manifest["spec"]["dataset"]["labelColumn"] = "author"
    study.write_text(dump_yaml(manifest))
    plan = [sys.executable, "-m", "finetune_trainer.cli", "plan", str(study)]
    assert subprocess.run(plan, check=False).returncode == 2
    planned = capfd.readouterr().err
    run = start(study, tmp_path / "run")
    assert run.wait(timeout=240) == 1
    status = load_yaml((tmp_path / "run" / "study.yaml").read_text())["status"]
    failed = next(c for c in status["conditions"] if c["type"] == "Failed")
    assert (failed["status"], failed["reason"]) == ("True", "DataError")
    assert "spec.dataset.labelColumn" in failed["message"]
    assert failed["message"] in planned


def test_rows_are_those_of_the_first_slot_that_was_ready() -> None:
    began: list[ev.Event] = [
        ev.TermStarted(0, term=1),
        ev.Inherited(0, trials=[]),
        ev.Proposed(1, trial=0, params={}),
    ]
    check_same_data([], "new")  # nothing has trained yet
    check_same_data(began, "new")
    ready = [*began, ev.SlotReady(2, slot="a/1", data="old", setting={}), ev.TermStarted(3, term=2)]
    check_same_data(ready, "old")
    for more in ([], [ev.SlotReady(4, slot="b/1", data="new", setting={})]):
        with pytest.raises(DataError, match=r"began with \(.* was old, now it is new\)") as error:
            check_same_data([*ready, *more], "new")
        assert error.value.field == "spec.dataset"


@pytest.mark.slow  # a disk is mounted, by root
def test_a_run_waits_for_its_disk_and_says_so(study: Path, tmp_path: Path) -> None:
    """It is unmounted while the data are prepared, and then has no room for the final model."""
    said = tmp_path / "said.txt"
    with disk_of(tmp_path, 200) as disk:
        into = disk.place / "run"
        shutil.copy(tmp_path / "rows.csv", disk.place)
        manifest = load_yaml(study.read_text())
        changes = {"freeze": "Encoder", "epochs": 2, "maxLength": 16, "batchSize": 16}
        manifest["spec"] |= {"hyperparameters": changes, "budget": {"maxTrials": 2}}
        manifest["spec"]["dataset"]["files"]["train"] = str(disk.place / "rows.csv")
        del manifest["spec"]["tracking"]
        study.write_text(dump_yaml(manifest))
        run = start(study, into, said)

        def until_said(words: str) -> None:
            until(lambda: words in said.read_text(), run)

        until((into / "records" / "study.json").is_file, run)
        disk.go_away()
        until_said("the data cannot be read: records/study.json is not there; waiting")
        disk.fill(20_000_000)
        disk.come_back()
        until_said("storage is back")
        until_said(f"storage {into} cannot be written: No space left on device; waiting")
        disk.free()
        assert run.wait(timeout=240) == 0, said.read_text()
        check_records(into, 2)
        assert (into / "model" / "model.safetensors").stat().st_size > 80_000_000


class Documents(LocalSink):
    """Keeps all that a driver has told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.all: list[StudyProgress] = []

    def publish(self, progress: StudyProgress, judged_by: Limits | None = None) -> None:
        self.all.append(progress)


def test_a_driver_waits_for_a_server_until_it_is_told_to_end(study: Path, tmp_path: Path) -> None:
    """The first thing it needs is not there; nobody knows whether it will be."""
    store, sink = StoreProcess(tmp_path / "store"), Documents(tmp_path / "local")
    resources = SlotResources(1, 0)
    driver = Driver(Workplace(read_study(study), tmp_path, store.uri, sink, 1, resources))

    def end() -> None:
        while sink.all[-1:] == [] or sink.all[-1].reason != "StorageUnavailable":
            time.sleep(0.1)
        driver.drain()

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    last = driver.run()
    ending.join()
    sink.release()
    waited = next(told for told in sink.all if told.reason == "StorageUnavailable")
    assert waited.phase == "Preparing"
    trouble = "storage s3://bucket/studies/one cannot be read: AWS Error NETWORK_CONNECTION"
    assert waited.message.startswith(trouble)
    assert (last.phase, last.reason) == ("Drained", "SuspendRequested")
    assert last.message.startswith(f"told to end while {trouble}")
