"""What a study will cost, said before it runs."""

import pytest

from finetune_trainer.search import events as ev
from finetune_trainer.search.plan import PlannedRung, make_plan
from finetune_trainer.search.state import StudyState, TrainItem, next_item
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
    assert plan.rungs == (PlannedRung(9, 11),)
    assert plan.expected_epochs == plan.worst_case_epochs == 99


def test_a_finite_space_limits_random_trials() -> None:
    spec = study_spec(searchSpaces=[{"batchSize": {"values": [8, 16, 32]}}])
    assert make_plan(spec).trials == 3


def test_without_a_limit_of_trials_nothing_is_promised() -> None:
    plan = make_plan(study_spec(budget={"maxDurationSeconds": 60}))
    assert (plan.trials, plan.rungs, plan.worst_case_epochs) == (None, (), None)


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
    assert plan.rungs == (PlannedRung(1, 27), PlannedRung(3, 9), PlannedRung(9, 3))
    assert plan.expected_epochs == 27 + 2 * 9 + 6 * 3
    assert plan.worst_case_epochs == 27 + 2 * 25 + 6 * 23


@pytest.mark.parametrize("trials", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("order", ["rising", "falling"])
@pytest.mark.parametrize("scheduler", ["ASHA", "SuccessiveHalving"])
def test_no_search_exceeds_its_worst_case(trials: int, order: str, scheduler: str) -> None:
    search = {**ASHA, "scheduler": {"type": scheduler}}
    spec = study_spec(search=search, budget={"maxTrials": trials})
    state = StudyState(spec)
    epochs = 0
    while isinstance(item := next_item(state, spec.budget, 0.0), TrainItem):
        if item.trial == len(state.trials):
            state.apply(ev.Proposed(0.0, item.trial, item.params))
        state.apply(ev.Started(0.0, item.trial, "slot", item.to_epoch))
        done = len(state.trials[item.trial].epochs)
        epochs += item.to_epoch - done
        value = item.trial if order == "rising" else -item.trial
        for epoch in range(done + 1, item.to_epoch + 1):
            state.apply(epoch_done(item.trial, epoch, float(value)))
        state.apply(ev.Reached(0.0, item.trial))
    plan = make_plan(spec)
    if order == "rising":
        assert epochs == plan.worst_case_epochs
    else:
        assert epochs == plan.expected_epochs
