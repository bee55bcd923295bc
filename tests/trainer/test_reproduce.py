"""A trial trained once more comes out the same to the last bit, or what is not the same is named."""

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.manifest import dump_yaml, load_yaml, read_study
from finetune_trainer.cli import main
from finetune_trainer.data import prepare
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import RecordLog
from finetune_trainer.reproduce import reproduce
from finetune_trainer.storage.folder import Storage
from tests.records import events_of
from tests.trainer.conftest import ROOT, MakeSpec
from tests.trainer.one_slot import run_study

TRIALS = 3


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """Those of this process again, after all that were set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_rows(examples: Path, path: Path, rows: int) -> None:
    lines = (examples / "data" / "library.csv").read_text().splitlines()
    path.write_text("\n".join(lines[: rows + 1]) + "\n")


def write_study(folder: Path, examples: Path) -> Path:
    """The manifest of a small study in `folder`."""
    (folder / "models").symlink_to(examples / "models")
    write_rows(examples, folder / "rows.csv", 60)
    manifest = load_yaml((ROOT / "examples" / "library.yaml").read_text())
    manifest["spec"] |= {
        "hyperparameters": {"epochs": 2, "maxLength": 16, "encoderLayers": 2},
        "searchSpaces": [{"learningRate": {"min": 1e-4, "max": 6e-4, "scale": "Log"}}],
        "budget": {"maxTrials": TRIALS},
        "refit": False,
    }
    manifest["spec"]["dataset"]["files"]["train"] = "rows.csv"
    manifest["spec"]["dataset"]["split"]["stratify"] = False
    path = folder / "study.yaml"
    path.write_text(dump_yaml(manifest))
    return path


@pytest.fixture(scope="module")
def study(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a small study that has been run, in this process, in `run` beside it."""
    path = write_study(tmp_path_factory.mktemp("study"), examples)
    spec = read_study(path).spec
    run_study(spec, prepare(spec, path.parent), path.parent / "run")
    return path


@pytest.fixture(scope="module")
def real(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, run by `finetune run`."""
    path = write_study(tmp_path_factory.mktemp("study"), examples)
    arguments = [str(path), "--into", str(path.parent / "run"), "--slots", "1"]
    command = [sys.executable, "-m", "finetune_trainer.cli", "run", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    return path


def again(study: Path, trial: int, into: Path | None = None) -> int:
    return main(
        ["run", str(study), "--into", str(into or study.parent / "run"), "--trial", str(trial)]
    )


@pytest.mark.slow
def test_the_records_say_with_what_and_from_which_seed_each_trial_was_trained(real: Path) -> None:
    events = events_of(real.parent / "run")
    slots = {event.slot: event for event in events if isinstance(event, ev.SlotReady)}
    started = [event for event in events if isinstance(event, ev.Started)]
    assert {event.slot for event in started} <= set(slots)
    assert (
        len({event.seed for event in started}) == len({event.trial for event in started}) == TRIALS
    )
    (slot,) = slots.values()
    for name in (
        *("transformers", "tokenizers", "peft", "datasets", "scikit-learn", "ray", "numpy"),
        "finetune-operator",
    ):
        assert slot.setting[name] == version(name)
    assert slot.setting["torch"] == torch.__version__
    assert slot.setting["threads"] == str(os.cpu_count())
    assert slot.setting["precision"] == "FP32"
    assert {"python", "cpu"} <= set(slot.setting)
    assert slot.data == prepare(read_study(real).spec, real.parent).fingerprint


@pytest.mark.slow
def test_a_trial_of_a_real_run_comes_out_the_same(
    real: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in (real.parent / "run").rglob("*"))
    best = load_yaml((real.parent / "run" / "study.yaml").read_text())["status"]["best"]
    assert again(real, best["trial"]) == 0
    shown = capsys.readouterr().out
    assert f"trial {best['trial']} came out the same, to the last bit" in shown
    assert shown.count("recorded") == shown.count("now") == 2  # with a promotion between its epochs
    assert shown.count(f"{best['value']:.8g}") >= 2
    assert sorted(path for path in (real.parent / "run").rglob("*")) == before


def test_what_is_not_the_same_is_named(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records of another version, with another accuracy."""
    into = tmp_path / "run"
    log, history = RecordLog.start(copied(study, into), 9, time.time())
    done = next(e for e in history.events if isinstance(e, ev.EpochDone) and e.trial == 0)
    (slot,) = (event for event in history.events if isinstance(event, ev.SlotReady))
    other = {**done.metrics, "accuracy": done.metrics["accuracy"] + 2**-40}
    log.append(
        [replace(slot, setting={**slot.setting, "torch": "1.0"}), replace(done, metrics=other)]
    )
    assert again(study, 0, into) == 1
    shown = capsys.readouterr().out
    values = f"{other['accuracy']} then, {done.metrics['accuracy']} now"
    assert f"trial 0: accuracy after epoch 1: {values}" in shown
    assert f"torch: 1.0 then, {torch.__version__} now" in shown


def copied(study: Path, into: Path) -> Storage:
    storage = Storage.open(str(into))
    storage.upload(study.parent / "run" / "records", "records")
    return storage


def test_rows_that_have_changed_are_refused(
    study: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").symlink_to(examples / "models")
    (tmp_path / "study.yaml").write_text(study.read_text())
    write_rows(examples, tmp_path / "rows.csv", 61)
    assert again(tmp_path / "study.yaml", 0, study.parent / "run") == 2
    assert "spec.dataset: must give the rows that trial 0 was trained on" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_does_not_go_on_with_rows_that_have_changed(
    real: Path, examples: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").symlink_to(examples / "models")
    (tmp_path / "study.yaml").write_text(real.read_text())
    copied(real, tmp_path / "run")
    command = [sys.executable, "-m", "finetune_trainer.cli", "run", str(tmp_path / "study.yaml")]
    command += ["--into", str(tmp_path / "run"), "--slots", "1"]

    def again(rows: int) -> tuple[int, dict[str, Any]]:
        write_rows(examples, tmp_path / "rows.csv", rows)
        run = subprocess.run(command, check=False, capture_output=True, timeout=900)
        status = load_yaml((tmp_path / "run" / "study.yaml").read_text())["status"]
        return run.returncode, {each["type"]: each for each in status["conditions"]}

    before = [event for event in events_of(tmp_path / "run") if isinstance(event, ev.SlotReady)]
    code, conditions = again(61)
    assert code == 1
    assert conditions["Failed"]["reason"] == "DataError"
    message = conditions["Failed"]["message"]
    assert message.startswith("spec.dataset: must give the rows that the study began with")
    assert before[0].data in message
    assert "start a study with another name" in message
    code, conditions = again(60)
    assert code == 0
    assert conditions["Complete"]["status"] == "True"


def test_a_trial_of_a_gpu_is_trained_again_without_one(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    into = tmp_path / "run"
    log, history = RecordLog.start(copied(study, into), 9, time.time())
    (slot,) = (event for event in history.events if isinstance(event, ev.SlotReady))
    log.append([replace(slot, setting={**slot.setting, "gpu": "NVIDIA H100"})])
    assert again(study, 0, into) == 0
    assert "gpu: NVIDIA H100 then, unknown now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("trial", "folder", "message"),
    [
        (TRIALS, "run", f"--trial: must be one of 0 to {TRIALS - 1} (got {TRIALS})"),
        (-1, "run", f"--trial: must be one of 0 to {TRIALS - 1} (got -1)"),
        (0, "nowhere", "--into: must be a folder with the records of the study (got "),
    ],
)
def test_a_trial_that_is_not_there_is_refused(
    trial: int, folder: str, message: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(study, trial, study.parent / folder) == 2
    assert message in capsys.readouterr().err
    assert not (study.parent / "nowhere").exists()


def test_records_of_another_study_are_refused(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = load_yaml(study.read_text())
    other["spec"]["hyperparameters"]["epochs"] = 3
    path = study.with_name("other.yaml")
    path.write_text(dump_yaml(other))
    assert again(path, 0) == 2
    assert "spec.hyperparameters.epochs: must be 2, as when the records" in capsys.readouterr().err


RATES = [{"learningRate": {"values": [1e-5, 1e-4, 3e-4]}}]
KINDS: dict[str, dict[str, Any]] = {
    "a member of PBT that took over weights": {
        "search": {
            "algorithm": "PBT",
            "populationSize": 2,
            "points": [
                {"learningRate": 1e-2},
                {"learningRate": 1e-4},
            ],  # the first is the worse one
        },
        "searchSpaces": [{"learningRate": {"min": 1e-6, "max": 1e-2, "scale": "Log"}}],
        "hyperparameters": {"epochs": 2},
    },
    "folds and repeats": {
        "validation": {"crossValidation": {"folds": 2, "stratify": False}, "repeats": 2},
    },
    "a larger sample of rows": {
        "search": {
            "algorithm": "Grid",
            "scheduler": {"type": "ASHA", "resource": "Samples", "minResource": 6},
        },
        "searchSpaces": RATES,
    },
    "a promotion within an epoch": {
        "search": {"algorithm": "Grid", "scheduler": {"type": "ASHA", "minResource": 0.25}},
        "searchSpaces": RATES,
    },
}


def rows_of(folder: Path, examples: Path, rows: int = 24) -> dict[str, Any]:
    write_rows(examples, folder / "rows.csv", rows)
    return {"files": {"train": str(folder / "rows.csv")}, "split": {"stratify": False}}


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_of_training_comes_out_the_same(
    kind: str, make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    changes = dict(KINDS[kind])
    small = {"encoderLayers": 1, "maxLength": 8, "batchSize": 4}
    fixed = {"epochs": 1, **small, **changes.pop("hyperparameters", {})}
    dataset = rows_of(tmp_path, examples)
    # With a metric that tells any two trials apart.
    given = {"dataset": dataset, "objective": {"metric": "loss"}, "hyperparameters": fixed}
    spec = make_spec(refit=False, **given, **changes)
    events = run_study(spec, prepare(spec, tmp_path), tmp_path / "run")
    done: dict[int, list[ev.EpochDone]] = defaultdict(list)
    for event in events:
        if isinstance(event, ev.EpochDone):
            done[event.trial].append(event)
    proposed = [event for event in events if isinstance(event, ev.Proposed)]
    inherited = [
        event.trial
        for event in proposed
        if event.parent is not None and event.params != proposed[event.parent].params
    ]
    trial = inherited[-1] if inherited else max(done, key=lambda number: len(done[number]))
    comparison = reproduce(spec, tmp_path, tmp_path / "run", trial)
    assert [run.first_difference for run in comparison.runs if run.first_difference] == []
    assert comparison.setting.keys() <= {"commit"}  # which may come while the test runs
    evaluated = [(epoch, run.name) for run in comparison.runs for epoch in run.epochs]
    assert len(evaluated) == len(done[trial]) > (0 if inherited else 1)
    assert bool(inherited) == (kind == "a member of PBT that took over weights")


def test_a_trial_that_diverged_does_so_again(
    make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    numbers = "\n".join(f"a text,{number}e37" for number in range(24))
    (tmp_path / "numbers.csv").write_text(f"text,y\n{numbers}\n")
    dataset = {"files": {"train": str(tmp_path / "numbers.csv")}, "labelColumn": "y"}
    objective = {"metric": "rmse"}
    unstable = {"optimizer": "SGD", "maxGradNorm": 1e6, "epochs": 2, "encoderLayers": 1}
    rates = [{"learningRate": {"values": [1.0]}}]
    given: dict[str, Any] = {"hyperparameters": unstable, "searchSpaces": rates}
    spec = make_spec(task="Regression", dataset=dataset, objective=objective, refit=False, **given)
    run_study(spec, prepare(spec, tmp_path), tmp_path / "run")
    comparison = reproduce(spec, tmp_path, tmp_path / "run", 0)
    (run,) = comparison.runs
    assert run.then.failure == run.now.failure
    assert run.then.failure.startswith("Diverged: ")
    assert comparison.same
