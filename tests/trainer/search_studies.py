"""Studies of an imaginary model, and a driver with one slot that runs them: for tests of the search."""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from finetune_api.hyperparameters import Scalar
from finetune_api.study import StudySpec
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import RecordLog
from finetune_trainer.search.decisions import next_item, reopening, search_ending, starting
from finetune_trainer.search.items import Decision, End, RefitItem, TrainItem, Wait
from finetune_trainer.search.problem import Problem, problem_of
from finetune_trainer.search.state import DRAINING, StudyState
from finetune_trainer.search.warm_start import inherit
from finetune_trainer.storage.folder import Storage

CONTINUOUS = {"learningRate": {"min": 1e-5, "max": 1e-1, "scale": "Log"}}


def study_spec(**changes: Any) -> StudySpec:
    """A random search over one continuous hyperparameter, 9 epochs, 12 trials, unless `changes` say else."""
    return StudySpec.model_validate(
        {
            "task": "SingleLabel",
            "model": {"name": "none"},
            "dataset": {"files": {"train": "a.csv"}, "textColumns": ["t"], "labelColumn": "l"},
            "objective": {"metric": "accuracy"},
            "hyperparameters": {"epochs": 9},
            "searchSpaces": [CONTINUOUS],
            "search": {"algorithm": "Random", "seed": 7},
            "budget": {"maxTrials": 12},
            **changes,
        }
    )


ASHA = {"algorithm": "Random", "seed": 7, "scheduler": {"type": "ASHA"}}


REFIT = -1
"""Stands for the refit among the trials."""

ROWS = 90
"""Training rows of the imaginary data."""


def accuracy(
    params: dict[str, Scalar],
    epoch: float,
    fold: int | None = None,
    seed: int = 0,
    rows: int | None = None,
) -> float:
    """The imaginary validation accuracy: best near a learning rate of 1e-3, rising with epochs and rows, noisy."""
    rate = float(params.get("learningRate", 1e-3))
    where = "" if fold is None else f"/{fold}/{seed}"
    noise = zlib.crc32(f"{sorted(params.items())}/{epoch:g}{where}".encode()) / 2**32
    quality = math.exp(-(math.log10(rate / 1e-3) ** 2) / 4)
    share = 1.0 if rows is None else min(rows, ROWS) / ROWS
    value: float = round(quality * (1 - 0.8**epoch) * (0.5 + 0.5 * share) + 0.05 * noise, 6)
    return value


class Killed(Exception):
    """The process was killed."""


@dataclass
class Clock:
    """Seconds that pass one at a time."""

    now: float = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@dataclass
class Driver:
    """One term of a study with one slot, up to its end or until something kills it."""

    spec: StudySpec
    storage: Storage
    term: int
    clock: Clock = field(default_factory=Clock)
    items: list[TrainItem | RefitItem] = field(default_factory=list)
    epochs: list[tuple[int, int, float]] = field(default_factory=list)
    """(trial, run, epoch) in the order trained."""

    retry: str = ""
    fails: frozenset[int] = frozenset()
    """Trials of which every run fails; REFIT is the refit."""

    def __post_init__(self) -> None:
        self.log, history = RecordLog.start(self.storage, self.term, self.clock())
        self.state = StudyState.replayed(problem_of(self.spec, self.storage), history.events)
        self.torn = history.torn
        budget, now = self.spec.budget, self.clock()
        reopened = reopening(self.state, history.events, budget, now, self.retry)
        if reopened is not None:
            self.write(reopened)
        if self.spec.search.warm_start and self.state.inherited is None:
            inherited = inherit(self.spec, self.storage.local("").parent)
            self.write(ev.Inherited(self.clock(), trials=inherited))

    def write(self, *events: ev.Event) -> None:
        """Make events durable, then part of the state."""
        self.log.append(events)
        for event in events:
            self.state.apply(event)

    def decide(self) -> Decision:
        """What the slot does next; it is in the records before anybody knows."""
        decision = next_item(self.state, self.spec.budget, self.clock())
        if isinstance(decision, End) and self.state.ended is None:
            self.write(
                ev.SearchEnded(self.clock(), reason=decision.reason, message=decision.message)
            )
            return self.decide()
        if isinstance(decision, TrainItem):
            self.write(*starting(self.state, self.spec.budget, decision, "slot/1", self.clock()))
        elif isinstance(decision, RefitItem):
            self.write(ev.RefitStarted(self.clock(), trial=decision.trial, slot="slot"))
        return decision

    def work(self, item: TrainItem | RefitItem) -> Iterator[list[ev.Event]]:
        """Reports of one item, one epoch at a time."""
        if isinstance(item, TrainItem) and item.trial in self.fails:
            yield [
                ev.Failed(
                    self.clock(),
                    trial=item.trial,
                    failure_class="UserError",
                    message=f"no GPU {item.trial}",
                    run=item.run,
                )
            ]
            return
        if isinstance(item, RefitItem) and REFIT in self.fails:
            yield [ev.RefitRequeued(self.clock(), message="no GPU")]
            return
        if isinstance(item, RefitItem):
            yield [
                ev.RefitDone(
                    self.clock(), trial=item.trial, path="model", test_metrics={"accuracy": 0.5}
                )
            ]
            return
        begun = float(item.checkpoint.rpartition("/")[2]) if item.checkpoint else 0.0
        epoch, seconds = begun, item.seconds
        while epoch < item.to_epoch and (item.to_seconds is None or seconds < item.to_seconds):
            epoch = min(item.to_epoch, math.floor(epoch) + 1)
            seconds += 1
            self.epochs.append((item.trial, item.run, epoch))
            value = accuracy(item.params, epoch, item.fold, item.seed, item.rows)
            yield [epoch_done(item.trial, epoch, value, self.clock(), item.run)]
        finished = epoch >= self.state.last_epoch(self.state.trials[item.trial])
        whole = finished and (item.rows is None or item.rows >= ROWS)
        path = f"checkpoints/{item.trial}/{item.run}/{epoch:g}"
        saved = (
            []
            if finished
            else [ev.Saved(self.clock(), trial=item.trial, epoch=epoch, path=path, run=item.run)]
        )
        yield [*saved, ev.Reached(self.clock(), trial=item.trial, finished=whole, run=item.run)]

    def run(self) -> End:
        """Drive the study to its end."""
        while (end := self.step()) is None:
            pass
        return end

    def step(self) -> End | None:
        """Decide, and do that; returns the end of the study when it has come."""
        decision = self.decide()
        assert not isinstance(decision, Wait)  # one slot never waits for another
        if isinstance(decision, End):
            return decision
        self.items.append(decision)
        self._do(decision)
        return None

    def _do(self, item: TrainItem | RefitItem) -> None:
        for report in self.work(item):
            self.write(*report)
            ending = search_ending(self.state, self.spec.budget, self.clock())
            if ending is not None:
                self.write(
                    ev.SearchEnded(self.clock(), reason=ending.reason, message=ending.message)
                )
                run = 0 if isinstance(item, RefitItem) else item.run
                if ending.reason in DRAINING:
                    continue
                if (item.trial, run) in self.state.running:  # called back
                    self.write(ev.Requeued(self.clock(), trial=item.trial, run=run))
                return


def replay(spec: StudySpec, events: list[ev.Event]) -> StudyState:
    """The state that the events lead to."""
    return StudyState.replayed(Problem.of(spec), events)


def epoch_done(
    trial: int, epoch: float, value: float, time: float = 0.0, run: int = 0
) -> ev.EpochDone:
    """An epoch that took a second."""
    metrics = {"accuracy": value, "f1_macro": round(value * (1 - value), 6)}
    return ev.EpochDone(
        time,
        trial=trial,
        epoch=epoch,
        value=value,
        metrics=metrics,
        train_loss=0.1,
        seconds=1.0,
        gpu_seconds=0.5,
        run=run,
    )


def summary(state: StudyState) -> list[tuple[Any, ...]]:
    """What must not depend on crashes: params, fate and values of every trial."""
    return [
        (
            t.number,
            t.params,
            t.status,
            t.level,
            [(run.number, run.status, run.checkpoint) for run in t.runs.values()],
            [(e.epoch, e.value, e.deviation) for e in t.evaluations],
        )
        for t in state.trials
    ]


def distinct(items: list[TrainItem | RefitItem]) -> list[tuple[Any, ...]]:
    """Items without the repetitions that a restart causes, and without where they went on from."""
    steps = [
        (
            item.trial,
            (item.run, item.to_epoch, item.rows) if isinstance(item, TrainItem) else "refit",
            item.params if isinstance(item, TrainItem) else item.segments,
            item.seed,
        )
        for item in items
    ]
    return [step for n, step in enumerate(steps) if n == 0 or step != steps[n - 1]]
