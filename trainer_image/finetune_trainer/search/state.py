"""The state of a study, derived from its events, and what to do next: the same live and on resume."""

import hashlib
import heapq
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from finetune_api.hyperparameters import resolve
from finetune_api.metrics import score
from finetune_api.study import Budget, StudySpec
from finetune_trainer.search import events as ev
from finetune_trainer.search.domains import Params, grid_size
from finetune_trainer.search.proposals import Proposer
from finetune_trainer.search.rungs import Rung, rung_epochs
from finetune_trainer.search.trials import Trial, TrialStatus

MAX_RETRIES = 2
"""Times a trial that failed for an internal reason is tried again, and the refit likewise."""

MAX_ACCUMULATION = 1024
"""The most that the contract has for gradientAccumulation."""

ALIKE = 3
"""The first trials; if all of them fail for one reason, the study fails with it."""

MAX_LOSSES = 10
"""Times in a row that a trial, or the refit, may lose its worker without a new checkpoint (a kernel
OOM kill, say) before it counts as failed."""


@dataclass(frozen=True)
class TrainItem:
    """Train `trial` to the end of `to_epoch`, from `checkpoint` if there is one."""

    trial: int
    params: Params
    to_epoch: int
    checkpoint: str | None
    seed: int


@dataclass(frozen=True)
class RefitItem:
    """Train the winner from the pretrained weights on train and validation rows for `epochs` epochs."""

    trial: int
    params: Params
    epochs: int
    seed: int


@dataclass(frozen=True)
class Wait:
    """Nothing to do now; something in flight may change that."""


@dataclass(frozen=True)
class End:
    """The search is over for this reason, or the whole study if `next_item` says so after the search."""

    reason: str
    message: str = ""


Decision: TypeAlias = TrainItem | RefitItem | Wait | End


class StudyState:
    """Feeds on events; answers what to do next in O(log n)."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.trials: list[Trial] = []
        self.rungs = rung_epochs(spec.search.scheduler, spec.max_epochs)
        self.running: set[int] = set()
        self.failed = 0
        self._any_reached = False
        self._first_failures: list[tuple[int, str]] = []
        """(trial, why) of those that failed before any trial had a result."""

        self.gpu_seconds = 0.0
        self.ended: ev.SearchEnded | None = None
        self.refit: ev.RefitDone | None = None
        self.refit_slot: str | None = None
        self.refit_failures: list[str] = []
        self._refit_losses = 0
        self._asynchronous = spec.search.scheduler.type != "SuccessiveHalving"
        self._proposer = Proposer(spec)
        self._levels = [Rung(spec.search.scheduler.reduction_factor) for _ in self.rungs[:-1]]
        self._requeued: list[int] = []
        """Heap of trials that lost their slot; those that are not Pending any more are skipped."""

        self._ranking: list[tuple[float, int]] = []
        """Heap of (-score, trial); entries that are not the trial's best any more are skipped."""

        self._best_score = -math.inf
        self._improver: int | None = None
        """The trial that brought the best score."""

        self.trials_since_best = 0
        """Trials in a row that reached their first rung, or ended, without a new best value."""

        self._elapsed = 0.0
        self._term_began: float | None = None
        self._last_time = 0.0

    # What happened.

    def apply(self, event: ev.Event) -> None:
        """Take in one event."""
        match event:
            case ev.TermStarted():
                self._begin_term(event)
            case ev.Proposed():
                self._proposer.record(event.params)
                self.trials.append(Trial(event.trial, event.params))
            case ev.Started():
                self._start(self.trials[event.trial], event.slot)
            case ev.EpochDone():
                self._epoch(self.trials[event.trial], event)
            case ev.Saved():
                trial = self.trials[event.trial]
                trial.checkpoint, trial.checkpoint_epoch = event.path, event.epoch
                trial.losses = 0
            case ev.Reached():
                self._reached(self.trials[event.trial], event.stopped_early)
            case ev.Requeued():
                self._requeue(self.trials[event.trial], event.lost)
            case ev.Failed():
                self._fail(self.trials[event.trial], event.failure_class, event.message)
            case ev.Stopped():
                trial = self.trials[event.trial]
                self._levels[trial.level].withdraw(trial.number)
                trial.status = "Stopped"
            case ev.SearchEnded():
                self._end(event)
            case ev.RefitStarted():
                self.refit_slot = event.slot
            case ev.RefitRequeued():
                self._requeue_refit(event.message, event.lost)
            case ev.RefitDone():
                self.refit, self.refit_slot = event, None
                self.gpu_seconds += event.gpu_seconds
        self._last_time = max(self._last_time, event.time)

    def _begin_term(self, event: ev.TermStarted) -> None:
        if self._term_began is not None and self.ended is None:
            self._elapsed += max(0.0, self._last_time - self._term_began)
        self._term_began = self._last_time = event.time
        # Whatever an earlier driver had in flight lost its slot with it.
        for number in sorted(self.running):
            self._requeue(self.trials[number], lost=True)
        if self.refit_slot is not None:
            self._requeue_refit("", lost=True)

    def _start(self, trial: Trial, slot: str) -> None:
        if trial.status == "Paused":  # promoted
            self._levels[trial.level].withdraw(trial.number)
            trial.level += 1
        trial.status, trial.slot = "Running", slot
        self.running.add(trial.number)

    def _epoch(self, trial: Trial, event: ev.EpochDone) -> None:
        if trial.epochs and trial.epochs[-1].epoch >= event.epoch:
            # Trained again after a loss: what is new replaces what was seen before.
            trial.epochs = [epoch for epoch in trial.epochs if epoch.epoch < event.epoch]
            trial.best = max(trial.epochs, key=self._epoch_rank, default=None)
        trial.epochs.append(event)
        self.gpu_seconds += event.gpu_seconds
        if trial.best is None or self._score(event) > self._score(trial.best):
            trial.best = event
        heapq.heappush(self._ranking, (-self._score(trial.best), trial.number))
        if self._score(event) > self._best_score:
            self._best_score, self._improver = self._score(event), trial.number
            self.trials_since_best = 0

    def _reached(self, trial: Trial, stopped_early: bool) -> None:
        self._any_reached = True
        self.running.discard(trial.number)
        trial.stopped_early = stopped_early
        trial.status = "Completed"
        if trial.level == 0:
            self.trials_since_best += trial.number != self._improver
        if trial.level < len(self._levels):
            rung = self._levels[trial.level]
            if stopped_early:
                rung.withdraw(trial.number)
            else:
                trial.status = "Paused" if self.ended is None else "Stopped"
            rung.report(trial.number, self._score(trial.epochs[-1] if trial.epochs else None))

    def _requeue(self, trial: Trial, lost: bool) -> None:
        self.running.discard(trial.number)
        trial.losses += lost
        if trial.losses > MAX_LOSSES:
            message = f"its worker process ended {trial.losses} times in a row"
            self._close(trial, "Failed", "Preempted", message)
        else:
            self._to_pending(trial)

    def _to_pending(self, trial: Trial) -> None:
        trial.slot = ""
        trial.status = "Pending" if self.ended is None else "Stopped"
        heapq.heappush(self._requeued, trial.number)

    def _fail(self, trial: Trial, failure_class: str, message: str) -> None:
        self.running.discard(trial.number)
        trial.failures += 1
        if failure_class == "Internal" and trial.failures <= MAX_RETRIES:
            self._to_pending(trial)
        elif failure_class == "OutOfMemory" and not trial.halved and self._batch_size(trial) > 1:
            # From the start: what its checkpoint has was trained, and ordered, for the larger batch.
            trial.halved, trial.checkpoint, trial.checkpoint_epoch = True, None, 0
            trial.message = f"trained in halves of its batch, as it ran {message}"
            self._to_pending(trial)
        else:
            status: TrialStatus = "Diverged" if failure_class == "Diverged" else "Failed"
            self._close(trial, status, failure_class, message)

    def _close(self, trial: Trial, status: TrialStatus, failure_class: str, message: str) -> None:
        trial.status, trial.failure_class, trial.message = status, failure_class, message
        self.failed += status == "Failed"
        if status == "Failed" and not self._any_reached:
            self._first_failures.append((trial.number, _gist(f"{failure_class}: {message}")))
        if trial.level < len(self._levels):
            self._levels[trial.level].lost += 1
        self.trials_since_best += trial.level == 0

    def _end(self, event: ev.SearchEnded) -> None:
        if self._term_began is not None:
            self._elapsed += max(0.0, event.time - self._term_began)
        self.ended = event
        for trial in self.trials:
            if trial.status in ("Paused", "Pending"):
                trial.status = "Stopped"

    def _requeue_refit(self, message: str, lost: bool) -> None:
        self.refit_slot = None
        self._refit_losses += lost
        if self._refit_losses > MAX_LOSSES:
            message = message or f"its worker process ended {self._refit_losses} times"
        if message:
            self.refit_failures.append(message)

    # What follows from it.

    def elapsed(self, now: float) -> float:
        """Seconds of searching over all terms; time without a driver does not count."""
        if self.ended is not None or self._term_began is None:
            return self._elapsed
        return self._elapsed + max(0.0, now - self._term_began)

    def failed_alike(self) -> str:
        """Why the first trials failed, if all of them did and for the same reason; else empty."""
        first = self._first_failures[:ALIKE]
        if self._any_reached or len(first) < ALIKE or len({why for _, why in first}) > 1:
            return ""
        trial = self.trials[first[0][0]]
        return f"trial {trial.number}: {trial.failure_class}: {trial.message}"

    def best_trial(self) -> Trial | None:
        """The trial with the best epoch of all that neither diverged nor failed; of equals the earlier."""
        while self._ranking:
            negative, number = self._ranking[0]
            trial = self.trials[number]
            if trial.best and trial.is_candidate and self._score(trial.best) == -negative:
                return trial
            heapq.heappop(self._ranking)
        return None

    def top_trials(self, count: int) -> list[Trial]:
        """The best trials, best first; O(n)."""
        candidates = (trial for trial in self.trials if trial.is_candidate)
        return heapq.nsmallest(count, candidates, key=lambda t: (-self._score(t.best), t.number))

    def planned(self, budget: Budget) -> int | None:
        """Trials the study will propose unless something ends it early; None where only time limits it."""
        counts = (self._space_size, budget.max_trials)
        return min((count for count in counts if count is not None), default=None)

    @cached_property
    def _space_size(self) -> int | None:
        return grid_size(self.spec.spaces)

    def out_of_reach(self, budget: Budget) -> list[int]:
        """Paused trials, each named once, that will not be promoted whatever the trials to come bring."""
        planned = self.planned(budget)
        if planned is None or self.ended is not None:
            return []
        return [number for rung in self._levels for number in rung.out_of_reach(planned)]

    def needs_checkpoint(self, trial: Trial) -> bool:
        """Whether the trial's checkpoint may be needed again."""
        return trial.status in ("Pending", "Running", "Paused")

    def checkpoints(self) -> set[str]:
        """The checkpoints that may be needed again; anything else of that kind in storage is waste."""
        needed = (trial for trial in self.trials if self.needs_checkpoint(trial))
        return {trial.checkpoint for trial in needed if trial.checkpoint is not None}

    def item(self, trial: Trial) -> TrainItem:
        """The next piece of work for a trial: to its rung, or from there to the next, or to its end."""
        level = trial.level + (trial.status == "Paused")
        last = int(trial.params.get("epochs", self.rungs[-1]))
        to_epoch = self.rungs[level] if level < len(self._levels) else last
        params, seed = self._trained_params(trial), self._seed(trial.number)
        return TrainItem(trial.number, params, to_epoch, trial.checkpoint, seed)

    def _trained_params(self, trial: Trial) -> Params:
        """The parameters it trains with: as proposed, or with the same batch in two halves."""
        if not trial.halved:
            return trial.params
        config = resolve(self.spec.hyperparameters, trial.params)
        accumulation = min(2 * config.gradient_accumulation, MAX_ACCUMULATION)
        halves = {"batchSize": config.batch_size // 2, "gradientAccumulation": accumulation}
        return {**trial.params, **halves}

    def _batch_size(self, trial: Trial) -> int:
        return resolve(self.spec.hyperparameters, trial.params).batch_size

    def refit_item(self, winner: Trial) -> RefitItem:
        """The refit of the winner, for as many epochs as served it best."""
        assert winner.best is not None  # a winner has a value
        params, seed = self._trained_params(winner), self._seed(winner.number)
        return RefitItem(winner.number, params, winner.best.epoch, seed)

    def next_continued(self, budget: Budget) -> Trial | None:
        """A trial to go on with: first what lost its slot (its rung waits for it), then the highest promotion."""
        while self._requeued and self.trials[self._requeued[0]].status != "Pending":
            heapq.heappop(self._requeued)
        if self._requeued:
            return self.trials[self._requeued[0]]
        levels = range(len(self._levels) if self._asynchronous else self._complete_levels(budget))
        promotable = (self._levels[level].promotable() for level in reversed(levels))
        return next((self.trials[number] for number in promotable if number is not None), None)

    def _complete_levels(self, budget: Budget) -> int:
        """Rungs, from the first on, that every trial on its way there has reached, or will not reach."""
        if self.has_new(budget):
            return 0
        coming, complete = len(self.trials), 0
        for rung in self._levels:
            if not rung.has_all(coming):
                break
            coming, complete = rung.promotions, complete + 1
        return complete

    def has_new(self, budget: Budget) -> bool:
        """Whether budget and space leave room for a new trial."""
        spent = budget.max_trials is not None and len(self.trials) >= budget.max_trials
        return not spent and not self._proposer.exhausted

    def next_new(self) -> Trial | None:
        """The next new trial, not part of the state yet; None, and `has_new` no more, if the space is walked."""
        params = self._proposer.propose(self.trials)
        return Trial(len(self.trials), params) if params is not None else None

    def _seed(self, trial: int) -> int:
        digest = hashlib.sha256(f"{self.spec.search.seed}/{trial}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def _score(self, epoch: ev.EpochDone | None) -> float:
        """Larger is better; NaN is worse than anything."""
        if epoch is None or math.isnan(epoch.value):
            return -math.inf
        return score(epoch.value, self.spec.objective.direction)

    def _epoch_rank(self, epoch: ev.EpochDone) -> tuple[float, int]:
        return self._score(epoch), -epoch.epoch


def _gist(message: str) -> str:
    """The message without its numbers, which differ from trial to trial."""
    return re.sub(r"\d+", "", message)


def next_item(state: StudyState, budget: Budget, now: float) -> Decision:
    """What a free slot should do, by the records so far and the budget as it stands."""
    if state.ended is not None:
        return _after_search(state)
    ending = search_ending(state, budget, now)
    if ending is not None:
        return ending
    limit = budget.max_parallel_trials
    if limit is not None and len(state.running) >= limit:
        return Wait()
    trial = state.next_continued(budget)
    if trial is None and state.has_new(budget):
        trial = state.next_new()
    if trial is not None:
        return state.item(trial)
    return Wait() if state.running else _finished(state)


def search_ending(state: StudyState, budget: Budget, now: float) -> End | None:
    """Why the search is over at `now`; None while it goes on, or once its end is in the records."""
    if state.ended is not None:
        return None
    spent = _spent(state, budget, now)
    if spent is not None:
        return spent
    more = state.running or state.next_continued(budget) is not None or state.has_new(budget)
    return None if more else _finished(state)


def _spent(state: StudyState, budget: Budget, now: float) -> End | None:
    objective = state.spec.objective
    best = state.best_trial()
    if objective.target is not None and best is not None and best.best is not None:
        goal = objective.direction
        if score(best.best.value, goal) >= score(objective.target, goal):
            return End("TargetReached", f"{objective.metric} reached {objective.target:g}")
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
    if state.running:
        return Wait()
    outcome = End(state.ended.reason, state.ended.message)
    if outcome.reason == "TooManyFailedTrials":
        return outcome
    winner = state.best_trial()
    if winner is None:
        return End("NoSuccessfulTrial", _no_success(state))
    if not state.spec.refit or state.refit is not None:
        return outcome
    if state.refit_slot is not None:
        return Wait()
    if len(state.refit_failures) > MAX_RETRIES:
        return End("RefitFailed", state.refit_failures[-1])
    return state.refit_item(winner)


def _no_success(state: StudyState) -> str:
    if not state.trials:
        return "no trial could be proposed"
    classes = sorted({trial.failure_class or trial.status for trial in state.trials})
    return f"none of {len(state.trials)} trials has a value ({', '.join(classes)})"
