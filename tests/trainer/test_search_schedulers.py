"""Schedulers and resources: who goes on, on what, and what a trial's value is then."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finetune_api.plan import make_plan
from finetune_api.rungs import placements, rung_resources
from finetune_api.search import Budget, Scheduler
from finetune_api.status import MAX_SPLITS
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import parts_of
from finetune_trainer.search.brackets import agree, noise
from finetune_trainer.search.decisions import next_item
from finetune_trainer.search.items import RefitItem, TrainItem
from finetune_trainer.search.results import findings, splits, table
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import STUDY
from tests.trainer.search_studies import ROWS, Driver, accuracy, study_spec
from tests.trainer.test_search_state import Desk

pytestmark = pytest.mark.in_memory

SCHEDULERS: dict[str, dict[str, Any]] = {
    "ASHA": {},
    "SuccessiveHalving": {},
    "Hyperband": {},
    "PASHA": {},
    "MedianStop": {"minResource": 3},
}
BEFORE_RULES = Path(__file__).with_name("rungs_before_rules.json")
"""What studies did before the rules of a study were recorded: their items, as [trial, epoch]."""


def scheduler(kind: str, **more: Any) -> dict[str, Any]:
    return {"algorithm": "Random", "seed": 7, "scheduler": {"type": kind, **more}}


def run(folder: Path, **changes: Any) -> Driver:
    driver = Driver(study_spec(**changes), Storage.open(str(folder)), 1)
    driver.run()
    return driver


def trained(driver: Driver) -> list[TrainItem]:
    return [item for item in driver.items if isinstance(item, TrainItem)]


# Rungs and brackets.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "ASHA", "min_resource": 0.25}, (0.25, 0.75, 2.25, 9)),
        ({"type": "ASHA", "resource": "Folds"}, (1, 5)),
        ({"type": "Hyperband", "resource": "Folds", "reduction_factor": 2}, (1, 2, 5)),
        ({"type": "MedianStop", "min_resource": 2}, (2, 4, 6, 8, 9)),
        ({"type": "MedianStop", "resource": "Folds"}, (1, 2, 3, 4, 5)),
        ({"type": "PASHA", "reduction_factor": 2}, (1, 2, 4, 9)),
    ],
)
def test_rungs_of_each_kind(given: dict[str, Any], expected: tuple[float, ...]) -> None:
    assert rung_resources(Scheduler(**given), epochs=9, folds=5) == expected


def test_rungs_without_a_known_end_go_beyond_what_any_trial_has() -> None:
    rows = rung_resources(Scheduler(type="ASHA", resource="Samples", min_resource=10), 9)
    assert rows[:3] == (10, 30, 90)
    assert rows[-1] == 1e9


def test_hyperband_fills_its_brackets_one_after_the_other() -> None:
    made = placements(Scheduler(type="Hyperband"), 3)
    first = [next(made) for _ in range(9 + 5 + 3 + 1)]
    assert Counter((p.bracket, p.first) for p in first) == {
        (0, 0): 9,
        (1, 1): 5,
        (2, 2): 3,
        (3, 0): 1,
    }


def test_brackets_of_asha_take_trials_in_the_same_shares_side_by_side() -> None:
    made = placements(Scheduler(type="ASHA", brackets=2), 3)
    firsts = [next(made).first for _ in range(2000)]
    assert Counter(firsts[:1000])[0] == pytest.approx(Counter(firsts)[0] / 2, abs=1)
    assert 1 < Counter(firsts)[0] / Counter(firsts)[1] < 3
    assert set(firsts[:6]) == {0, 1}


# Who goes on.


def test_hyperband_promotes_within_a_bracket_when_it_is_complete(tmp_path: Path) -> None:
    driver = run(tmp_path, search=scheduler("Hyperband"), budget={"maxTrials": 17})
    state = driver.state
    starts = Counter(trial.bracket for trial in state.trials)
    assert starts == {0: 9, 1: 5, 2: 3}
    ends = Counter((trial.bracket, round(trial.trained)) for trial in state.trials)
    assert ends == {(0, 1): 6, (0, 3): 2, (0, 9): 1, (1, 3): 4, (1, 9): 1, (2, 9): 3}
    best = max((t for t in state.trials if t.bracket == 0), key=lambda t: t.rung_values[0])
    assert best.trained >= 3


def test_slots_fill_the_next_bracket_while_one_waits_for_its_last_trial() -> None:
    desk = Desk(search=scheduler("Hyperband"), budget={"maxTrials": 17})
    items = [desk.start() for _ in range(9)]
    for item in items[:-1]:
        desk.train(item, item.trial / 10)
    assert desk.start().trial == 9  # of the next bracket
    desk.train(items[-1], 0.05)
    assert [desk.start().trial for _ in range(3)] == [7, 6, 5]


def test_brackets_of_asha_start_higher(tmp_path: Path) -> None:
    search = scheduler("ASHA", brackets=2)
    driver = run(tmp_path, search=search, budget={"maxTrials": 12})
    firsts = {trial.bracket: min(trial.rung_values) for trial in driver.state.trials}
    assert firsts == {0: 0, 1: 1}


def test_median_stop_lets_a_trial_go_on_while_it_is_at_least_the_median() -> None:
    desk = Desk(search=scheduler("MedianStop", minResource=3), budget={"maxTrials": 4})
    desk.train(desk.start(), 0.5)
    assert desk.start().to_epoch == 6  # the first is the median of itself
    worse = desk.start()
    assert worse.trial == 1
    desk.train(worse, 0.4)
    assert desk.start().trial == 2  # half of two go on, and one has
    desk.train(TrainItem(2, {}, 3, None, 0), 0.6)
    item = desk.start()
    assert (item.trial, item.to_epoch) == (2, 6)


def test_pasha_adds_a_rung_only_when_the_ranking_changes() -> None:
    def searched(flips: bool) -> list[float]:
        desk = Desk(
            search=scheduler("PASHA", reductionFactor=2),
            objective={"metric": "accuracy", "bestOf": "Last"},
            budget={"maxTrials": 8},
        )
        while isinstance(item := desk.next(), TrainItem):
            item = desk.start()
            quality = 1 - item.trial / 10
            odd = flips and item.to_epoch > 1
            desk.train(item, 1 - quality if odd else quality)
        return sorted(trial.trained for trial in desk.state.trials)

    *others, whole = searched(flips=False)
    assert (max(others), whole) == (2, 9), "only the best goes on, once no other can come"
    assert searched(flips=True)[-2] > 2


def test_rankings_agree_up_to_noise() -> None:
    below, here = {0: 0.5, 1: 0.52, 2: 0.9}, {0: 0.62, 1: 0.6, 2: 0.95}
    assert not agree(below, here, 0.0)
    assert agree(below, here, 0.03)
    curves = {0: [0.1, 0.3, 0.2, 0.4], 1: [0.2, 0.2, 0.3, 0.35], 2: [0.9] * 4}
    assert noise(curves.__getitem__, [0, 1, 2]) == pytest.approx(0.05)
    assert noise(curves.__getitem__, [0, 2]) == 0.0


SMALL = [
    (kind, trials, epochs) for kind in SCHEDULERS for trials, epochs in ((20, 27), (3, 9), (1, 27))
]


@pytest.mark.parametrize(("kind", "trials", "epochs"), SMALL)
def test_small_studies_train_something_whole(
    kind: str, trials: int, epochs: int, tmp_path: Path
) -> None:
    spec = {
        "search": scheduler(kind, **SCHEDULERS[kind]),
        "budget": {"maxTrials": trials},
        "hyperparameters": {"epochs": epochs},
    }
    driver = run(tmp_path, **spec)
    whole = [trial for trial in driver.state.trials if trial.trained == epochs]
    assert len(whole) >= 1
    if kind != "PASHA":  # whose highest rung depends on the results
        planned = make_plan(driver.spec).whole_trials
        assert planned is not None
        assert 1 <= planned <= len(whole)


@pytest.mark.parametrize("begun", json.loads(BEFORE_RULES.read_text()), ids=json.dumps)
def test_a_study_begun_before_rules_goes_on_by_its_own(
    begun: dict[str, Any], tmp_path: Path
) -> None:
    spec = study_spec(
        search={"algorithm": "Random", "seed": 7, "scheduler": begun["scheduler"]},
        budget={"maxTrials": begun["trials"]},
        hyperparameters={"epochs": begun["epochs"]},
    )
    storage = Storage.open(str(tmp_path))
    storage.write(STUDY, json.dumps(parts_of(spec)).encode())
    driver = Driver(spec, storage, 1)
    driver.run()
    assert [[item.trial, item.to_epoch] for item in trained(driver)] == begun["items"]


# Resources.


def test_fractions_of_an_epoch_are_rungs_too(tmp_path: Path) -> None:
    driver = run(tmp_path, search=scheduler("ASHA", minResource=0.5))
    first = trained(driver)[0]
    assert (first.to_epoch, first.checkpoint) == (0.5, None)
    promoted = next(item for item in trained(driver) if item.checkpoint)
    assert promoted.to_epoch == 1.5
    evaluated = [e.epoch for e in driver.state.trials[promoted.trial].evaluations]
    assert evaluated[:3] == [0.5, 1, 1.5]


def test_samples_train_anew_on_more_rows_up_to_all(tmp_path: Path) -> None:
    search = scheduler("SuccessiveHalving", resource="Samples", minResource=10)
    driver = run(tmp_path, search=search, budget={"maxTrials": 27})
    items = trained(driver)
    assert Counter(item.rows for item in items) == {10: 27, 30: 9, 90: 3}
    assert all(item.checkpoint is None and item.to_epoch == 9 for item in items)
    done = [trial for trial in driver.state.trials if trial.status == "Completed"]
    assert len(done) == 3, "what has had all rows has ended"
    best = driver.state.best_trial()
    assert best in done
    assert best is not None
    assert best.best is not None
    assert best.best.value == max(
        accuracy(best.params, epoch, None, 0, ROWS) for epoch in range(1, 10)
    )


def test_seconds_give_a_dear_trial_no_more_than_a_cheap_one(tmp_path: Path) -> None:
    search = scheduler("ASHA", resource="Seconds", minResource=2)
    driver = run(tmp_path, search=search)
    assert [item.to_seconds for item in trained(driver)][:3] == [2, 2, 2]
    assert {round(trial.trained) for trial in driver.state.trials} == {2, 6, 9}
    promoted = next(item for item in trained(driver) if item.to_seconds == 6)
    assert promoted.seconds == 2


def test_folds_the_first_is_the_lowest_rung(tmp_path: Path) -> None:
    driver = run(
        tmp_path,
        search=scheduler("ASHA", resource="Folds"),
        validation={"crossValidation": {"folds": 7}},
        hyperparameters={"epochs": 2},
    )
    runs = Counter(len(trial.runs) for trial in driver.state.trials)
    assert set(runs) <= {1, 3, 7}
    assert runs[1] > runs[3] > 0
    whole = next(trial for trial in driver.state.trials if len(trial.runs) >= 3)
    values = [run.epochs[-1].value for run in whole.planned_runs]
    assert whole.best is not None
    mean = [
        math.fsum(run.at(epoch).value for run in whole.planned_runs) / len(values)  # type: ignore[union-attr]  # all have it
        for epoch in (1, 2)
    ]
    assert whole.best.value == pytest.approx(max(mean))
    best = driver.state.best_trial()
    assert best is not None
    assert len(best.runs) == max(runs), "better known comes before luckier"


def test_cross_validation_has_every_fold_in_records_table_and_findings(tmp_path: Path) -> None:
    driver = run(
        tmp_path,
        validation={"crossValidation": {"folds": 3}, "repeats": 2},
        hyperparameters={"epochs": 2},
        budget={"maxTrials": 3},
    )
    items = trained(driver)
    assert [(item.trial, item.fold, item.run) for item in items[:6]] == [
        (0, fold, run) for run, fold in enumerate((0, 1, 2, 0, 1, 2))
    ]
    assert len({item.seed for item in items[:6]}) == 2  # one for each repeat
    trial = driver.state.trials[0]
    found = splits(driver.state, trial)
    assert [(split.fold, split.repeat) for split in found] == [
        (fold, repeat) for repeat in (0, 1) for fold in (0, 1, 2)
    ]
    assert trial.best is not None
    assert trial.best.deviation is not None
    assert trial.best.standard_error == pytest.approx(trial.best.deviation / math.sqrt(6))
    row = table(driver.state).to_pylist()[0]
    assert [row[f"split{n}_accuracy"] for n in range(6)] == [s.metrics["accuracy"] for s in found]
    assert row["deviation_accuracy"] == pytest.approx(trial.best.deviation)
    assert row["value"] == trial.best.value


def test_the_table_has_every_split_and_the_status_the_first_of_them(tmp_path: Path) -> None:
    validation = {"crossValidation": {"folds": 5}, "repeats": 8}
    driver = run(
        tmp_path,
        validation=validation,
        hyperparameters={"epochs": 1},
        budget={"maxTrials": 1},
    )
    row = table(driver.state).to_pylist()[0]
    assert "split39_accuracy" in row
    best = driver.state.trials[0].best
    assert best is not None
    assert row["deviation_accuracy"] == pytest.approx(best.deviation)
    found = findings(driver.state, driver.spec.budget, driver.storage, 0.0)
    assert found.best is not None
    assert len(found.best.splits) == MAX_SPLITS < 40


def test_folds_of_a_trial_can_train_side_by_side_and_resume_on_their_own() -> None:
    desk = Desk(validation={"crossValidation": {"folds": 3}}, budget={"maxTrials": 1})
    items = [desk.start() for _ in range(3)]
    assert [item.fold for item in items] == [0, 1, 2]
    desk.train(items[0], 0.2)
    desk.train(items[2], 0.4)
    desk.state.apply(ev.Saved(desk.now, trial=0, epoch=4, path="4", run=1))
    desk.state.apply(ev.Requeued(desk.now, trial=0, lost=True, run=1))
    again = desk.start()
    assert (again.run, again.checkpoint) == (1, "4")
    assert desk.statuses() == ["Running"]
    desk.train(again, 0.3)
    assert desk.statuses() == ["Completed"]
    best = desk.state.trials[0].best
    assert best is not None
    assert best.value == pytest.approx(0.3)


def test_a_fold_that_diverges_ends_its_trial_and_the_others_are_not_waited_for() -> None:
    desk = Desk(validation={"crossValidation": {"folds": 3}}, budget={"maxTrials": 2})
    first, second = desk.start(), desk.start()
    desk.fail(first, "Diverged")
    assert desk.statuses() == ["Diverged"]
    assert desk.start().trial == 1  # not the third fold of a lost trial
    desk.train(second, 0.9)
    assert desk.statuses() == ["Diverged", "Running"]


# Values.


def test_the_last_epoch_counts_if_the_objective_says_so() -> None:
    for best_of, expected in (("Max", 0.6), ("Last", 0.1)):
        desk = Desk(objective={"metric": "accuracy", "bestOf": best_of}, budget={"maxTrials": 1})
        item = desk.start()
        for epoch, value in enumerate((0.3, 0.6, 0.1), start=1):
            desk.state.apply(
                ev.EpochDone(
                    0.0,
                    trial=item.trial,
                    epoch=epoch,
                    value=value,
                    metrics={},
                    train_loss=0.1,
                    seconds=1.0,
                    gpu_seconds=0.0,
                )
            )
        best = desk.state.best_trial()
        assert best is not None
        assert best.best is not None
        assert best.best.value == expected


def test_the_front_of_several_objectives_and_the_rule_that_picks_one() -> None:
    objective = {"metric": "accuracy", "secondary": [{"metric": "f1_macro"}, {"metric": "loss"}]}
    desk = Desk(objective=objective, budget={"maxTrials": 5})
    values = ((0.9, 0.1, 0.5), (0.8, 0.3, 0.5), (0.7, 0.2, 0.6), (0.6, 0.9, 0.9), (0.5, 0.1, 0.1))
    for accuracy_, f1, loss in values:
        item = desk.start()
        metrics = {"accuracy": accuracy_, "f1_macro": f1, "loss": loss}
        desk.state.apply(
            ev.EpochDone(
                0.0,
                trial=item.trial,
                epoch=9,
                value=accuracy_,
                metrics=metrics,
                train_loss=0.1,
                seconds=1.0,
                gpu_seconds=0.0,
            )
        )
        desk.state.apply(ev.Reached(0.0, trial=item.trial, finished=True))
    assert [trial.number for trial in desk.state.pareto_front()] == [0, 1, 3, 4]
    desk.end()
    refit = desk.next()
    assert isinstance(refit, RefitItem)
    assert refit.trial == 0


# Draining.


def test_at_the_end_of_a_budget_trials_go_on_to_their_next_rung() -> None:
    desk = Desk(search=scheduler("ASHA"), budget={"maxTrials": 12, "maxDurationSeconds": 60})
    for value in (0.1, 0.3, 0.2):
        desk.train(desk.start(), value)
    promoted, new = desk.start(), desk.start()
    desk.now += 60
    assert desk.end().reason == "BudgetSpent"
    assert desk.next().__class__.__name__ == "Wait"
    desk.train(new, 0.5)
    desk.state.apply(ev.Requeued(desk.now, trial=promoted.trial, lost=True))
    again = desk.start()
    assert (again.trial, again.to_epoch) == (promoted.trial, 3)
    desk.train(again, 0.4)
    assert desk.statuses() == ["Stopped"] * 4
    assert isinstance(desk.next(), RefitItem)


def test_price_ends_the_search_and_can_be_raised() -> None:
    budget = Budget(max_trials=12, price_per_gpu_hour=3600.0, max_price=4.0)
    desk = Desk()
    desk.train(desk.start(budget), 0.5)  # nine epochs of half a second on a GPU
    ending = desk.next(budget)
    assert (ending.reason, ending.message) == ("BudgetSpent", "spec.budget.maxPrice = 4 passed")
    assert isinstance(desk.next(budget.model_copy(update={"max_price": 5.0})), TrainItem)


# Locality.


def test_of_a_rung_the_worker_goes_on_with_a_trial_of_its_own() -> None:
    desk = Desk(search=scheduler("ASHA"), budget={"maxDurationSeconds": 1000})
    trials = [("a", 0.1), ("b", 0.45), ("a", 0.5), ("b", 0.2), ("a", 0.3), ("b", 0.1)]
    for number, (worker, value) in enumerate(trials):
        desk.state.apply(
            ev.Proposed(desk.now, trial=number, params={"learningRate": 1e-3 + number / 1e4})
        )
        desk.state.apply(ev.Started(desk.now, trial=number, slot=f"{worker}/1", to_epoch=1))
        desk.train(TrainItem(number, {}, 1, None, 0), value)
    chosen = {w: next_item(desk.state, desk.spec.budget, desk.now, w) for w in "abc"}
    assert {worker: getattr(item, "trial", None) for worker, item in chosen.items()} == {
        "a": 2,
        "b": 1,
        "c": 2,
    }
