"""The state of a study, derived from its events: the same live and on resume."""

import heapq
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import count, takewhile

from finetune_api.combinations import Params, grid_size
from finetune_api.search import Budget
from finetune_trainer.errors import SpecError
from finetune_trainer.records import events as ev
from finetune_trainer.search.brackets import Schedule
from finetune_trainer.search.items import AtWork, RefitItem, Segment, TrainItem
from finetune_trainer.search.population import Population
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.proposals import Proposer
from finetune_trainer.search.trials import Evaluation, Run, Trial, TrialStatus, evaluations

MAX_RETRIES = 2
"""Times a trial that failed for an internal reason is tried again, and the refit likewise."""

ALIKE = 3
"""The first trials; if all of them fail for one reason, the study fails with it."""

MAX_LOSSES = 10
"""Times in a row that a run, or the refit, may lose its worker without a new checkpoint (a kernel
OOM kill, say) before it counts as failed."""


DRAINING = ("BudgetSpent", "NoImprovement")
"""Ends at which trials in flight go on to their next rung; at others they are called back."""


class StudyState:
    """Feeds on events; knows every trial and what can be done next in O(log n)."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.trials: list[Trial] = []
        self.running: set[tuple[int, int]] = set()
        """(trial, run) of all that slots work on."""

        self.failed = 0
        self.gpu_seconds = 0.0
        self.epochs_trained = 0.0
        self.inherited: list[tuple[Params, float]] | None = None
        """What warm starts have brought; None until they were looked at."""

        self.invalid = ""
        """What is wrong with the study, where only the search has found out (a constraint without an answer)."""

        self.ended: ev.SearchEnded | None = None
        self.ensemble: ev.EnsembleJudged | None = None
        self.refit: ev.RefitDone | None = None
        self.refit_slot: str | None = None
        self.refit_failures: list[str] = []
        self._refit_losses = 0
        self._cut: set[int] = set()
        """Trials that the end of the search has stopped."""

        self.reopened = 0
        """How often the search went on after its end."""

        self.retries: set[str] = set()
        """The retries that were asked for and followed, by their values."""

        self.tests = 0
        """How often a final model was tested."""

        self._any_reached = False
        self._first_failures: list[tuple[int, str]] = []
        """(trial, why) of those that failed before any trial had a result."""

        self._by_level = problem.rung_by in ("Samples", "Folds")
        """Whether values of different rungs are of different worth: each has more rows, or more folds."""

        self._schedule = Schedule(problem)
        self._proposer = Proposer(problem)
        self._population = (
            Population(problem, self._proposer) if problem.search.algorithm == "PBT" else None
        )
        self._queue: list[tuple[int, int]] = []
        """Heap of (trial, run) that wait for a slot; those that are not Pending any more are skipped."""

        self._ranking: list[tuple[int, float, int]] = []
        """Heap of (-level, -score, trial); entries that do not hold any more are skipped."""

        self._best_rank = (0, -math.inf)
        self._improver: int | None = None
        """The trial that brought the best rank."""

        self.in_parts: dict[int, int] = {}
        """Trials whose batches did not fit into memory, and in how many parts they were computed at most."""

        self.trials_since_best = 0
        """Trials in a row that reached their first rung, or ended, without a new best value."""

        self._open: dict[int, Trial] = {}
        """Trials that had not ended when they were last looked at."""

        self._arrivals = 0
        """Rungs reached, and failures, of all trials."""

        self._most_planned = 0.0
        """The most trials that any budget so far allowed: what a lower one rules out, an edit may bring back."""

        self._elapsed = 0.0
        self._term_began: float | None = None
        self._last_time = 0.0

    @classmethod
    def replayed(cls, problem: Problem, events: Iterable[ev.Event]) -> "StudyState":
        """The state that the events lead to."""
        state = cls(problem)
        for event in events:
            state.apply(event)
        return state

    # What happened.

    def apply(self, event: ev.Event) -> None:
        """Take in one event."""
        match event:
            case ev.TermStarted():
                self._begin_term(event)
            case ev.Waited():
                self._elapsed -= event.seconds if self.ended is None else 0.0
            case ev.Inherited():
                self.inherited = [(dict(params), value) for params, value in event.trials]
                self._proposer.inherit(self.inherited)
            case ev.Proposed():
                self._propose(event)
            case ev.Started():
                self._start(self.trials[event.trial], event.run, event.slot)
            case ev.EpochDone():
                self._epoch(self.trials[event.trial], event)
            case ev.Saved():
                run = self.trials[event.trial].runs[event.run]
                run.checkpoint, run.losses = event.path, 0
            case ev.Reached():
                self._reached(self.trials[event.trial], event)
            case ev.Requeued():
                self._requeue(self.trials[event.trial], event.run, event.lost)
            case ev.Failed():
                self._fail(self.trials[event.trial], event)
            case ev.Stopped():
                trial = self.trials[event.trial]
                self._schedule[trial.bracket].stop(trial.number, trial.level)
                trial.status = "Stopped"
            case ev.SearchEnded():
                self._end(event)
            case ev.Reopened():
                self._reopen(event)
            case ev.RefitStarted():
                self.refit_slot = event.slot
            case ev.RefitRequeued():
                self._requeue_refit(event.message, event.lost)
            case ev.EnsembleJudged():
                self.ensemble = event
            case ev.RefitDone():
                self.refit, self.refit_slot = event, None
                self.tests += 1
                self.gpu_seconds += event.gpu_seconds
            case ev.SlotReady():
                pass  # nothing is decided by it
            case _:
                raise TypeError(f"{type(event).__name__} would be forgotten")
        self._last_time = max(self._last_time, event.time)

    def _begin_term(self, event: ev.TermStarted) -> None:
        if self._term_began is not None and self.ended is None:
            self._elapsed += max(0.0, self._last_time - self._term_began)
        self._term_began = self._last_time = event.time
        # Whatever an earlier driver had in flight lost its slot with it.
        for number, run in sorted(self.running):
            self._requeue(self.trials[number], run, lost=True)
        if self.refit_slot is not None:
            self._requeue_refit("", lost=True)

    def _propose(self, event: ev.Proposed) -> None:
        self._proposer.record(event.params)
        placement = self._schedule.place()
        trial = Trial(
            event.trial,
            event.params,
            bracket=placement.bracket,
            level=placement.first,
            generation=event.generation,
            parent=event.parent,
            member=event.member,
        )
        self.trials.append(trial)
        self._open[trial.number] = trial
        if self._population is not None:
            self._population.record(trial)

    def _start(self, trial: Trial, number: int, slot: str) -> None:
        if not trial.begun or trial.status == "Paused":
            if trial.status == "Paused":  # promoted
                self._schedule[trial.bracket].promote(trial.number, trial.level)
                trial.level += 1
            self._begin_level(trial)
        run = trial.runs[number]
        run.status, run.slot = "Running", slot
        self.running.add((trial.number, number))
        trial.status = "Running"

    def _begin_level(self, trial: Trial) -> None:
        trial.begun = True
        rung = self._schedule[trial.bracket].rung(trial.level)
        if rung is not None:
            rung.expect()
        trial.plan = self.runs_at(trial.level)
        for number in trial.plan:
            run = trial.runs.setdefault(number, Run(number))
            if run.status != "Finished":
                self._enqueue(trial, run)

    def _enqueue(self, trial: Trial, run: Run) -> None:
        run.status, run.slot = "Pending", ""
        heapq.heappush(self._queue, (trial.number, run.number))

    def _epoch(self, trial: Trial, event: ev.EpochDone) -> None:
        run = trial.runs[event.run]
        # Trained again after a loss: what is new replaces what was seen before.
        while run.epochs and run.epochs[-1].epoch >= event.epoch:
            run.epochs.pop()
        self.epochs_trained += event.epoch - (run.trained or self._began_at(trial))
        run.epochs.append(event)
        self.gpu_seconds += event.gpu_seconds
        if event.parts > 1:
            self.in_parts[trial.number] = max(event.parts, self.in_parts.get(trial.number, 1))
        if not self._by_level and not trial.is_final:  # another of its runs may have failed
            self._evaluate(trial)

    def _began_at(self, trial: Trial) -> float:
        """Epochs that a step of PBT takes over from its parent."""
        return 0 if trial.parent is None else self.trials[trial.parent].runs[0].trained

    def _evaluate(self, trial: Trial) -> None:
        """Bring the trial's value up to date with its runs."""
        if len(trial.plan) == 1 and not self._by_level:  # most are: one result more, in O(1)
            done = trial.runs[trial.plan[0]].epochs[-1]
            found = trial.evaluations
            again = bool(found) and found[-1].epoch >= done.epoch
            while found and found[-1].epoch >= done.epoch:
                found.pop()
            found.append(Evaluation.of(done))
            candidates = found if again or trial.best is None else [trial.best, found[-1]]
        else:
            found = candidates = list(evaluations(trial.planned_runs))
        if not found:
            return
        trial.evaluations, trial.evaluated_level = found, trial.level
        if self.problem.best_of_last:
            trial.best = found[-1]
        else:
            trial.best = max(candidates, key=lambda e: (self.score(e), -e.epoch))
        rank = self._rank(trial)
        heapq.heappush(self._ranking, (-rank[0], -rank[1], trial.number))
        if rank > self._best_rank:
            self._best_rank, self._improver = rank, trial.number
            self.trials_since_best = 0

    def _reached(self, trial: Trial, event: ev.Reached) -> None:
        self._any_reached = True
        run = trial.runs[event.run]
        run.status = "Finished" if event.finished else "Reached"
        self.running.discard((trial.number, run.number))
        if trial.is_final:
            return  # another of its runs has failed, or the search is over
        if self.problem.rung_by == "Samples":
            run.checkpoint = None  # on more rows it begins anew
        if len(trial.plan) > 1 and not self._by_level:
            self._evaluate(trial)  # a run that ended early counts with its last value from here on
        if all(other.reached for other in trial.planned_runs):
            self._level_done(trial)
        else:
            self._settle(trial)

    def _level_done(self, trial: Trial) -> None:
        bracket = self._schedule[trial.bracket]
        rung = bracket.rung(trial.level)
        if self._by_level:
            self._evaluate(trial)
        if trial.level == bracket.first:
            self.trials_since_best += trial.number != self._improver
        trial.status = "Completed"
        self._arrive(trial)
        if trial.best is not None:
            trial.rung_values[trial.level] = trial.best.value
            if self.problem.conditions:
                trial.rung_margins[trial.level] = self.problem.margins(trial.best.metrics)
        if rung is None:
            self._schedule.reached(trial.level, self._curve)
            return
        # Each fold is finished with its rung; there may be more folds.
        more = self.problem.rung_by == "Folds" or any(
            run.status != "Finished" for run in trial.planned_runs
        )
        if not more:
            rung.finish(trial.number)
        elif self.ended is None:
            trial.status = "Paused"
            bracket.paused.add(trial.number)
        else:
            self._cut_off(trial)
        rung.report(trial.number, self.score(trial.best))
        self._schedule.reached(trial.level, self._curve)

    def _arrive(self, trial: Trial) -> None:
        trial.arrived.setdefault(trial.level, self._arrivals)  # it may have failed there before
        self._arrivals += 1

    def _settle(self, trial: Trial) -> None:
        """The status of a trial on its way to a rung follows from its runs."""
        if any(run.status == "Running" for run in trial.planned_runs):
            trial.status = "Running"
        elif self.ended is None or self.drains:
            trial.status = "Pending"
        else:
            self._cut_off(trial)

    def _cut_off(self, trial: Trial) -> None:
        """The search has ended without the trial."""
        trial.status = "Stopped"
        self._cut.add(trial.number)

    def _requeue(self, trial: Trial, number: int, lost: bool) -> None:
        run = trial.runs[number]
        self.running.discard((trial.number, number))
        run.losses += lost
        self._enqueue(trial, run)
        if trial.is_final:
            return
        if run.losses > MAX_LOSSES:
            message = f"its worker process ended {run.losses} times in a row"
            self._close(trial, "Failed", "Preempted", message)
        else:
            self._settle(trial)

    def _fail(self, trial: Trial, event: ev.Failed) -> None:
        run = trial.runs[event.run]
        self.running.discard((trial.number, run.number))
        self._enqueue(trial, run)
        if trial.is_final:
            return
        trial.failures += event.failure_class == "Internal"
        if event.failure_class == "Internal" and trial.failures <= MAX_RETRIES:
            self._settle(trial)
        else:
            status: TrialStatus = "Diverged" if event.failure_class == "Diverged" else "Failed"
            self._close(trial, status, event.failure_class, event.message)

    def _close(self, trial: Trial, status: TrialStatus, failure_class: str, message: str) -> None:
        trial.status, trial.failure_class, trial.message = status, failure_class, message
        self._arrive(trial)
        self.failed += status == "Failed"
        if status == "Failed" and not self._any_reached:
            self._first_failures.append((trial.number, _gist(f"{failure_class}: {message}")))
        bracket = self._schedule[trial.bracket]
        rung = bracket.rung(trial.level)
        if rung is not None:
            counts = self.problem.rung_rule == "SomeWhole"
            rung.lose(judged=counts and status == "Diverged")
        self.trials_since_best += trial.level == bracket.first
        if trial.number == self._improver:  # its value does not count any more
            best = self.best_trial()
            self._improver = best.number if best else None
            self._best_rank = self._rank(best) if best else (0, -math.inf)
            self.trials_since_best = 0

    def _end(self, event: ev.SearchEnded) -> None:
        if self._term_began is not None:
            self._elapsed += max(0.0, event.time - self._term_began)
        self.ended = event
        for trial in self.trials:
            # One that waits for a slot between two of its runs is on its way to its rung, as those that run.
            if trial.status == "Paused" or (trial.status == "Pending" and not self.drains):
                self._cut_off(trial)

    def _reopen(self, event: ev.Reopened) -> None:
        """What the end has stopped goes on, from nothing: the checkpoints went with it."""
        if event.retry:
            self.retries.add(event.retry)
            if self.failed_by_trials:
                self._forgive()
        self.ended = self.ensemble = self.refit = None
        self.refit_failures, self._refit_losses = [], 0
        self.reopened += 1
        self._term_began = event.time
        for number in sorted(self._cut):
            trial = self.trials[number]
            self._open[number] = trial
            for run in trial.runs.values():
                run.checkpoint, run.losses = None, 0
            if all(run.reached for run in trial.planned_runs):
                trial.status = "Paused"
                self._schedule[trial.bracket].paused.add(number)
                continue
            trial.status = "Pending"
            for run in trial.planned_runs:
                if not run.reached:
                    self._enqueue(trial, run)
        self._cut.clear()

    def _forgive(self) -> None:
        """Failed trials are tried again, from nothing, and the failures so far do not count."""
        self.failed = 0
        self._first_failures.clear()
        if self._population is not None:
            return  # its members have gone on without them
        for trial in self.trials:
            if trial.status != "Failed":
                continue
            rung = self._schedule[trial.bracket].rung(trial.level)
            if rung is not None:
                rung.regain()
            trial.status, trial.failures, trial.failure_class, trial.message = "Pending", 0, "", ""
            trial.evaluations, trial.best = [], None
            self._open[trial.number] = trial
            for run in trial.planned_runs:
                run.checkpoint, run.losses = None, 0
                if not run.reached:
                    self._enqueue(trial, run)

    def _requeue_refit(self, message: str, lost: bool) -> None:
        self.refit_slot = None
        self._refit_losses += lost
        if self._refit_losses > MAX_LOSSES:
            message = message or f"its worker process ended {self._refit_losses} times"
        if message:
            self.refit_failures.append(message)

    # What follows from it.

    @property
    def drains(self) -> bool:
        """Whether the search has ended so that trials in flight go on to their next rung."""
        return self.ended is not None and self.ended.reason in DRAINING

    @property
    def failed_by_trials(self) -> bool:
        """Whether the study has ended in failure because of its trials."""
        if self.ended is None:
            return False
        return self.ended.reason == "TooManyFailedTrials" or self.best_trial() is None

    def elapsed(self, now: float) -> float:
        """Seconds of searching over all terms; time without a driver, or without storage, does not count."""
        if self.ended is not None or self._term_began is None:
            return max(0.0, self._elapsed)
        return max(0.0, self._elapsed + max(0.0, now - self._term_began))

    def failed_alike(self) -> str:
        """Why the first trials failed, if all of them did and for the same reason; else empty."""
        first = self._first_failures[:ALIKE]
        if self._any_reached or len(first) < ALIKE or len({why for _, why in first}) > 1:
            return ""
        trial = self.trials[first[0][0]]
        return f"trial {trial.number}: {trial.failure_class}: {trial.message}"

    def best_trial(self) -> Trial | None:
        """The best of all trials that neither diverged nor failed; of equals the earlier.

        Where rungs are Samples or Folds, trials with more of them are better known, and come first.
        """
        while self._ranking:
            negative_level, negative, number = self._ranking[0]
            trial = self.trials[number]
            if trial.is_candidate and self._rank(trial) == (-negative_level, -negative):
                return trial
            heapq.heappop(self._ranking)
        return None

    def ranked(self, trials: list[Trial]) -> list[Trial]:
        """The candidates among `trials`, best first."""
        return sorted((trial for trial in trials if trial.is_candidate), key=self._order)

    def places(self) -> dict[int, int]:
        """Trial number → place among the candidates, from 1; those that are as good share the first of theirs."""
        ranks = {trial.number: self._rank(trial) for trial in self.ranked(self.trials)}
        first: dict[tuple[int, float], int] = {}
        for place, rank in enumerate(ranks.values(), start=1):
            first.setdefault(rank, place)
        return {number: first[rank] for number, rank in ranks.items()}

    def best_known(self) -> list[Trial]:
        """The candidates that have had as much of Samples or Folds as the best one, best first."""
        found = self.ranked(self.trials)
        level = found[0].evaluated_level if found and self._by_level else None
        return [trial for trial in found if level is None or trial.evaluated_level == level]

    def top_trials(self, count: int) -> list[Trial]:
        """The best trials, best first; O(n)."""
        candidates = (trial for trial in self.trials if trial.is_candidate)
        return heapq.nsmallest(count, candidates, key=self._order)

    def pareto_front(self) -> list[Trial]:
        """Trials that no other is at least as good as in every objective, by the first one, best first."""
        front: list[tuple[tuple[float, ...], Trial]] = []
        for trial in self.ranked(self.trials):
            scores = self.scores(trial)
            # Whoever dominates it is at least as good in the first objective, so came before it.
            if not any(
                all(a >= b for a, b in zip(other, scores, strict=True)) for other, _ in front
            ):
                front.append((scores, trial))
        return [trial for _, trial in front]

    def planned(self, budget: Budget) -> int | None:
        """Trials the study will propose unless something ends it early; None where only time limits it."""
        counts = (self._space_size, budget.max_trials)
        return min((count for count in counts if count is not None), default=None)

    @property
    def most_at_once(self) -> float:
        """Trials that can be trained at the same time: PBT has only one step of each member."""
        return math.inf if self._population is None else self._population.size

    def still_new(self, budget: Budget) -> int | None:
        """Trials that may still be proposed, at most; None where only time limits it."""
        if self.ended is not None or not self.has_new(budget):
            return 0
        planned = self.planned(budget)
        return None if planned is None else max(0, planned - len(self.trials))

    def open_trials(self) -> Iterator[Trial]:
        """Trials that have not ended."""
        for trial in list(self._open.values()):
            if trial.is_final:
                del self._open[trial.number]
            else:
                yield trial

    def runs_left(self, trial: Trial | None = None) -> int:
        """How many runs of a trial, None for a new one, may be trained at once from here on, at most."""
        if trial is None:
            return max(len(self.runs_at(level)) for level in range(len(self.problem.resources)))
        if trial.is_final:
            return 0
        now = 0 if trial.status == "Paused" else sum(not run.reached for run in trial.planned_runs)
        above = range(trial.level + 1, len(self.problem.resources)) if self.ended is None else ()
        later = (sum(not trial.has_finished(n) for n in self.runs_at(level)) for level in above)
        return max(now, *later, 0)

    @cached_property
    def _space_size(self) -> int | None:
        if self._population is not None:
            return self._population.planned
        return grid_size(self.problem.spaces, self.problem.constraints)

    def out_of_reach(self, budget: Budget) -> list[int]:
        """Paused trials, each named once, that will not be promoted whatever the trials to come bring."""
        if self.ended is not None:
            return []
        planned = self.planned(budget)
        self._most_planned = max(self._most_planned, math.inf if planned is None else planned)
        if self._most_planned == math.inf:
            return []
        more = 0 if self._proposer.exhausted else self._most_planned - len(self.trials)
        return self._schedule.out_of_reach(max(0, int(more)))

    def checkpoints_of(self, number: int) -> list[str]:
        """The trial's checkpoints that may be needed again."""
        trial = self.trials[number]
        if trial.is_final and not (self._population and self._population.needs(trial)):
            return []
        return [
            run.checkpoint
            for run in trial.runs.values()
            if run.checkpoint is not None and run.status != "Finished"
        ]

    def checkpoints(self) -> set[str]:
        """The checkpoints that may be needed again; anything else of that kind in storage is waste."""
        return {path for trial in self.trials for path in self.checkpoints_of(trial.number)}

    def runs_at(self, level: int) -> range | tuple[int, ...]:
        """Numbers of the runs that bring a trial to that rung: fold + folds * (repeat + repeats * sample)."""
        folds, repeats = self.problem.folds, self.problem.repeats
        match self.problem.rung_by:
            case "Folds":
                some = int(self.problem.resources[level])
                return tuple(fold + folds * r for r in range(repeats) for fold in range(some))
            case "Samples":
                each = folds * repeats
                return range(level * each, (level + 1) * each)
            case "Epochs" | "Seconds":
                return range(folds * repeats)

    def splits(self, trial: Trial) -> Iterator[tuple[int, ev.EpochDone]]:
        """(run, its result) of all that the trial's value is the mean of."""
        if trial.best is not None:
            for number in self.runs_at(trial.evaluated_level):
                done = trial.runs[number].at(trial.best.epoch)
                if done is not None:
                    yield number, done

    def epochs_of(self, trial: Trial) -> float:
        """Epochs that the trial has trained over all its runs; a step of PBT without those of its parent."""
        return trial.trained - (self._began_at(trial) if trial.trained else 0)

    def fold_and_repeat(self, run: int) -> tuple[int, int]:
        """Which fold is the validation part of a run, and which repetition it is."""
        folds = self.problem.folds
        return run % folds, run // folds % self.problem.repeats

    def last_epoch(self, trial: Trial) -> int:
        """Epochs of a whole training of the trial."""
        return int(trial.params.get("epochs", self.problem.max_epochs))

    def at_work(self) -> tuple[AtWork, ...]:
        """The trainings that slots are busy with, by trial."""
        found = []
        for number, run in sorted(self.running):
            trial = self.trials[number]
            to_epoch = self.item(trial, run).to_epoch
            found.append(AtWork(number, run, trial.runs[run].trained, to_epoch))
        return tuple(found)

    def item(self, trial: Trial, run: int | None = None) -> TrainItem:
        """The next piece of work for a trial: to its rung, or from there to the next, or to its end."""
        level = trial.level + (trial.status == "Paused")
        if run is None:
            run = next(n for n in self.runs_at(level) if not trial.has_finished(n))
        so_far = trial.runs.get(run)
        resource, top = self.problem.resources[level], level == len(self.problem.resources) - 1
        to_epoch: float = self.last_epoch(trial)
        if self._population is not None:
            to_epoch = self._population.to_epoch(trial)
        elif self.problem.rung_by == "Epochs" and not top:
            to_epoch = resource
        fold, repeat = self.fold_and_repeat(run)
        checkpoint = so_far.checkpoint if so_far else None
        inherited = checkpoint is None and trial.parent is not None
        if inherited:
            checkpoint = self.trials[trial.parent or 0].runs[0].checkpoint
        return TrainItem(
            trial=trial.number,
            params=trial.params,
            to_epoch=to_epoch,
            checkpoint=checkpoint,
            seed=self._seed(trial.number, repeat),
            run=run,
            fold=fold if self.problem.folds > 1 else None,
            rows=int(resource) if self.problem.rung_by == "Samples" else None,
            to_seconds=resource if self.problem.rung_by == "Seconds" else None,
            seconds=sum(done.seconds for done in so_far.epochs) if so_far else 0.0,
            inherits=inherited,
            new=trial if trial.number == len(self.trials) else None,
        )

    def refit_item(self, winner: Trial) -> RefitItem:
        """The refit of the winner, with the members of the ensemble if one is wanted."""
        item, members = self._refit_of(winner), self._members()
        if len(members) < 2:
            return item
        alike = (
            t for t in self.trials if t.is_candidate and self._fulfils(t) == self._fulfils(winner)
        )
        worst = min(self.score(trial.best) for trial in alike)
        leads = [self.score(trial.best) - worst for trial in members]
        told = (
            replace(self._refit_of(trial), lead=lead)
            for trial, lead in zip(members, leads, strict=True)
        )
        return replace(item, members=tuple(told))

    def _members(self) -> list[Trial]:
        """The best trials, best first. Of PBT, whose trials are steps of each other, the best of each member."""
        chosen: dict[tuple[str, int], Trial] = {}
        ranked = self.ranked(self.trials) if self.problem.ensemble else []
        for trial in ranked:
            if self._fulfils(trial) != self._fulfils(ranked[0]):
                break  # what breaks the conditions is no help to what fulfils them
            key = ("trial", trial.number) if trial.member is None else ("member", trial.member)
            chosen.setdefault(key, trial)
        return list(chosen.values())[: self.problem.ensemble]

    def _fulfils(self, trial: Trial) -> bool:
        """Whether the best of the trial fulfils the conditions of the objective."""
        return trial.best is not None and not self.problem.violation(trial.best.metrics)

    def _refit_of(self, winner: Trial) -> RefitItem:
        """The refit of a trial, for as many epochs as served it best."""
        assert winner.best is not None  # a winner has a value
        segments: list[Segment] = [(winner.params, winner.best.epoch)]
        step, values = winner, {done.epoch: done.value for done in winner.evaluations}
        while step.parent is not None:  # PBT: with the hyperparameters it had on the way
            step = self.trials[step.parent]
            segments.insert(0, (step.params, step.runs[0].trained))
            values |= {done.epoch: done.value for done in step.evaluations}
        seed, thresholds = self._seed(step.number, 0), winner.best.thresholds
        told = tuple(values[epoch] for epoch in takewhile(values.__contains__, count(1)))
        return RefitItem(winner.number, tuple(segments), seed, thresholds, told)

    def next_queued(self) -> TrainItem | None:
        """What lost its slot, or belongs to a trial that has begun: its rung waits for it."""
        while self._queue:
            number, run = self._queue[0]
            trial = self.trials[number]
            if trial.status in ("Pending", "Running") and trial.runs[run].status == "Pending":
                return self.item(trial, run)
            heapq.heappop(self._queue)
        return None

    def next_promotion(self, budget: Budget, worker: str = "") -> Trial | None:
        """The trial to promote, the highest first; of a rung one whose checkpoint `worker` has made, if any."""

        def local(number: int) -> bool:
            return any(
                run.slot.startswith(f"{worker}/") for run in self.trials[number].runs.values()
            )

        number = self._schedule.promotable(self.has_new(budget), local)
        return None if number is None else self.trials[number]

    def has_new(self, budget: Budget) -> bool:
        """Whether budget and space leave room for a new trial."""
        if self.invalid or len(self.trials) >= (budget.max_trials or math.inf):
            return False
        if self._population is not None:
            return self._population.has_more()
        return not self._proposer.exhausted

    def next_new(self) -> Trial | None:
        """The next new trial, not part of the state yet.

        None if the space is walked (and `has_new` no more), if PBT waits for its members, or if the study
        turns out to be `invalid`.
        """
        try:
            if self._population is not None:
                proposal = self._population.propose(self.trials, self.score)
            else:
                proposal = self._proposer.propose(self.trials)
        except SpecError as error:
            self.invalid = str(error)
            return None
        if proposal is None:
            return None
        return Trial(
            len(self.trials),
            proposal.params,
            level=self._schedule.next_first,
            generation=proposal.generation,
            parent=proposal.parent,
            member=proposal.member,
        )

    def _seed(self, trial: int, repeat: int) -> int:
        return self.problem.seed(f"{trial}/{repeat}" if repeat else f"{trial}")

    def score(self, evaluation: Evaluation | None) -> float:
        """Larger is better, and what fulfils the conditions better than what does not; NaN is worse than anything."""
        if evaluation is None or math.isnan(evaluation.value):
            return -math.inf
        return self.problem.ranked(evaluation.value, self.problem.violation(evaluation.metrics))

    def scores(self, trial: Trial) -> tuple[float, ...]:
        """One for each objective, larger is better, with what fulfils the conditions first."""
        assert trial.best is not None  # a candidate has a value
        return self.problem.ranked_scores(trial.best.value, trial.best.metrics)

    def _rank(self, trial: Trial) -> tuple[int, float]:
        return trial.evaluated_level if self._by_level else 0, self.score(trial.best)

    def _order(self, trial: Trial) -> tuple[int, float, int]:
        level, score = self._rank(trial)
        return -level, -score, trial.number

    def _curve(self, trial: int) -> list[float]:
        return [self.score(found) for found in self.trials[trial].evaluations]


def _gist(message: str) -> str:
    """The message without its numbers, which differ from trial to trial."""
    return re.sub(r"\d+", "", message)
