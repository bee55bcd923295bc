"""How each trial of a study was trained: what its slots were told, with what they trained, and what came of it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from finetune_trainer.errors import SpecError
from finetune_trainer.records import events as ev
from finetune_trainer.search.items import TrainItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState
from finetune_trainer.search.trials import Run, Trial

FIELD = "--trial"


@dataclass(frozen=True)
class Result:
    """How one run of a trial went: what it showed, and why it failed, if it did."""

    epochs: list[ev.EpochDone]
    failure: str = ""

    def at(self, epoch: float) -> dict[str, float]:
        """Metrics, training loss and tuned thresholds at `epoch`, by name; empty if it was not evaluated there."""
        for done in self.epochs:
            if done.epoch == epoch:
                tuned = {f"threshold {n}": each for n, each in enumerate(done.thresholds or ())}
                return {**done.metrics, "training loss": done.train_loss, **tuned}
        return {}


class Trainings:
    """What the records tell about the training of each trial."""

    def __init__(self, problem: Problem, events: Iterable[ev.Event]) -> None:
        self._problem = problem
        self._state = StudyState(problem)
        self._slots: dict[str, ev.SlotReady] = {}
        self._started: dict[tuple[int, int], list[ev.Started]] = defaultdict(list)
        self._failed: dict[tuple[int, int], ev.Failed] = {}
        for event in events:
            self._state.apply(event)
            match event:
                case ev.SlotReady():
                    self._slots[event.slot] = event
                case ev.Started():
                    self._started[event.trial, event.run].append(event)
                case ev.Failed():
                    self._failed[event.trial, event.run] = event
                case _:
                    pass

    def trial(self, number: int) -> Trial:
        """The trial of that number. Raises SpecError if there is none, or none that has trained."""
        trials = self._state.trials
        if not 0 <= number < len(trials):
            there = (
                f"one of 0 to {len(trials) - 1}" if trials else "in the records, which have none"
            )
            raise SpecError(FIELD, f"must be {there} (got {number})")
        if not self.runs(trials[number]):
            status = trials[number].status
            raise SpecError(FIELD, f"must be a trial that has trained (got {number}: {status})")
        return trials[number]

    def runs(self, trial: Trial) -> list[Run]:
        """The trial's runs that have a result, or have failed for good."""
        runs = (trial.runs[number] for number in sorted(trial.runs))
        return [run for run in runs if run.epochs or self._failure(trial, run)]

    def result(self, trial: Trial, run: Run) -> Result:
        """How a run went."""
        return Result(run.epochs, self._failure(trial, run))

    def _failure(self, trial: Trial, run: Run) -> str:
        failed = self._failed.get((trial.number, run.number))
        if failed is None or trial.status not in ("Diverged", "Failed"):
            return ""
        return f"{failed.failure_class}: {failed.message}"

    def lineage(self, trial: Trial) -> list[Trial]:
        """The trial, and before it those whose weights it took over (PBT), from the first on."""
        found = [trial]
        while found[0].parent is not None:
            found.insert(0, self._state.trials[found[0].parent])
        return found

    def slots(self, trial: Trial) -> list[ev.SlotReady]:
        """What the slots that trained it had, from the first on. Raises SpecError if the records do not say."""
        starts = [
            start
            for step in self.lineage(trial)
            for run in step.runs
            for start in self._started[step.number, run]
        ]
        names = dict.fromkeys(start.slot for start in starts)
        found = [self._slots[name] for name in names if name in self._slots]
        if not found:
            raise SpecError(
                FIELD, f"must be a trial whose records have versions and seeds (got {trial.number})"
            )
        return found

    def items(self, trial: Trial, run: Run) -> Iterator[TrainItem]:
        """What a slot is to be told to bring a run from the beginning to its end.

        They stop where the run was evaluated within an epoch; each goes on from the checkpoint of the last.
        """
        starts = self._started[trial.number, run.number]
        failed = bool(self._failure(trial, run))
        end = max(start.to_epoch for start in starts) if failed else run.trained
        within = [done.epoch for done in run.epochs if done.epoch % 1]
        fold, _ = self._state.fold_and_repeat(run.number)
        for to_epoch in dict.fromkeys((*within, end)):
            yield TrainItem(
                trial=trial.number,
                params=trial.params,
                to_epoch=to_epoch,
                checkpoint=None,
                seed=starts[0].seed,
                run=run.number,
                fold=fold if self._problem.folds > 1 else None,
                rows=self._rows(run),
            )

    def name(self, run: Run) -> str:
        """Which of the trial's runs it is, in words; empty if there is only one."""
        fold, repeat = self._state.fold_and_repeat(run.number)
        rows = self._rows(run)
        parts = {
            f"fold {fold}": self._problem.folds > 1,
            f"repeat {repeat}": self._problem.repeats > 1,
            f"{rows} rows": rows is not None,
        }
        return ", ".join(part for part, is_told in parts.items() if is_told)

    def _rows(self, run: Run) -> int | None:
        if self._problem.rung_by != "Samples":
            return None
        return int(self._problem.resources[run.number // self._problem.trainings])
