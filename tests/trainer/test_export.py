"""`finetune export`: the trials of a study for other tools."""

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pyarrow.csv
import pyarrow.parquet
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from finetune_trainer.cli import main
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.search.optuna_study import optuna_study, times_of
from finetune_trainer.search.recorded import recorded
from finetune_trainer.storage.folder import Storage
from tests.trainer.search_studies import ASHA, Driver, study_spec

pytestmark = pytest.mark.in_memory

TWO_SPACES = [
    {
        "optimizer": {"values": ["AdamW", "SGD"]},
        "learningRate": {"min": 1e-5, "max": 1e-2, "scale": "Log"},
        "momentum": {"min": 0.5, "max": 0.9, "when": {"optimizer": ["SGD"]}},
    },
    {"learningRate": {"min": 1e-4, "max": 1e-1}, "batchSize": {"min": 8, "max": 64, "step": 8}},
]


def searched(folder: Path, **changes: Any) -> Path:
    """A study of an imaginary model that has ended in `folder`."""
    spec, storage = study_spec(refit=False, **changes), Storage.open(str(folder))
    claim(storage, parts_of(spec))
    Driver(spec, storage, 1, fails=frozenset({3})).run()
    return folder


def test_the_table_of_trials_is_the_one_that_the_study_writes(tmp_path: Path) -> None:
    folder = searched(tmp_path / "study", search=ASHA)
    for suffix in ("csv", "parquet"):
        assert main(["export", str(folder), f"--{suffix}", str(tmp_path / f"t.{suffix}")]) == 0
    found = pyarrow.csv.read_csv(tmp_path / "t.csv")
    assert found.column("trial").to_pylist() == [*range(12)]
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").column_names == found.column_names


def test_optuna_reads_every_trial_from_the_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = searched(tmp_path / "study", search=ASHA), tmp_path / "study.db"
    for _ in range(2):  # the second time it replaces the first
        assert main(["export", str(folder), "--optuna", str(path)]) == 0
    assert f"optuna-dashboard sqlite:///{path}" in capsys.readouterr().err
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        study = optuna.load_study(study_name="study", storage=storage)
        expected = recorded(folder).state
        assert len(study.trials) == len(expected.trials) == 12
        for trial, known in zip(study.trials, expected.trials, strict=True):
            assert (trial.number, trial.params) == (known.number, known.params)
            (rate,) = trial.distributions.values()
            assert rate == FloatDistribution(1e-5, 1e-1, log=True)
            assert (
                trial.state.name
                == {
                    "Completed": "COMPLETE",
                    "Stopped": "PRUNED",
                    "Failed": "FAIL",
                }[known.status]
            )
            assert trial.user_attrs["state"] == known.status
            assert trial.datetime_start is not None
            assert trial.datetime_complete is not None
            assert trial.datetime_start < trial.datetime_complete
            if known.best is not None and known.status != "Failed":
                assert trial.values == [known.best.value]
                assert trial.user_attrs["metric_accuracy"] == known.best.value
            assert trial.intermediate_values == {int(e.epoch): e.value for e in known.evaluations}
        states = {trial.state for trial in study.trials}
        assert states == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
        best = expected.best_trial()
        assert best is not None
        assert study.best_trial.number == best.number
    finally:
        storage.engine.dispose()


def test_several_spaces_and_objectives_fit_into_one_study_of_optuna(tmp_path: Path) -> None:
    objective = {"metric": "accuracy", "secondary": [{"metric": "loss"}]}
    found = recorded(searched(tmp_path / "study", searchSpaces=TWO_SPACES, objective=objective))
    study = optuna_study(found.state, times_of(found.events), found.name)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    kinds: dict[str, Any] = {}
    for trial in study.trials:
        kinds |= trial.distributions
    assert kinds["learningRate"] == FloatDistribution(1e-5, 1e-1, log=True)
    assert kinds["batchSize"] == IntDistribution(8, 64)
    assert kinds["optimizer"] == CategoricalDistribution(["AdamW", "SGD"])
    assert kinds["momentum"] == FloatDistribution(0.5, 0.9)


def test_a_study_that_runs_has_trials_that_run(tmp_path: Path) -> None:
    spec, storage = study_spec(search=ASHA), Storage.open(str(tmp_path))
    claim(storage, parts_of(spec))
    driver = Driver(spec, storage, 1)
    for _ in range(5):
        decision = driver.decide()
        for report in driver.work(decision):  # type: ignore[arg-type]  # the search is not over
            driver.write(*report)
    driver.decide()
    found = recorded(tmp_path)
    trials = optuna_study(found.state, times_of(found.events), "now").trials
    assert trials[-1].state == TrialState.RUNNING
    assert trials[-1].datetime_complete is None


def test_rungs_that_are_rows_are_counted(tmp_path: Path) -> None:
    search = {
        "algorithm": "Random",
        "scheduler": {"type": "SuccessiveHalving", "resource": "Samples", "minResource": 10},
    }
    found = recorded(searched(tmp_path / "study", search=search))
    trials = optuna_study(found.state, times_of(found.events), "rows").trials
    levels = [known.rung_values for known in found.state.trials]
    assert [trial.intermediate_values for trial in trials] == levels
    assert max(map(len, levels)) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--csv", "a.csv"], "STUDY: must be the folder of a study"),
        (["study", "--csv", "no/a.csv"], "FILE: must be in a folder that exists"),
        (["study", "--optuna", "notes.txt"], "--optuna: must be a database of Optuna, or a new file"),
        (["study", "--onnx", "a.onnx"], "MODEL: must be the folder of a model"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_said_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    searched(tmp_path / "study")
    (tmp_path / "notes.txt").write_text("no database, but long enough to look at. " * 20)
    assert main(["export", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_other_studies_in_the_database_stay(tmp_path: Path) -> None:
    folder, path = searched(tmp_path / "study"), tmp_path / "study.db"
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    optuna.create_study(study_name="mine", storage=storage)
    storage.engine.dispose()
    assert main(["export", str(folder), "--optuna", str(path)]) == 0
    connection = sqlite3.connect(path)
    names = {name for (name,) in connection.execute("select study_name from studies")}
    connection.close()
    assert names == {"mine", "study"}
