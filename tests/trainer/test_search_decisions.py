"""Each limit of a budget, one step before it and at it; the pure decision over a state written by hand."""

from typing import Any

import pytest

from finetune_api.combinations import Params
from finetune_api.search import Budget
from finetune_trainer.records import events as ev
from finetune_trainer.search.decisions import search_ending
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState
from tests.trainer.search_studies import epoch_done, study_spec


def state_of(*told: ev.Event, **changes: Any) -> StudyState:
    """The state of a study with those events after its first trial has begun, at second 0."""
    spec = study_spec(**changes)
    begun: list[ev.Event] = [ev.TermStarted(0.0, term=1), *proposed(0)]
    return StudyState.replayed(Problem.of(spec), [*begun, *told])


def proposed(trial: int) -> list[ev.Event]:
    """A trial that has begun."""
    params: Params = {"learningRate": 1e-3 + trial / 1e5}
    return [
        ev.Proposed(0.0, trial=trial, params=params),
        ev.Started(0.0, trial=trial, slot="worker/slot", to_epoch=9),
    ]


def reason(state: StudyState, budget: Budget | None = None, now: float = 0.0) -> str | None:
    """Why the search is over, if it is."""
    ending = search_ending(state, budget or Budget(max_trials=12), now)
    return None if ending is None else ending.reason


def loss_done(value: float) -> ev.EpochDone:
    return ev.EpochDone(
        0.0,
        trial=0,
        epoch=1,
        value=value,
        metrics={"loss": value},
        train_loss=0.1,
        seconds=1.0,
        gpu_seconds=0.0,
    )


@pytest.mark.parametrize("target", [0.5, 0.1, 0.3])  # and what no binary fraction is
def test_a_target_is_reached_by_what_is_as_good_or_better(target: float) -> None:
    objective = {"metric": "accuracy", "target": target}
    for value, expected in (
        (target - 0.01, None),
        (target, "TargetReached"),
        (target + 0.01, "TargetReached"),
    ):
        assert reason(state_of(epoch_done(0, 1, value), objective=objective)) == expected


@pytest.mark.parametrize("target", [0.5, 0.1, 0.3])
def test_of_a_loss_a_target_is_reached_by_what_is_as_small_or_smaller(target: float) -> None:
    objective = {"metric": "loss", "target": target}
    for value, expected in (
        (target + 0.01, None),
        (target, "TargetReached"),
        (target - 0.01, "TargetReached"),
    ):
        assert reason(state_of(loss_done(value), objective=objective)) == expected


def test_a_target_counts_the_best_epoch_of_any_trial_that_has_not_failed() -> None:
    objective = {"metric": "accuracy", "target": 0.5}
    fell = [epoch_done(0, 1, 0.5), epoch_done(0, 2, 0.2)]
    assert reason(state_of(*fell, objective=objective)) == "TargetReached"
    failed = [
        epoch_done(0, 1, 0.5),
        ev.Failed(0.0, trial=0, failure_class="Diverged", message="why"),
    ]
    assert reason(state_of(*failed, objective=objective)) is None


def test_seconds_are_spent_when_they_have_passed() -> None:
    budget = Budget(max_duration_seconds=100)
    assert reason(state_of(), budget, now=99.9) is None
    assert reason(state_of(), budget, now=100.0) == "BudgetSpent"
    waited = state_of(ev.Waited(50.0, seconds=20.0))
    assert reason(waited, budget, now=119.9) is None
    assert reason(waited, budget, now=120.0) == "BudgetSpent"


def test_seconds_of_all_terms_count_and_none_in_between() -> None:
    later = [
        epoch_done(0, 1, 0.5, 40.0),
        ev.TermStarted(1000.0, term=2),
        epoch_done(0, 2, 0.5, 1030.0),
        ev.TermStarted(2000.0, term=3),
    ]
    state = state_of(*later)
    assert reason(state, Budget(max_duration_seconds=100), now=2029.9) is None
    assert reason(state, Budget(max_duration_seconds=100), now=2030.0) == "BudgetSpent"


def test_gpu_hours_and_their_price_are_spent_when_they_are_reached() -> None:
    state = state_of(*(epoch_done(0, epoch, 0.5) for epoch in range(1, 5)))
    assert state.gpu_seconds == 2.0
    for hours, expected in ((2.1 / 3600, None), (2.0 / 3600, "BudgetSpent")):
        assert reason(state, Budget(max_trials=12, max_gpu_hours=hours)) == expected
        budget = Budget(max_trials=12, max_price=hours * 3600, price_per_gpu_hour=3600)
        assert reason(state, budget) == expected


def test_so_many_trials_may_fail_and_no_more() -> None:
    told: list[ev.Event] = [epoch_done(0, 1, 0.5), ev.Reached(0.0, trial=0, finished=True)]
    budget = Budget(max_trials=12, max_failed_trials=2)
    for trial in (1, 2):
        told += [
            *proposed(trial),
            ev.Failed(0.0, trial=trial, failure_class="UserError", message="why"),
        ]
        assert reason(state_of(*told), budget) is None
    told += [*proposed(3), ev.Failed(0.0, trial=3, failure_class="Diverged", message="why")]
    assert reason(state_of(*told), budget) is None, "what diverges is a result"
    told += [*proposed(4), ev.Failed(0.0, trial=4, failure_class="UserError", message="why")]
    assert reason(state_of(*told), budget) == "TooManyFailedTrials"


def test_so_many_trials_in_a_row_may_be_no_better() -> None:
    budget = Budget(max_trials=12, max_trials_without_improvement=2)
    told: list[ev.Event] = [epoch_done(0, 1, 0.5), ev.Reached(0.0, trial=0, finished=True)]
    told += [
        *proposed(1),
        epoch_done(1, 1, 0.5),
        ev.Reached(0.0, trial=1, finished=True),
    ]  # as good
    assert reason(state_of(*told), budget) is None
    told += [*proposed(2), ev.Failed(0.0, trial=2, failure_class="Diverged", message="why")]
    assert reason(state_of(*told), budget) == "NoImprovement"
    told[-1:] = [epoch_done(2, 1, 0.6), ev.Reached(0.0, trial=2, finished=True)]
    assert reason(state_of(*told), budget) is None


def test_the_first_three_trials_failing_alike_is_enough() -> None:
    told: list[ev.Event] = [
        ev.Failed(0.0, trial=0, failure_class="UserError", message="no column 7")
    ]
    for trial in (1, 2):
        assert reason(state_of(*told)) is None
        told += [
            *proposed(trial),
            ev.Failed(0.0, trial=trial, failure_class="UserError", message=f"no column {trial}"),
        ]
    assert reason(state_of(*told)) == "TooManyFailedTrials"
    told[-1] = ev.Failed(0.0, trial=2, failure_class="UserError", message="no row 7")
    assert reason(state_of(*told)) is None
