"""A search whose budget is edited, whose trials end early or fail: it goes on, and counts right."""

import asyncio
import multiprocessing
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finetune_api.search import Budget
from finetune_api.status import (
    MAX_PROGRESS_BYTES,
    MAX_SPLITS,
    Findings,
    SplitResult,
    StudyProgress,
    TrialResult,
)
from finetune_trainer.errors import SpecError
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.records.log import RecordLog
from finetune_trainer.runtime.broker import Broker
from finetune_trainer.runtime.progress import encode
from finetune_trainer.search.items import RefitItem, TrainItem, Wait
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.results import findings, table
from finetune_trainer.search.warm_start import inherit
from finetune_trainer.storage.folder import Storage
from tests.trainer.search_studies import ASHA, CONTINUOUS, Driver, epoch_done, study_spec
from tests.trainer.test_search_state import Desk

pytestmark = pytest.mark.in_memory

HALVING = {"algorithm": "Random", "scheduler": {"type": "SuccessiveHalving"}}
PBT = {"algorithm": "PBT", "populationSize": 4, "perturbationInterval": 2}
FOLDS = {"crossValidation": {"folds": 3}}


def ends_early(desk: Desk, item: TrainItem, value: float) -> None:
    """The item's trial ends by its own patience, at its first epoch."""
    epoch = int(item.checkpoint or 0) + 1
    desk.state.apply(epoch_done(item.trial, epoch, value, desk.now))
    desk.state.apply(ev.Reached(desk.now, trial=item.trial, finished=True))


def climb(desk: Desk, budget: Budget | None = None) -> Counter[float]:
    """Train whatever is promoted, to the end; how many items went to each epoch."""
    trained: Counter[float] = Counter()
    while isinstance(desk.next(budget), TrainItem):
        item = desk.start(budget)
        desk.train(item, item.trial / 100)
        trained[item.to_epoch] += 1
    return trained


# Budgets that are edited.


def test_a_lowered_budget_lets_what_is_there_go_on() -> None:
    desk = Desk(search=ASHA, budget={"maxTrials": 30})
    for item in [desk.start() for _ in range(12)]:
        desk.train(item, item.trial / 100)
    fewer = Budget(max_trials=8)
    promoted = [desk.start(fewer) for _ in range(4)]
    assert [item.trial for item in promoted] == [11, 10, 9, 8]
    assert {desk.state.trials[item.trial].level for item in promoted} == {1}
    assert desk.statuses().count("Running") == 4
    assert desk.statuses().count("Stopped") == 8


def test_halving_goes_on_when_a_budget_is_raised_after_its_first_promotions() -> None:
    desk = Desk(search=HALVING, budget={"maxTrials": 9})
    for item in [desk.start() for _ in range(9)]:
        desk.train(item, item.trial / 100)
    desk.train(desk.start(desk.spec.budget), 0.5)
    assert desk.statuses().count("Stopped") == 6
    more = Budget(max_trials=27)
    for item in [desk.start(more) for _ in range(18)]:
        desk.train(item, item.trial / 100)
    assert climb(desk, more) == {3: 9, 9: 3}


def test_one_parallel_trial_trains_its_folds_side_by_side() -> None:
    desk = Desk(validation=FOLDS, budget={"maxTrials": 4, "maxParallelTrials": 1})
    items = [desk.start() for _ in range(3)]
    assert [(item.trial, item.fold) for item in items] == [(0, 0), (0, 1), (0, 2)]
    assert desk.next() == Wait()


def test_at_the_end_of_a_budget_a_trial_trains_its_other_folds_too() -> None:
    desk = Desk(validation=FOLDS, budget={"maxTrials": 4})
    desk.train(desk.start(), 0.5)
    desk.state.apply(ev.SearchEnded(desk.now, reason="BudgetSpent", message="time"))
    assert desk.statuses() == ["Pending"]
    for _ in range(2):
        desk.train(desk.start(), 0.6)
    assert desk.statuses() == ["Completed"]
    best = desk.state.best_trial()
    assert best is not None
    assert best.best is not None
    assert best.best.value == pytest.approx((0.5 + 0.6 + 0.6) / 3)


# Trials that end early, or fail.


def test_halving_does_not_wait_for_a_trial_that_has_ended_at_its_rung() -> None:
    desk = Desk(search=HALVING, budget={"maxTrials": 27})
    items = [desk.start() for _ in range(27)]
    for item in items[:-1]:
        desk.train(item, item.trial / 100)
    ends_early(desk, items[-1], 0.99)
    assert climb(desk) == {3: 8, 9: 2}


def test_a_value_that_has_failed_since_is_no_best_to_improve_on() -> None:
    desk = Desk(budget={"maxTrials": 9, "maxTrialsWithoutImprovement": 3})
    first = desk.start()
    desk.state.apply(epoch_done(first.trial, 1, 0.9, desk.now))
    desk.fail(first, "Diverged")
    for value in (0.6, 0.7, 0.8):
        desk.train(desk.start(), value)
    assert isinstance(desk.next(), TrainItem)
    for _ in range(3):
        desk.train(desk.start(), 0.5)
    assert desk.end().reason == "NoImprovement"


def test_a_fold_that_goes_on_after_its_trial_has_failed_is_no_improvement() -> None:
    desk = Desk(validation=FOLDS, budget={"maxTrials": 9})
    items = [desk.start() for _ in range(3)]
    for item in items[:2]:
        desk.train(item, 0.1)
    desk.fail(items[0], "Diverged")
    before = desk.state.trials_since_best
    desk.train(items[2], 0.9)
    assert desk.state.trials_since_best == before
    assert desk.state.best_trial() is None


# Populations.


def test_a_member_that_its_patience_has_ended_is_not_begun_anew() -> None:
    desk = Desk(search=PBT, budget={})
    ended = desk.start()
    ends_early(desk, ended, 0.01)
    while isinstance(desk.next(), TrainItem):
        item = desk.start()
        trial = desk.state.trials[item.trial]
        assert (trial.parent is None) == (item.checkpoint is None)
        assert trial.parent != ended.trial
        desk.train(item, 0.5 + item.trial / 100)
    assert len(desk.state.trials) == 1 + 3 * 5


def test_epochs_of_a_population_are_counted_once() -> None:
    desk = Desk(search=PBT, budget={})
    while isinstance(desk.next(), TrainItem):
        item = desk.start()
        desk.train(item, item.trial / 100)
    trials = [trial.number for trial in desk.state.trials]
    assert 9 + 3 * 2 <= desk.state.epochs_trained <= 4 * 9
    rows = table(desk.state).to_pylist()
    assert [row["trial"] for row in rows] == trials
    assert sum(row["epochs"] for row in rows) == desk.state.epochs_trained
    assert {row["epochs"] for row in rows} <= {1, 2}


# What people are told.


def test_saved_is_what_ended_trials_did_not_train(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    desk = Desk(search=ASHA, budget={"maxTrials": 3})
    items = [desk.start() for _ in range(3)]
    spent = findings(desk.state, desk.spec.budget, storage, 0.0).spending
    assert spent is not None
    assert spent.epochs_saved == 0
    for item in items:
        desk.train(item, item.trial / 100)
    desk.train(desk.start(desk.spec.budget), 0.5)
    spent = findings(desk.state, desk.spec.budget, storage, 0.0).spending
    assert spent is not None
    assert spent.epochs_saved == 2 * 8


def test_a_metric_that_one_fold_does_not_have_is_left_out_of_the_deviation() -> None:
    desk = Desk(validation=FOLDS)
    for number, item in enumerate([desk.start() for _ in range(3)]):
        metrics = {"accuracy": 0.5, **({"roc_auc": 0.7} if number != 1 else {})}
        desk.state.apply(
            ev.EpochDone(
                desk.now,
                trial=0,
                epoch=9,
                value=0.5,
                metrics=metrics,
                train_loss=0.1,
                seconds=1.0,
                gpu_seconds=0.0,
                run=item.run,
            )
        )
        desk.state.apply(ev.Reached(desk.now, trial=0, finished=True, run=item.run))
    (row,) = table(desk.state).to_pylist()
    assert row["deviation_accuracy"] == 0
    assert "deviation_roc_auc" not in row
    assert row["split0_roc_auc"] == row["split2_roc_auc"] == 0.7
    assert "split1_roc_auc" not in row
    assert row["standard_error"] == 0


def test_the_table_has_the_front_of_several_objectives() -> None:
    goals = {"metric": "accuracy", "secondary": [{"metric": "f1_macro"}]}
    desk = Desk(objective=goals)
    for value in (0.9, 0.5, 0.2):  # f1_macro is value * (1 - value)
        desk.train(desk.start(), value)
    assert [row["pareto"] for row in table(desk.state).to_pylist()] == [True, True, False]


def test_a_document_that_is_too_long_loses_the_ends_of_its_lists() -> None:
    metrics = {f"a_rather_long_metric_{n}": 0.123456789012345 for n in range(17)}
    splits = [SplitResult(fold=n % 5, repeat=n // 5, metrics=metrics) for n in range(MAX_SPLITS)]
    trial = TrialResult(trial=1, value=0.5, params={"learningRate": 1e-3}, metrics=metrics)
    found = Findings(
        best=trial.model_copy(update={"splits": splits}),
        top_trials=[trial] * 10,
        pareto_front=[trial] * 10,
        warnings=["w" * 256] * 10,
    )
    written: dict[str, Any] = {
        "study_uid": "u",
        "job_uid": "j",
        "term": 1,
        "phase": "Searching",
        "reason": "Running",
        "time": "2026-01-01T00:00:00Z",
    }
    text = encode(StudyProgress.model_validate({**written, "findings": found}))
    assert len(text.encode()) <= MAX_PROGRESS_BYTES
    read = StudyProgress.model_validate_json(text, by_alias=True)
    assert read.findings.best is not None
    assert read.findings.best.params == trial.params
    assert len(read.findings.pareto_front) > 0
    assert len(read.findings.best.splits) < MAX_SPLITS


# Others.


def test_a_study_that_has_not_ended_teaches_nothing(tmp_path: Path) -> None:
    source = Storage.open(str(tmp_path / "source"))
    spec = study_spec()
    claim(source, parts_of(spec))
    driver = Driver(spec, source, 1)
    driver.decide()
    later = study_spec(
        search={"algorithm": "TPE", "warmStart": [{"uri": "source"}]}, searchSpaces=[CONTINUOUS]
    )
    with pytest.raises(SpecError, match="must be a study that has ended"):
        inherit(later, tmp_path)
    driver = Driver(spec, source, 2)
    driver.run()
    assert inherit(later, tmp_path)


async def _outlived(folder: str) -> None:
    spec = study_spec()
    claim(Storage.open(folder), parts_of(spec))
    broker = Broker(Problem.of(spec), spec.budget, folder, 1)
    assert await broker.begin()
    RecordLog.start(Storage.open(folder), 2, time.time())
    await broker.write_results()


def _run_outlived(folder: str) -> None:
    asyncio.run(_outlived(folder))


def test_a_driver_that_was_followed_by_another_ends_before_it_does_harm(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_run_outlived, args=(str(tmp_path),)
    )
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 1
    assert not (tmp_path / "results").exists()


async def _ended_by_an_edited_target(folder: str) -> None:
    spec = study_spec(budget={"maxTrials": 3})
    claim(Storage.open(folder), parts_of(spec))
    broker = Broker(Problem.of(spec), spec.budget, folder, 1)
    assert await broker.begin()
    item = await broker.next("worker/slot", [])
    assert isinstance(item, TrainItem)
    await broker.epoch("worker/slot", [epoch_done(item.trial, 1, 0.5)])
    assert (await broker.snapshot(spec.budget, 0.6)).outcome is None
    await broker.snapshot(spec.budget, 0.4)
    await asyncio.wait_for(broker.recalled(), 10)
    report: list[ev.Event] = [ev.Requeued(0.0, trial=item.trial)]
    assert isinstance(await broker.next("worker/slot", report), RefitItem)


def test_a_target_that_is_lowered_below_the_best_ends_the_search(tmp_path: Path) -> None:
    asyncio.run(_ended_by_an_edited_target(str(tmp_path)))
