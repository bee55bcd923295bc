"""The state of a study, derived from its events, and what to do next: the same live and on resume."""

import hashlib
import heapq
import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from finetune_api.metrics import score
from finetune_api.study import Budget, StudySpec
from finetune_trainer.search import events as ev
from finetune_trainer.search.proposals import Params, Proposer
from finetune_trainer.search.rungs import Rung, rung_epochs

TrialStatus: TypeAlias = Literal[
    "Pending", "Running", "Paused", "Completed", "Stopped", "Diverged", "Failed"
]
"""Pending: waits for a slot, new or after losing one. Paused: at a rung, goes on if promoted. Stopped:
paused when the search ended. The last four are final."""

MAX_RETRIES = 2
"""Times a trial that failed for an internal reason is tried again, and the refit likewise."""

MAX_LOSSES = 10
"""Times a trial may take its worker with it (a kernel OOM kill, say) before it counts as failed."""


@dataclass(slots=True)
class Trial:
    """All that is known of one trial."""

    number: int
    params: Params
    status: TrialStatus = "Pending"
    level: int = 0
    """Index of the rung it trains for, or waits at."""

    epochs: list[ev.EpochDone] = field(default_factory=list)
    checkpoint: str | None = None
    checkpoint_epoch: int = 0
    slot: str = ""
    failures: int = 0
    losses: int = 0
    failure_class: str = ""
    message: str = ""
    stopped_early: bool = False


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
    """The search is over, for this reason; or the study is, if `over`."""

    reason: str
    message: str = ""


Decision: TypeAlias = TrainItem | RefitItem | Wait | End


class StudyState:
    """Feeds on events; answers what to do next in O(log n)."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec
        self.goal = spec.objective.direction
        self.trials: list[Trial] = []
        self.rungs = rung_epochs(spec.search.scheduler, spec.max_epochs)
        self.ended: ev.SearchEnded | None = None
        self.refit: ev.RefitDone | None = None
        self.refit_slot: str | None = None
        self.refit_failures: list[str] = []
        self.running: set[int] = set()
        self.failed = 0
        self.gpu_seconds = 0.0
        self.best: tuple[float, int] | None = None
        """(score, -trial) of the best epoch of any trial; earlier trials win ties."""

        self._proposer = Proposer(spec)
        self._levels = [Rung(spec.search.scheduler.reduction_factor) for _ in self.rungs[:-1]]
        self._requeued: list[int] = []
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
                self.trials.append(Trial(event.trial, event.params))
            case ev.Started():
                trial = self.trials[event.trial]
                trial.status, trial.slot = "Running", event.slot
                if (
                    trial.level < len(self.rungs) - 1
                    and event.to_epoch > self.rungs[trial.level]
                    and trial.epochs
                ):
                    self._promote(trial)
                self.running.add(event.trial)
            case ev.EpochDone():
                self._epoch(event)
            case ev.Saved():
                trial = self.trials[event.trial]
                trial.checkpoint, trial.checkpoint_epoch = event.path, event.epoch
            case ev.Reached():
                self._reached(self.trials[event.trial], event.stopped_early)
            case ev.Requeued():
                self._requeue(self.trials[event.trial], event.lost)
            case ev.Failed():
                self._fail(self.trials[event.trial], event.failure_class, event.message)
            case ev.SearchEnded():
                self._end(event)
            case ev.RefitStarted():
                self.refit_slot = event.slot
            case ev.RefitRequeued():
                self.refit_slot = None
                if event.message:
                    self.refit_failures.append(event.message)
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
            self._requeue(self.trials[number], lost=False)
        self.refit_slot = None

    def _epoch(self, event: ev.EpochDone) -> None:
        trial = self.trials[event.trial]
        del trial.epochs[event.epoch - 1 :]  # an epoch that is trained again replaces itself
        trial.epochs.append(event)
        self.gpu_seconds += event.gpu_seconds
        rank = (score(event.value, self.goal), -event.trial)
        if self.best is None or rank > self.best:
            self.best = rank

    def _promote(self, trial: Trial) -> None:
        self._levels[trial.level].withdraw(trial.number)
        trial.level += 1

    def _reached(self, trial: Trial, stopped_early: bool) -> None:
        self.running.discard(trial.number)
        trial.stopped_early = stopped_early
        if trial.level < len(self._levels):
            rung = self._levels[trial.level]
            if stopped_early:
                rung.withdraw(trial.number)
            rung.report(trial.number, score(trial.epochs[-1].value, self.goal))
            trial.status = "Completed" if stopped_early else "Paused"
        else:
            trial.status = "Completed"
        if self.ended is not None and trial.status == "Paused":
            trial.status = "Stopped"

    def _requeue(self, trial: Trial, lost: bool) -> None:
        self.running.discard(trial.number)
        trial.slot = ""
        trial.losses += lost
        if trial.losses > MAX_LOSSES:
            self._close(
                trial, "Failed", "Preempted", f"its worker process ended {trial.losses} times"
            )
            return
        del trial.epochs[trial.checkpoint_epoch :]
        self._to_pending(trial)

    def _to_pending(self, trial: Trial) -> None:
        trial.status = "Pending" if self.ended is None else "Stopped"
        heapq.heappush(self._requeued, trial.number)

    def _fail(self, trial: Trial, failure_class: str, message: str) -> None:
        self.running.discard(trial.number)
        trial.failures += 1
        if failure_class == "Internal" and trial.failures <= MAX_RETRIES:
            del trial.epochs[trial.checkpoint_epoch :]
            self._to_pending(trial)
        elif failure_class == "Diverged":
            self._close(trial, "Diverged", failure_class, message)
        else:
            self._close(trial, "Failed", failure_class, message)

    def _close(self, trial: Trial, status: TrialStatus, failure_class: str, message: str) -> None:
        trial.status, trial.failure_class, trial.message = status, failure_class, message
        self.failed += status == "Failed"

    def _end(self, event: ev.SearchEnded) -> None:
        if self._term_began is not None:
            self._elapsed += max(0.0, event.time - self._term_began)
        self.ended = event
        for trial in self.trials:
            if trial.status in ("Paused", "Pending"):
                trial.status = "Stopped"

    # What follows from it.

    def propose(self, number: int) -> Params | None:
        """The parameters of trial `number`; None if the space has no such trial."""
        return self._proposer.propose(number)

    def elapsed(self, now: float) -> float:
        """Seconds of searching over all terms; time without a driver does not count."""
        if self.ended is not None or self._term_began is None:
            return self._elapsed
        return self._elapsed + max(0.0, now - self._term_began)

    def best_trial(self) -> Trial | None:
        """The trial with the best epoch."""
        return self.trials[-self.best[1]] if self.best else None

    def target_epoch(self, trial: Trial) -> int:
        """The epoch that `trial` trains to next: its rung, or its own last epoch."""
        last = int(trial.params.get("epochs", self.rungs[-1]))
        return last if trial.level == len(self.rungs) - 1 else self.rungs[trial.level]

    def seed(self, trial: int) -> int:
        """The training seed of a trial."""
        digest = hashlib.sha256(f"{self.spec.search.seed}/{trial}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def needs_checkpoint(self, trial: Trial) -> bool:
        """Whether the trial's checkpoint may be needed again."""
        if trial.status == "Paused":
            return trial.number not in self._levels[trial.level]._gone
        return trial.status in ("Pending", "Running")


def next_item(state: StudyState, budget: Budget, now: float) -> Decision:
    """What a free slot should do, by the records so far and the budget as it stands."""
    if state.ended is not None:
        return _after_search(state)
    ending = search_ending(state, budget, now)
    if ending is not None:
        return ending
    if _at_limit(state, budget):
        return Wait()
    return _continued(state) or _proposed(state, budget) or Wait()


def search_ending(state: StudyState, budget: Budget, now: float) -> End | None:
    """Why the search is over at `now`; None while it goes on."""
    ending = _spent(state, budget, now)
    if ending is not None or state.running or _continued(state) or _proposed(state, budget):
        return ending
    if state.best is None:
        return End("NoSuccessfulTrial", _no_success(state))
    return End("SearchFinished", f"all {len(state.trials)} trials ended")


def _at_limit(state: StudyState, budget: Budget) -> bool:
    limit = budget.max_parallel_trials
    return limit is not None and len(state.running) >= limit


def _proposed(state: StudyState, budget: Budget) -> TrainItem | None:
    """The next new trial, if the budget and the space have one."""
    number = len(state.trials)
    if budget.max_trials is not None and number >= budget.max_trials:
        return None
    params = state.propose(number)
    if params is None:
        return None
    return TrainItem(
        number, params, state.target_epoch(Trial(number, params)), None, state.seed(number)
    )


def _continued(state: StudyState) -> TrainItem | None:
    """A trial that goes on: one that lost its slot first (its rung waits for it), else the highest promotion."""
    while state._requeued and state.trials[state._requeued[0]].status != "Pending":
        heapq.heappop(state._requeued)
    if state._requeued:
        trial = state.trials[state._requeued[0]]
        return TrainItem(
            trial.number,
            trial.params,
            state.target_epoch(trial),
            trial.checkpoint,
            state.seed(trial.number),
        )
    for level in range(len(state._levels) - 1, -1, -1):
        number = state._levels[level].promotable()
        if number is not None:
            trial = state.trials[number]
            epochs = state.rungs[level + 1]
            return TrainItem(number, trial.params, epochs, trial.checkpoint, state.seed(number))
    return None


def _spent(state: StudyState, budget: Budget, now: float) -> End | None:
    target = state.spec.objective.target
    if target is not None and state.best is not None and state.best[0] >= score(target, state.goal):
        return End("TargetReached", f"{state.spec.objective.metric} reached {target:g}")
    if state.failed > budget.max_failed_trials:
        last = max((t for t in state.trials if t.status == "Failed"), key=lambda t: t.number)
        return End(
            "TooManyFailedTrials",
            f"{state.failed} trials failed, more than spec.budget.maxFailedTrials = {budget.max_failed_trials};"
            f" trial {last.number}: {last.failure_class}: {last.message}"[:1000],
        )
    limit = budget.max_duration_seconds
    if limit is not None and state.elapsed(now) >= limit:
        return End("BudgetSpent", f"spec.budget.maxDurationSeconds = {limit} passed")
    return None


def _after_search(state: StudyState) -> Decision:
    assert state.ended is not None  # the caller checks
    if state.running:
        return Wait()
    outcome = End(state.ended.reason, state.ended.message)
    if outcome.reason == "TooManyFailedTrials":
        return outcome
    best = state.best_trial()
    if best is None:
        return End("NoSuccessfulTrial", _no_success(state))
    if not state.spec.refit or state.refit is not None:
        return outcome
    if state.refit_slot is not None:
        return Wait()
    if len(state.refit_failures) > MAX_RETRIES:
        return End("RefitFailed", state.refit_failures[-1])
    return RefitItem(
        best.number, best.params, best_epoch(state, best).epoch, state.seed(best.number)
    )


def _no_success(state: StudyState) -> str:
    if not state.trials:
        return "no trial could be proposed"
    classes = sorted({trial.failure_class or trial.status for trial in state.trials})
    return f"none of {len(state.trials)} trials has a value ({', '.join(classes)})"


def best_epoch(state: StudyState, trial: Trial) -> ev.EpochDone:
    """The epoch of the trial with the best value, the earliest of equals."""
    return max(trial.epochs, key=lambda e: (score(e.value, state.goal), -e.epoch))


def trial_score(state: StudyState, trial: Trial) -> float:
    """The trial's best score; -inf without one."""
    return score(best_epoch(state, trial).value, state.goal) if trial.epochs else -math.inf
