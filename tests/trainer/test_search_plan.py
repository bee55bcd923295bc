"""What a study will cost, said before it runs."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_api.plan import make_plan
from finetune_api.status import PlannedRung
from finetune_api.study import StudySpec
from finetune_trainer.records import events as ev
from finetune_trainer.search.decisions import next_item, starting
from finetune_trainer.search.items import TrainItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState
from tests.trainer.search_studies import ASHA, epoch_done, study_spec


def test_a_list_of_grids_counts_each_combination_once() -> None:
    spec = study_spec(
        searchSpaces=[
            {"batchSize": {"values": [8, 16, 32]}, "weightDecay": {"values": [0.0, 0.01, 0.1]}},
            {"batchSize": {"values": [8, 16]}, "weightDecay": {"values": [0.0, 0.5]}},
        ],
        search={"algorithm": "Grid"},
        budget={},
    )
    plan = make_plan(spec)
    assert plan.trials == 9 + 4 - 2
    assert plan.rungs == [PlannedRung(resource=9, trials=11, epochs=99)]
    assert plan.expected_epochs == plan.worst_case_epochs == 99


def test_a_finite_space_limits_random_trials() -> None:
    spec = study_spec(searchSpaces=[{"batchSize": {"values": [8, 16, 32]}}])
    assert make_plan(spec).trials == 3


def test_without_a_limit_of_trials_nothing_is_promised() -> None:
    plan = make_plan(study_spec(budget={"maxDurationSeconds": 60}))
    assert (plan.trials, plan.rungs, plan.worst_case_epochs) == (None, [], None)


def test_searched_epochs_are_planned_at_their_most() -> None:
    spec = study_spec(
        hyperparameters=None,
        searchSpaces=[{"epochs": {"min": 2, "max": 6}}],
        budget={"maxTrials": 4},
    )
    plan = make_plan(spec)
    assert (plan.trials, plan.expected_epochs, plan.worst_case_epochs) == (4, None, 24)


def test_asha_plans_the_share_that_each_rung_promotes() -> None:
    plan = make_plan(study_spec(search=ASHA, budget={"maxTrials": 27}))
    assert [(rung.resource, rung.trials) for rung in plan.rungs] == [(1, 27), (3, 9), (9, 3)]
    assert [rung.epochs for rung in plan.rungs] == [27, 2 * 9, 6 * 3]
    assert plan.expected_epochs == 27 + 2 * 9 + 6 * 3
    assert plan.worst_case_epochs == 27 + 2 * 25 + 6 * 23


def searched(spec: StudySpec, value: Callable[[int], float]) -> float:
    """Epochs of a whole search with one slot, if each trial has that value throughout."""
    state = StudyState(Problem.of(spec))
    while isinstance(item := next_item(state, spec.budget, 0.0), TrainItem):
        for event in starting(state, spec.budget, item, "slot/1", 0.0):
            state.apply(event)
        run = state.trials[item.trial].runs[item.run]
        while run.trained < item.to_epoch:
            epoch = min(item.to_epoch, run.trained + 1)
            state.apply(epoch_done(item.trial, epoch, value(item.trial), run=item.run))
        finished = item.to_epoch == spec.max_epochs
        state.apply(ev.Reached(0.0, trial=item.trial, finished=finished, run=item.run))
    return state.epochs_trained


SCHEDULERS: dict[str, dict[str, Any]] = {
    "ASHA": {},
    "SuccessiveHalving": {},
    "Hyperband": {},
    "MedianStop": {},
    "ASHA brackets": {"type": "ASHA", "brackets": 2},
    "ASHA fractions": {"type": "ASHA", "minResource": 0.5},
    "ASHA folds": {"type": "ASHA", "resource": "Folds"},
    "Hyperband folds": {"type": "Hyperband", "resource": "Folds", "reductionFactor": 2},
}


@pytest.mark.parametrize("trials", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("order", ["rising", "falling"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_search_exceeds_its_worst_case(trials: int, order: str, scheduler: str) -> None:
    folds = {"crossValidation": {"folds": 4}} if "folds" in scheduler else {}
    search = {**ASHA, "scheduler": {"type": scheduler, **SCHEDULERS[scheduler]}}
    spec = study_spec(search=search, budget={"maxTrials": trials}, validation=folds)
    plan = make_plan(spec)
    if order == "rising":
        assert searched(spec, lambda trial: float(trial)) == plan.worst_case_epochs
    else:
        assert searched(spec, lambda trial: float(-trial)) == plan.expected_epochs


@pytest.mark.parametrize("trials", [1, 3, 9, 17])
@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_pasha_stays_below_its_plan(trials: int, order: int) -> None:
    """It opens a rung only where the ranks of trials change: what is planned is what it may need."""
    search = {**ASHA, "scheduler": {"type": "PASHA"}}
    spec = study_spec(search=search, budget={"maxTrials": trials})
    worst = make_plan(spec).worst_case_epochs
    assert worst is not None
    assert 0 < searched(spec, lambda trial: float(order * trial)) <= worst


def test_samples_are_planned_once_the_rows_are_known() -> None:
    search = {**ASHA, "scheduler": {"type": "ASHA", "resource": "Samples", "minResource": 100}}
    spec = study_spec(search=search, budget={"maxTrials": 9})
    assert make_plan(spec).rungs == []
    plan = make_plan(spec, rows=600)
    assert [(rung.resource, rung.trials) for rung in plan.rungs] == [(100, 9), (300, 3), (600, 1)]
    assert [rung.epochs for rung in plan.rungs] == [9 * 9 * 100 / 600, 9 * 3 * 300 / 600, 9]
    assert plan.expected_epochs == 9 * (9 * 100 / 600 + 3 * 300 / 600 + 1)


def test_folds_and_repeats_multiply_the_trainings() -> None:
    spaces = [
        {"batchSize": {"values": [8, 16, 32]}, "weightDecay": {"values": [0.0, 0.01, 0.1]}},
        {"batchSize": {"values": [64, 128]}, "weightDecay": {"values": [0.0, 0.2, 0.5]}},
    ]
    spec = study_spec(
        searchSpaces=spaces,
        search={"algorithm": "Grid"},
        budget={"pricePerGpuHour": 2.0},
        validation={"crossValidation": {"folds": 3}},
    )
    plan = make_plan(spec, gpu_seconds_per_epoch=40)
    assert (plan.trials, plan.trainings) == (15, 45)
    assert plan.worst_case_epochs == 45 * 9
    assert plan.worst_case_gpu_hours == 45 * 9 * 40 / 3600
    assert plan.worst_case_price == 45 * 9 * 40 / 3600 * 2


def test_constraints_and_population_count_in_the_plan() -> None:
    space = {"batchSize": {"values": [8, 16, 32]}, "gradientAccumulation": {"values": [1, 2, 4]}}
    search: dict[str, Any] = {
        "algorithm": "Grid",
        "constraints": ["batchSize * gradientAccumulation <= 32"],
    }
    assert make_plan(study_spec(searchSpaces=[space], search=search, budget={})).trials == 6
    search = {"algorithm": "PBT", "populationSize": 4, "perturbationInterval": 2}
    plan = make_plan(study_spec(search=search, budget={}))
    assert plan.trials == 4 * 5
    assert plan.expected_epochs == plan.worst_case_epochs == 4 * 9
    assert [(rung.resource, rung.trials) for rung in plan.rungs] == [
        (e, 4) for e in (2, 4, 6, 8, 9)
    ]
    assert [rung.epochs for rung in plan.rungs] == [8, 8, 8, 8, 4]


def test_slots_side_by_side_can_promote_every_trial() -> None:
    spec = study_spec(search=ASHA, budget={"maxTrials": 5}, cluster={"workers": 5})
    assert make_plan(spec).worst_case_epochs == 5 * 9
    spec = study_spec(
        search=ASHA, budget={"maxTrials": 5, "maxParallelTrials": 1}, cluster={"workers": 5}
    )
    assert make_plan(spec).worst_case_epochs == 5 + 3 * 2 + 1 * 6


def test_constraints_are_counted_for_a_while_only() -> None:
    space = {
        "learningRate": {"values": [rate / 1e5 for rate in range(1, 65)]},
        "weightDecay": {"values": [decay / 1e3 for decay in range(64)]},
        "warmupRatio": {"values": [share / 100 for share in range(64)]},
    }
    search = {"algorithm": "Random", "constraints": ["learningRate > 1.0"]}
    spec = study_spec(searchSpaces=[space], search=search, budget={"maxTrials": 10_000})
    assert make_plan(spec).trials == 10_000, "that none is left is found out by the driver"
