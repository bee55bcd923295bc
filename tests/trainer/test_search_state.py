"""What is done next, by what the records tell and the budget allows."""

from typing import Any

import pytest

from finetune_api.search import Budget
from finetune_api.study import StudySpec
from finetune_trainer.records import events as ev
from finetune_trainer.search.decisions import begun, next_item, search_ending, starting
from finetune_trainer.search.items import End, RefitItem, TrainItem, Wait
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import MAX_LOSSES, MAX_RETRIES, StudyState
from tests.trainer.search_studies import ASHA, epoch_done, study_spec


class Desk:
    """Writes what happens by hand."""

    def __init__(self, **changes: Any) -> None:
        self.spec: StudySpec = study_spec(**changes)
        self.state = StudyState(Problem.of(self.spec))
        self.now = 100.0
        self.state.apply(ev.TermStarted(self.now, term=1))

    def next(self, budget: Budget | None = None) -> Any:
        return next_item(self.state, budget or self.spec.budget, self.now)

    def start(self, budget: Budget | None = None) -> TrainItem:
        item = self.next(budget)
        assert isinstance(item, TrainItem)
        if budget is None:  # nothing is given up
            events = begun(item, "slot/1", self.now)
        else:
            events = starting(self.state, budget, item, "slot/1", self.now)
        for event in events:
            self.state.apply(event)
        return item

    def train(self, item: TrainItem, value: float) -> None:
        """Report all epochs of the item with the same value."""
        seen = int(item.checkpoint or 0)
        for epoch in range(seen + 1, int(item.to_epoch) + 1):
            self.state.apply(epoch_done(item.trial, epoch, value, self.now, item.run))
        path = f"{item.to_epoch:g}"
        self.state.apply(
            ev.Saved(self.now, trial=item.trial, epoch=item.to_epoch, path=path, run=item.run)
        )
        self.state.apply(
            ev.Reached(self.now, trial=item.trial, finished=item.to_epoch == 9, run=item.run)
        )

    def fail(self, item: TrainItem, failure_class: str) -> None:
        self.state.apply(
            ev.Failed(
                self.now, trial=item.trial, failure_class=failure_class, message="why", run=item.run
            )
        )

    def end(self) -> End:
        ending = search_ending(self.state, self.spec.budget, self.now)
        assert ending is not None
        self.state.apply(ev.SearchEnded(self.now, reason=ending.reason, message=ending.message))
        return ending

    def statuses(self) -> list[str]:
        return [trial.status for trial in self.state.trials]


def test_without_a_scheduler_a_trial_is_one_item() -> None:
    desk = Desk()
    item = desk.start()
    assert (item.trial, item.to_epoch, item.checkpoint) == (0, 9, None)
    desk.train(item, 0.5)
    assert desk.statuses() == ["Completed"]
    assert desk.start().trial == 1


def test_a_trial_trains_for_the_epochs_it_was_given() -> None:
    desk = Desk(hyperparameters=None, searchSpaces=[{"epochs": {"values": [2]}}])
    assert desk.start().to_epoch == 2


def test_a_promotion_goes_before_a_new_trial_and_the_highest_first() -> None:
    desk = Desk(search=ASHA)
    for value in (0.1, 0.3, 0.2):
        desk.train(desk.start(), value)
    assert desk.statuses() == ["Paused"] * 3
    item = desk.start()
    assert (item.trial, item.to_epoch, item.checkpoint) == (1, 3, "1")
    desk.train(item, 0.4)
    assert desk.start().trial == 3


@pytest.mark.parametrize(("failure", "expected"), [("UserError", 2), ("Diverged", 3)])
def test_successive_halving_promotes_when_all_trials_have_come(failure: str, expected: int) -> None:
    # A diverged trial is one of the results of which a third go on, one that failed is not.
    search = {"algorithm": "Random", "scheduler": {"type": "SuccessiveHalving"}}
    desk = Desk(search=search, budget={"maxTrials": 9})
    last = [desk.start() for _ in range(9)][8]
    for trial in range(7):
        desk.train(TrainItem(trial, {}, 1, None, 0), trial / 10)
    assert desk.next() == Wait()
    desk.fail(TrainItem(7, {}, 1, None, 0), failure)
    assert desk.next() == Wait()
    desk.train(last, 0.05)
    promoted = [desk.start() for _ in range(expected)]
    assert [(item.trial, item.to_epoch) for item in promoted] == [(6, 3), (5, 3), (4, 3)][:expected]
    assert desk.next() == Wait()
    for item in promoted:
        desk.train(item, 0.9)
    last = desk.start()  # one whole training, of the two as of the three
    assert (last.trial, last.to_epoch) == (min(item.trial for item in promoted), 9)
    desk.train(last, 0.9)
    assert desk.end().reason == "SearchFinished"


def test_successive_halving_takes_in_trials_that_an_edited_budget_adds() -> None:
    search = {"algorithm": "Random", "scheduler": {"type": "SuccessiveHalving"}}
    desk = Desk(search=search, budget={"maxTrials": 3})
    for value in (0.1, 0.3, 0.2):
        desk.train(desk.start(), value)
    more = Budget(max_trials=6)
    for value in (0.5, 0.4, 0.6):
        desk.train(desk.start(more), value)
    assert [desk.start(more).trial for _ in range(2)] == [5, 3]
    assert desk.next(more) == Wait()


def test_a_trial_that_lost_its_slot_goes_on_from_its_checkpoint_before_anything_else() -> None:
    desk = Desk(search=ASHA)
    for value in (0.1, 0.3, 0.2):
        desk.train(desk.start(), value)
    promoted = desk.start()
    desk.state.apply(ev.Requeued(desk.now, trial=promoted.trial))
    assert desk.start() == promoted
    desk.state.apply(ev.Saved(desk.now, trial=promoted.trial, epoch=2, path="2"))
    desk.state.apply(ev.Requeued(desk.now, trial=promoted.trial))
    again = desk.start()
    assert (again.trial, again.to_epoch, again.checkpoint) == (1, 3, "2")


def test_the_seed_of_a_trial_is_its_own_and_fixed_for_good() -> None:
    seeds = [Desk(budget={"maxTrials": 3}).start().seed]
    desk = Desk()
    seeds += [desk.start().seed, desk.start().seed]
    assert seeds == [431379789, 431379789, seeds[2]]
    assert seeds[2] != seeds[0]


def test_epochs_trained_again_after_a_loss_replace_the_earlier_ones() -> None:
    desk = Desk()
    item = desk.start()
    for epoch, value in ((1, 0.3), (2, 0.9)):
        desk.state.apply(epoch_done(item.trial, epoch, value))
    desk.state.apply(ev.Requeued(desk.now, trial=item.trial, lost=True))
    trial = desk.state.trials[0]
    assert trial.best is not None
    assert trial.best.value == 0.9  # it was measured, lost or not
    desk.start()
    desk.state.apply(epoch_done(item.trial, 1, 0.2))
    assert [found.value for found in trial.evaluations] == [0.2]
    assert trial.best.value == 0.2
    assert desk.state.best_trial() is trial
    assert desk.state.gpu_seconds == 1.5  # what was spent stays spent


def test_the_best_is_the_best_epoch_of_any_trial_and_the_earlier_of_equals() -> None:
    desk = Desk(search=ASHA)
    for value in (0.4, 0.6, 0.6):
        desk.train(desk.start(), value)
    best = desk.state.best_trial()
    assert best is not None
    assert best.number == 1


def test_trials_that_are_as_good_share_a_place() -> None:
    desk = Desk()
    for value in (0.5, 0.7, 0.5, 0.4):
        desk.train(desk.start(), value)
    desk.fail(desk.start(), "UserError")
    assert desk.state.places() == {1: 1, 0: 2, 2: 2, 3: 4}


def test_a_minimised_metric_prefers_small_values() -> None:
    desk = Desk(search=ASHA, objective={"metric": "loss", "target": 0.15})
    for value in (0.4, 0.2, 0.6):
        desk.train(desk.start(), value)
    assert desk.start().trial == 1
    desk.state.apply(epoch_done(1, 2, 0.1))
    assert desk.end().reason == "TargetReached"


def test_a_value_that_is_no_number_never_ranks() -> None:
    desk = Desk(search=ASHA)
    for value in (float("nan"), float("nan"), 0.1):
        desk.train(desk.start(), value)
    assert desk.start().trial == 2
    for value in (float("nan"), 0.2):
        desk.train(desk.start(), value)
    assert desk.start().trial == 4
    best = desk.state.best_trial()
    assert best is not None
    assert best.number == 4


def test_an_early_stop_completes_the_trial_and_counts_in_its_rung() -> None:
    desk = Desk(search=ASHA)
    for value in (0.1, 0.3):
        desk.train(desk.start(), value)
    item = desk.start()
    desk.state.apply(epoch_done(item.trial, 1, 0.9))
    desk.state.apply(ev.Reached(desk.now, trial=item.trial, finished=True))
    assert desk.statuses() == ["Paused", "Paused", "Completed"]
    assert desk.start().trial == 3  # the only place in the top is its own


# Failures.


def test_a_diverged_trial_is_a_result_and_never_the_best() -> None:
    desk = Desk(budget={"maxTrials": 2, "maxFailedTrials": 0})
    item = desk.start()
    desk.state.apply(epoch_done(item.trial, 1, 0.99))
    desk.fail(item, "Diverged")
    assert desk.statuses() == ["Diverged"]
    desk.train(desk.start(), 0.2)
    assert desk.end().reason == "SearchFinished"
    best = desk.state.best_trial()
    assert best is not None
    assert best.number == 1


def test_an_internal_failure_is_tried_again_twice() -> None:
    desk = Desk(budget={"maxTrials": 1, "maxFailedTrials": 0})
    for _ in range(MAX_RETRIES):
        desk.fail(desk.start(), "Internal")
        assert desk.statuses() == ["Pending"]
    desk.fail(desk.start(), "Internal")
    assert desk.statuses() == ["Failed"]
    ending = desk.end()
    assert ending.reason == "TooManyFailedTrials"
    assert "maxFailedTrials = 0; trial 0: Internal: why" in ending.message


def test_what_would_fail_again_is_not_tried_again() -> None:
    """An invalid trial, and one whose single rows do not fit into memory."""
    for reason in ("UserError", "OutOfMemory"):
        desk = Desk()
        desk.fail(desk.start(), reason)
        assert desk.statuses() == ["Failed"]


def test_the_study_fails_when_its_first_trials_fail_alike() -> None:
    desk = Desk(budget={"maxTrials": 12, "maxFailedTrials": 12})
    for number in range(3):
        item = desk.start()
        desk.state.apply(
            ev.Failed(
                desk.now,
                trial=item.trial,
                failure_class="UserError",
                message=f"row {number} is too long",
            )
        )
    ending = desk.end()
    assert ending.reason == "TooManyFailedTrials"
    assert (
        ending.message == "the first 3 trials failed alike; trial 0: UserError: row 0 is too long"
    )


def test_failures_are_not_alike_with_other_reasons_or_after_a_result() -> None:
    desk = Desk(budget={"maxTrials": 12, "maxFailedTrials": 12})
    desk.train(desk.start(), 0.5)
    for _ in range(3):
        desk.fail(desk.start(), "UserError")
    assert isinstance(desk.next(), TrainItem)
    desk = Desk(budget={"maxTrials": 12, "maxFailedTrials": 12})
    for why in ("one", "two", "three", "three", "three"):
        desk.state.apply(
            ev.Failed(desk.now, trial=desk.start().trial, failure_class="UserError", message=why)
        )
    assert isinstance(desk.next(), TrainItem)


def test_a_failed_trial_does_not_count_in_a_rung() -> None:
    desk = Desk(search=ASHA)
    for value in (0.1, 0.2):
        desk.train(desk.start(), value)
    desk.fail(desk.start(), "UserError")
    assert desk.start().trial == 3


def test_losing_its_worker_is_no_failure_unless_nothing_else_happens() -> None:
    desk = Desk(budget={"maxTrials": 1, "maxFailedTrials": 0})
    for _ in range(MAX_LOSSES):
        desk.state.apply(ev.Requeued(desk.now, trial=desk.start().trial, lost=True))
    item = desk.start()
    desk.state.apply(ev.Saved(desk.now, trial=item.trial, epoch=1, path="1"))  # it got somewhere
    for _ in range(MAX_LOSSES):
        desk.state.apply(ev.Requeued(desk.now, trial=item.trial, lost=True))
        desk.start()
    assert desk.state.failed == 0
    desk.state.apply(ev.Requeued(desk.now, trial=item.trial, lost=True))
    assert desk.statuses() == ["Failed"]
    assert desk.state.trials[0].failure_class == "Preempted"


def test_a_trial_that_takes_the_driver_with_it_is_given_up_too() -> None:
    desk = Desk(budget={"maxTrials": 2})
    for term in range(MAX_LOSSES + 1):
        assert desk.start().trial == 0
        desk.state.apply(ev.TermStarted(desk.now, term=term + 2))
    assert desk.start().trial == 1


def test_a_drained_trial_may_be_drained_for_ever() -> None:
    desk = Desk()
    for _ in range(3 * MAX_LOSSES):
        desk.state.apply(ev.Requeued(desk.now, trial=desk.start().trial))
    assert desk.statuses() == ["Pending"]


# Budgets.


def test_parallel_trials_are_limited_and_the_limit_can_be_edited() -> None:
    desk = Desk()
    limit = Budget(max_trials=12, max_parallel_trials=2)
    desk.start(limit)
    desk.start(limit)
    assert desk.next(limit) == Wait()
    assert isinstance(desk.next(Budget(max_trials=12, max_parallel_trials=3)), TrainItem)


def test_more_trials_can_be_allowed_while_the_last_one_runs() -> None:
    desk = Desk(budget={"maxTrials": 1})
    item = desk.start()
    assert desk.next() == Wait()
    assert isinstance(desk.next(Budget(max_trials=2)), TrainItem)
    desk.train(item, 0.5)
    assert desk.end().reason == "SearchFinished"


def test_a_space_without_more_combinations_ends_the_search() -> None:
    desk = Desk(searchSpaces=[{"batchSize": {"values": [8, 16]}}])
    desk.train(desk.start(), 0.1)
    desk.train(desk.start(), 0.2)
    assert desk.end() == End("SearchFinished", "all 2 trials ended")


def test_the_end_waits_for_what_can_still_be_promoted() -> None:
    desk = Desk(search=ASHA, budget={"maxTrials": 3})
    items = [desk.start() for _ in range(3)]
    for item, value in zip(items, (0.1, 0.2, 0.3), strict=True):
        assert desk.next() == Wait()
        desk.train(item, value)
    for epoch in (3, 9):
        promoted = desk.start()
        assert (promoted.trial, promoted.to_epoch) == (2, epoch)
        desk.train(promoted, 0.4)
    assert desk.end().reason == "SearchFinished"
    assert desk.statuses() == ["Stopped", "Stopped", "Completed"]


def test_seconds_are_counted_over_all_terms_without_the_time_between() -> None:
    desk = Desk(budget={"maxTrials": 12, "maxDurationSeconds": 60})
    desk.now += 40
    item = desk.start()
    desk.state.apply(epoch_done(item.trial, 1, 0.5, desk.now))
    desk.now += 1000  # no driver
    desk.state.apply(ev.TermStarted(desk.now, term=2))
    assert desk.state.elapsed(desk.now + 19) == 59
    desk.now += 19
    assert isinstance(desk.next(), TrainItem)
    desk.now += 1
    assert desk.end() == End("BudgetSpent", "spec.budget.maxDurationSeconds = 60 passed")


def test_gpu_hours_are_counted_over_all_trials() -> None:
    desk = Desk(budget={"maxTrials": 12, "maxGpuHours": 0.0025})  # 9 seconds
    desk.train(desk.start(), 0.5)  # nine epochs of half a second on a GPU
    assert isinstance(desk.next(), TrainItem)
    desk.train(desk.start(), 0.5)
    assert desk.end() == End("BudgetSpent", "spec.budget.maxGpuHours = 0.0025 passed")


def test_the_search_ends_when_trials_in_a_row_are_no_better() -> None:
    budget = {"maxTrials": 12, "maxTrialsWithoutImprovement": 2}
    desk = Desk(search=ASHA, budget=budget)
    for value in (0.3, 0.2):
        desk.train(desk.start(), value)
    desk.train(desk.start(), 0.4)  # better: counted anew
    desk.train(desk.start(), 0.5)  # its promotion is no new trial
    assert desk.state.trials_since_best == 0
    desk.fail(desk.start(), "Diverged")
    assert isinstance(desk.next(), TrainItem)
    desk.train(desk.start(), 0.1)
    assert desk.end() == End("NoImprovement", "2 trials in a row were no better")
    assert isinstance(desk.next(), RefitItem)


def test_an_edited_budget_lets_an_idle_search_go_on() -> None:
    desk = Desk(budget={"maxTrials": 12, "maxTrialsWithoutImprovement": 1})
    for value in (0.3, 0.2):
        desk.train(desk.start(), value)
    assert isinstance(desk.next(), End)
    assert isinstance(desk.next(Budget(max_trials=12, max_trials_without_improvement=9)), TrainItem)


def test_a_clock_that_goes_back_takes_nothing_off() -> None:
    desk = Desk()
    desk.state.apply(ev.Proposed(desk.now + 50, trial=0, params={"learningRate": 1e-3}))
    desk.state.apply(ev.TermStarted(10.0, term=2))
    assert desk.state.elapsed(5.0) == 50


def test_the_target_ends_the_search_at_once_and_what_runs_is_stopped() -> None:
    desk = Desk(objective={"metric": "accuracy", "target": 0.9})
    first, second = desk.start(), desk.start()
    desk.state.apply(epoch_done(first.trial, 1, 0.91))
    assert desk.end() == End("TargetReached", "accuracy reached 0.9")
    assert desk.next() == Wait()
    for item in (first, second):
        desk.state.apply(ev.Requeued(desk.now, trial=item.trial))
    assert desk.statuses() == ["Stopped", "Stopped"]
    refit = desk.next()
    assert isinstance(refit, RefitItem)
    assert (refit.trial, refit.epochs, refit.seed) == (0, 1, first.seed)


def test_too_many_failures_leave_no_winner() -> None:
    desk = Desk(budget={"maxTrials": 12, "maxFailedTrials": 1})
    desk.train(desk.start(), 0.5)
    for _ in range(2):
        desk.fail(desk.start(), "UserError")
    assert desk.end().reason == "TooManyFailedTrials"
    assert isinstance(desk.next(), End)


def test_a_study_without_any_value_has_no_successful_trial() -> None:
    desk = Desk(budget={"maxTrials": 2})
    for _ in range(2):
        desk.fail(desk.start(), "Diverged")
    said = "none of 2 trials has a value (Diverged); trial 0: Diverged: why"
    assert desk.end() == End("NoSuccessfulTrial", said)
    assert desk.next().reason == "NoSuccessfulTrial"


def test_a_budget_spent_before_the_first_value_has_no_successful_trial() -> None:
    desk = Desk(budget={"maxDurationSeconds": 5})
    item = desk.start()
    desk.now += 5
    assert desk.end().reason == "BudgetSpent"
    desk.state.apply(ev.Requeued(desk.now, trial=item.trial))
    assert desk.start().trial == item.trial  # it goes on to its rung
    desk.fail(item, "Diverged")
    said = "spec.budget.maxDurationSeconds = 5 passed before a trial had a value"
    assert desk.next() == End("NoSuccessfulTrial", said)


# The refit.


def _searched(**changes: Any) -> Desk:
    desk = Desk(budget={"maxTrials": 1}, **changes)
    item = desk.start()
    for epoch, value in enumerate((0.3, 0.6, 0.6, 0.4, 0.5, 0.1, 0.1, 0.1, 0.1), start=1):
        desk.state.apply(epoch_done(item.trial, epoch, value))
    desk.state.apply(ev.Reached(desk.now, trial=item.trial))
    desk.end()
    return desk


def test_the_winner_is_refitted_for_the_epochs_that_served_it_best() -> None:
    desk = _searched()
    item = desk.next()
    assert isinstance(item, RefitItem)
    assert (item.trial, item.epochs) == (0, 2)
    desk.state.apply(ev.RefitStarted(desk.now, trial=0, slot="slot"))
    assert desk.next() == Wait()
    desk.state.apply(
        ev.RefitDone(
            desk.now,
            trial=0,
            path="model",
            test_metrics={"accuracy": 0.5},
            baseline={},
            gpu_seconds=2.0,
        )
    )
    assert desk.next() == End("SearchFinished", "all 1 trials ended")


def test_no_refit_if_none_is_wanted() -> None:
    assert isinstance(_searched(refit=False).next(), End)


def test_a_refit_that_keeps_failing_fails_the_study() -> None:
    desk = _searched()
    for attempt in range(MAX_RETRIES + 1):
        assert isinstance(desk.next(), RefitItem)
        desk.state.apply(ev.RefitStarted(desk.now, trial=0, slot="slot"))
        desk.state.apply(ev.RefitRequeued(desk.now, message=f"OutOfMemory: {attempt}"))
    assert desk.next() == End("RefitFailed", "OutOfMemory: 2")


def test_a_drained_refit_goes_on() -> None:
    desk = _searched()
    for term in range(30):
        assert isinstance(desk.next(), RefitItem)
        desk.state.apply(ev.RefitStarted(desk.now, trial=0, slot="slot"))
        desk.state.apply(ev.RefitRequeued(desk.now))
        desk.state.apply(ev.TermStarted(desk.now, term=term + 2))
    assert isinstance(desk.next(), RefitItem)


def test_a_refit_that_kills_its_worker_every_time_is_given_up() -> None:
    desk = _searched()
    for _ in range(MAX_LOSSES + MAX_RETRIES + 1):
        desk.state.apply(ev.RefitStarted(desk.now, trial=0, slot="slot"))
        desk.state.apply(ev.RefitRequeued(desk.now, lost=True))
    assert desk.next().reason == "RefitFailed"


# Checkpoints.


def test_checkpoints_are_needed_while_their_trial_can_go_on() -> None:
    desk = Desk(search=ASHA, budget={"maxTrials": 6})
    budget = desk.spec.budget
    items = [desk.start(budget) for _ in range(3)]
    for item, value in zip(items, (0.3, 0.5, 0.4), strict=True):
        desk.train(item, value)
    assert desk.state.out_of_reach(desk.spec.budget) == [0]
    desk.state.apply(ev.Stopped(desk.now, trial=0))
    assert desk.statuses() == ["Stopped", "Paused", "Paused"]
    assert [len(desk.state.checkpoints_of(trial)) for trial in range(3)] == [0, 1, 1]
    assert desk.state.checkpoints() == {"1"}
    assert desk.state.out_of_reach(desk.spec.budget) == []


def test_nothing_is_out_of_reach_of_a_search_that_only_time_limits() -> None:
    desk = Desk(search=ASHA, budget={"maxDurationSeconds": 1000})
    for value in (0.3, 0.5, 0.4):
        desk.train(desk.start(), value)
    assert desk.state.out_of_reach(desk.spec.budget) == []


def test_trials_that_a_lowered_budget_would_rule_out_go_on_when_it_is_raised_again() -> None:
    desk = Desk(search=ASHA, budget={"maxTrials": 9})
    items = [desk.start(desk.spec.budget) for _ in range(4)]
    for item, value in zip(items, (0.3, 0.5, 0.4, 0.2), strict=True):
        desk.train(item, value)
    assert desk.state.out_of_reach(Budget(max_trials=4)) == [3], "three of nine may go on, not one"
    assert desk.state.out_of_reach(desk.spec.budget) == []
