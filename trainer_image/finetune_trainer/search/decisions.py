"""What to do next, and when it is over: pure functions of the state, the budget and the time."""

import math
from collections.abc import Sequence

from finetune_api.search import Budget
from finetune_trainer.records import events as ev
from finetune_trainer.search.items import Decision, End, TrainItem, Wait
from finetune_trainer.search.state import ALIKE, MAX_RETRIES, StudyState

FAILURES = ("InvalidSpec", "TooManyFailedTrials", "NoSuccessfulTrial", "RefitFailed")
"""Reasons of an End with which the study has failed."""


LIMITS = (
    *("SearchFinished", "BudgetSpent", "NoImprovement", "TargetReached"),
    *("TooManyFailedTrials", "NoSuccessfulTrial"),
)
"""Reasons with which a limit of the study has ended the search."""


def next_item(state: StudyState, budget: Budget, now: float, worker: str = "") -> Decision:
    """What a free slot of `worker` should do, by the records so far and the budget as it stands."""
    if state.ended is not None:
        return _after_search(state)
    ending = search_ending(state, budget, now)
    if ending is not None:
        return ending
    limit = budget.max_parallel_trials
    busy = {trial for trial, _ in state.running}
    full = limit is not None and len(busy) >= limit
    queued = state.next_queued()
    if queued is not None and (
        not full or queued.trial in busy
    ):  # folds of a trial may run at once
        return queued
    if full:
        return Wait()
    trial = state.next_promotion(budget, worker)
    if trial is None and state.has_new(budget):
        trial = state.next_new()
    if trial is not None:
        return state.item(trial)
    if state.running:
        return Wait()
    return search_ending(state, budget, now) or _finished(state)


def starting(
    state: StudyState, budget: Budget, item: TrainItem, slot: str, now: float
) -> list[ev.Event]:
    """What must be in the records before `slot` has its item."""
    # What cannot be promoted any more gives its checkpoint back.
    stopped = [ev.Stopped(now, trial=number) for number in state.out_of_reach(budget)]
    return [*stopped, *begun(item, slot, now)]


def begun(item: TrainItem, slot: str, now: float) -> list[ev.Event]:
    """The item itself, as the records have it."""
    started = ev.Started(
        now, trial=item.trial, slot=slot, to_epoch=item.to_epoch, run=item.run, seed=item.seed
    )
    new = item.new
    if new is None:
        return [started]
    proposed = ev.Proposed(
        now,
        trial=new.number,
        params=new.params,
        generation=new.generation,
        parent=new.parent,
        member=new.member,
    )
    return [proposed, started]


def search_ending(state: StudyState, budget: Budget, now: float) -> End | None:
    """Why the search is over at `now`; None while it goes on, or once its end is in the records."""
    if state.ended is not None:
        return None
    spent = _spent(state, budget, now)
    if spent is not None:
        return spent
    more = (
        state.running
        or state.next_queued() is not None
        or state.next_promotion(budget) is not None
        or state.has_new(budget)
    )
    return None if more else _finished(state)


def may_go_on(state: StudyState, events: Sequence[ev.Event], budget: Budget, now: float) -> bool:
    """Whether a search that has ended is not over by budget and target as they are now: somebody loosened a limit.

    `events` are those that led to `state`, which stays as it is.
    """
    if state.ended is None or state.ended.reason not in LIMITS:
        return False
    again = StudyState.replayed(state.problem, [*events, ev.Reopened(now)])
    return search_ending(again, budget, now) is None


def reopening(
    state: StudyState, events: Sequence[ev.Event], budget: Budget, now: float, retry: str = ""
) -> ev.Reopened | None:
    """The event with which a search that has ended goes on at the start of a driver; None if it does not.

    `retry` is what somebody has asked for a retry with: where the study has failed, what failed is tried again. A search
    that has ended well has nothing to try again.
    """
    if retry and retry not in state.retries and has_failed(state):
        return ev.Reopened(now, retry=retry)
    return ev.Reopened(now) if may_go_on(state, events, budget, now) else None


def has_failed(state: StudyState) -> bool:
    """Whether the search has ended, and something failed that may be tried again: the refit, or trials."""
    if state.ended is None or state.ended.reason not in LIMITS:
        return False
    trials = state.failed_by_trials and any(trial.status == "Failed" for trial in state.trials)
    return trials or len(state.refit_failures) > MAX_RETRIES


def most_at_work(state: StudyState, budget: Budget, enough: float = math.inf) -> float:
    """How many slots can be at work at once from here on, at most, as long as nobody edits the budget.

    From `enough` on it is not counted any further: with thousands of paused trials that would take long.
    """
    new = state.still_new(budget)
    given_up = sum(state.trials[trial].is_final for trial, _ in state.running)
    at_once = min(budget.max_parallel_trials or math.inf, state.most_at_once) * state.runs_left()
    limit = min(at_once, enough)
    most = math.inf if new is None else new * state.runs_left()
    for trial in state.open_trials():
        if most >= limit:
            break
        most += state.runs_left(trial)
    return max(1, min(most, at_once)) + given_up  # one trains the winner again


def price(state: StudyState, budget: Budget) -> float | None:
    """What training has cost so far; None without a price."""
    each = budget.price_per_gpu_hour
    return None if each is None else state.gpu_seconds / 3600 * each


def _spent(state: StudyState, budget: Budget, now: float) -> End | None:
    problem = state.problem
    best = state.best_trial()
    target = problem.target
    if target is not None and best is not None and state.score(best.best) >= problem.score(target):
        return End("TargetReached", f"{problem.metrics[0]} reached {target:g}")
    if state.invalid:
        return End("InvalidSpec", state.invalid[:1000])
    why = state.failed_alike()
    if why:
        return End("TooManyFailedTrials", f"the first {ALIKE} trials failed alike; {why}"[:1000])
    if state.failed > budget.max_failed_trials:
        return End("TooManyFailedTrials", _failures(state, budget))
    limit = budget.max_duration_seconds
    if limit is not None and state.elapsed(now) >= limit:
        return End("BudgetSpent", f"spec.budget.maxDurationSeconds = {limit} passed")
    hours = budget.max_gpu_hours
    if hours is not None and state.gpu_seconds >= hours * 3600:
        return End("BudgetSpent", f"spec.budget.maxGpuHours = {hours:g} passed")
    cost = price(state, budget)
    if cost is not None and budget.max_price is not None and cost >= budget.max_price:
        return End("BudgetSpent", f"spec.budget.maxPrice = {budget.max_price:g} passed")
    patience = budget.max_trials_without_improvement
    if patience is not None and state.trials_since_best >= patience and best is not None:
        return End("NoImprovement", f"{state.trials_since_best} trials in a row were no better")
    return None


def _failures(state: StudyState, budget: Budget) -> str:
    last = next(trial for trial in reversed(state.trials) if trial.status == "Failed")
    limit = f"more than spec.budget.maxFailedTrials = {budget.max_failed_trials}"
    why = f"trial {last.number}: {last.failure_class}: {last.message}"
    return f"{state.failed} trials failed, {limit}; {why}"[:1000]


def _finished(state: StudyState) -> End:
    if state.best_trial() is None:
        return End("NoSuccessfulTrial", _no_success(state))
    return End("SearchFinished", f"all {len(state.trials)} trials ended")


def _after_search(state: StudyState) -> Decision:
    assert state.ended is not None  # the caller checks
    queued = state.next_queued()
    if queued is not None:  # of a trial that goes on to its next rung
        return queued
    if state.running:
        return Wait()
    outcome = End(state.ended.reason, state.ended.message)
    if outcome.reason in ("TooManyFailedTrials", "InvalidSpec"):
        return outcome
    winner = state.best_trial()
    if winner is None:
        return End("NoSuccessfulTrial", _no_success(state, state.ended))
    if not state.problem.refit or state.refit is not None:
        return outcome
    if state.refit_slot is not None:
        return Wait()
    if len(state.refit_failures) > MAX_RETRIES:
        return End("RefitFailed", state.refit_failures[-1])
    return state.refit_item(winner)


def _no_success(state: StudyState, ended: ev.SearchEnded | None = None) -> str:
    if ended is not None and ended.reason == "BudgetSpent":
        return f"{ended.message} before a trial had a value"
    if not state.trials:
        return "no trial could be proposed"
    classes = sorted({trial.failure_class or trial.status for trial in state.trials})
    said = f"none of {len(state.trials)} trials has a value ({', '.join(classes)})"
    why = next((trial for trial in state.trials if trial.message), None)
    if why is None:
        return said
    return f"{said}; trial {why.number}: {why.failure_class or why.status}: {why.message}"
