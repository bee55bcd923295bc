"""What people see: findings that fit into a status, and a table with a row a trial."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from finetune_api.combinations import Params
from finetune_api.hyperparameters import Scalar
from finetune_api.status import MAX_PROGRESS_BYTES, MAX_TOP_TRIALS
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import read_history
from finetune_trainer.search.items import TrainItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.results import findings, table, write_tables
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from tests.trainer.search_studies import ASHA, Driver, epoch_done, study_spec

pytestmark = pytest.mark.in_memory

SPEC = study_spec(search=ASHA, refit=False)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path))


def finished(storage: Storage) -> StudyState:
    driver = Driver(SPEC, storage, 1)
    driver.run()
    return driver.state


def test_findings_name_the_best_trials_in_order(storage: Storage) -> None:
    found = findings(finished(storage), SPEC.budget, storage, 0.0)
    values = [trial.value for trial in found.top_trials]
    assert values == sorted(values, reverse=True)
    assert len(values) == MAX_TOP_TRIALS
    assert found.best == found.top_trials[0]
    assert found.best.epoch == 9
    assert found.best.metrics["accuracy"] == found.best.value
    assert found.results_uri == storage.uri("results")
    assert found.trials.planned == 12
    assert found.trials.completed + found.trials.stopped == 12
    assert found.trials.summary == "12/12"


def test_findings_of_a_running_study_count_every_trial_once(storage: Storage) -> None:
    driver = Driver(SPEC, storage, 1)
    for _ in range(8):
        decision = driver.decide()
        for report in driver.work(decision):  # type: ignore[arg-type]  # the search is not over
            driver.write(*report)
    driver.decide()
    counts = findings(driver.state, SPEC.budget, storage, 0.0).trials
    assert counts.running == 1
    trials = counts.running + counts.paused + counts.completed + counts.stopped
    assert trials == len(driver.state.trials)
    assert counts.planned == 12
    assert findings(driver.state, SPEC.budget, storage, 0.0).results_uri is None


def test_findings_tell_what_is_spent_and_what_each_budget_leaves(storage: Storage) -> None:
    limits = {"maxTrials": 12, "maxFailedTrials": 2, "maxDurationSeconds": 3600}
    limits["maxTrialsWithoutImprovement"] = 12
    driver = Driver(study_spec(search=ASHA, refit=False, budget=limits), storage, 1)
    begun, budget = driver.clock(), driver.spec.budget
    item = driver.decide()
    assert isinstance(item, TrainItem)
    driver.write(
        ev.Failed(
            driver.clock(), trial=item.trial, failure_class="UserError", message="no such column"
        )
    )
    for _ in range(3):
        item = driver.decide()
        assert isinstance(item, TrainItem)
        for report in driver.work(item):
            driver.write(*report)
    now = begun + 125
    spent = findings(driver.state, budget, storage, now).spending
    assert spent is not None
    assert (spent.seconds, spent.seconds_left) == (120, 3480)
    assert spent.trials_left == 12 - len(driver.state.trials)
    assert spent.failed_trials_left == 1
    assert spent.trials_without_improvement_left == 12 - driver.state.trials_since_best
    assert driver.state.trials_since_best > 0
    driver.run()
    spent = findings(driver.state, budget, storage, now).spending
    assert spent is not None
    left = spent.trials_left, spent.failed_trials_left, spent.seconds_left
    assert left == (None, None, None)
    assert spent.trials_without_improvement_left is None


def test_trials_whose_batches_did_not_fit_are_named(storage: Storage) -> None:
    driver = Driver(SPEC, storage, 1)
    for _ in range(3):
        item = driver.decide()
        assert isinstance(item, TrainItem)
        for report in driver.work(item):
            driver.write(*(_in_parts(event, 4 if item.trial == 1 else 1) for event in report))
    again = StudyState.replayed(Problem.of(SPEC), read_history(storage).events)
    for state in (driver.state, again):
        found = findings(state, SPEC.budget, storage, 0.0, ("a class has few rows",))
        assert found.warnings[0].startswith("memory is short: batches of trials 1 are computed in")
        assert "up to 4 parts" in found.warnings[0]
        assert found.warnings[1:] == ["a class has few rows"]
        assert table(state)["batch_parts"].to_pylist() == [None, 4, None]


def _in_parts(event: ev.Event, parts: int) -> ev.Event:
    return replace(event, parts=parts) if isinstance(event, ev.EpochDone) else event


def test_diverged_and_failed_trials_are_not_among_the_best(storage: Storage) -> None:
    state = StudyState(Problem.of(SPEC))
    for trial, value in enumerate((0.9, 0.8, 0.1)):
        state.apply(ev.Proposed(0.0, trial=trial, params={"learningRate": 1e-3 * (trial + 1)}))
        state.apply(ev.Started(0.0, trial=trial, slot="slot", to_epoch=1))
        state.apply(epoch_done(trial, 1, value))
    state.apply(ev.Failed(0.0, trial=0, failure_class="Diverged", message="nan"))
    state.apply(ev.Failed(0.0, trial=1, failure_class="UserError", message="no"))
    found = findings(state, SPEC.budget, storage, 0.0)
    assert [trial.trial for trial in found.top_trials] == [2]
    assert (found.trials.diverged, found.trials.failed, found.trials.summary) == (1, 1, "2/12")


def test_findings_with_the_longest_params_and_metrics_stay_small(storage: Storage) -> None:
    names = "epochs batchSize gradientAccumulation maxLength optimizer learningRate weightDecay momentum adamBeta1 adamBeta2 adamEpsilon rmspropAlpha lrSchedule warmupRatio maxGradNorm hiddenDropout attentionDropout classifierDropout earlyStoppingPatience"
    params: dict[str, Scalar] = dict.fromkeys(names.split(), 1.23456e-05)
    metrics = {f"precision_weighted_{n}": 0.12345678901234567 for n in range(8)}
    state = StudyState(Problem.of(SPEC))
    for trial in range(10_000):
        state.apply(ev.Proposed(0.0, trial=trial, params={**params, "learningRate": 1e-9 * trial}))
        state.apply(ev.Started(0.0, trial=trial, slot="slot", to_epoch=1))
        state.apply(
            ev.EpochDone(
                0.0,
                trial=trial,
                epoch=1,
                value=trial / 1e4,
                metrics=metrics,
                train_loss=0.1,
                seconds=1.0,
                gpu_seconds=1.0,
            )
        )
        state.apply(ev.Reached(0.0, trial=trial))
    size = len(
        json.dumps(findings(state, SPEC.budget, storage, 0.0).to_json(), separators=(",", ":"))
    )
    assert size < MAX_PROGRESS_BYTES
    assert findings(state, SPEC.budget, storage, 0.0).trials.paused == 10_000


def test_the_table_has_every_trial_with_its_rungs(storage: Storage) -> None:
    state = finished(storage)
    rows = table(state).to_pylist()
    assert [row["trial"] for row in rows] == list(range(12))
    for row, trial in zip(rows, state.trials, strict=True):
        assert row["param_learningRate"] == trial.params["learningRate"]
        assert row["state"] == trial.status
        assert row["epochs"] == row["seconds"] == len(trial.evaluations)
        assert [row[f"value_at_{epochs}"] is not None for epochs in (1, 3, 9)] == [
            len(trial.evaluations) >= epochs for epochs in (1, 3, 9)
        ]
        assert row["value"] == row["metric_accuracy"] == max(e.value for e in trial.evaluations)


def test_the_table_is_written_as_csv_and_parquet(storage: Storage) -> None:
    state = finished(storage)
    write_tables(storage, table(state))
    parquet = pyarrow.parquet.read_table(io.BytesIO(storage.read("results/trials.parquet")))
    assert parquet == table(state)
    as_csv = pyarrow.csv.read_csv(io.BytesIO(storage.read("results/trials.csv")))
    assert as_csv.column_names == parquet.column_names
    assert as_csv["value"].to_pylist() == parquet["value"].to_pylist()


def _table_of(*trials: Params, message: str = "") -> pa.Table:
    state = StudyState(Problem.of(SPEC))
    for number, params in enumerate(trials):
        state.apply(ev.Proposed(0.0, trial=number, params=params))
    if message:
        state.apply(ev.Started(0.0, trial=0, slot="slot/1", to_epoch=1))
        state.apply(ev.Failed(0.0, trial=0, failure_class="UserError", message=message))
    return table(state)


def test_a_table_of_trials_with_different_params_leaves_gaps() -> None:
    found = _table_of({"optimizer": "SGD", "momentum": 0.5}, {"optimizer": "AdamW", "batchSize": 8})
    assert found["param_momentum"].to_pylist() == [0.5, None]
    assert found["param_batchSize"].to_pylist() == [None, 8]
    assert found["param_batchSize"].type == pa.int64()
    assert found["value"].to_pylist() == [None, None]


def test_a_table_without_trials_can_be_written(storage: Storage) -> None:
    write_tables(storage, _table_of())
    assert storage.read("results/trials.csv").startswith(b'"trial","state"')


def test_a_message_over_several_lines_stays_in_its_cell(storage: Storage) -> None:
    message = 'RuntimeError: "x"\n  at line 3, column 4'
    write_tables(storage, _table_of({"batchSize": 8}, message=message))
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    data = io.BytesIO(storage.read("results/trials.csv"))
    assert pyarrow.csv.read_csv(data, parse_options=options)["message"].to_pylist() == [message]
