"""One trial as the records tell it, and the runs (folds, repeats, samples) it is made of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from finetune_api.combinations import Params
from finetune_trainer.records.events import EpochDone

TrialStatus: TypeAlias = Literal[
    "Pending", "Running", "Paused", "Completed", "Stopped", "Diverged", "Failed"
]
"""Pending: waits for a slot, new or after losing one. Paused: at a rung, goes on if promoted. Completed:
trained to its end. Stopped: not promoted, or cut off by the end of the search. The last four are final."""

RunStatus: TypeAlias = Literal["Pending", "Running", "Reached", "Finished"]
"""Reached: as far as it was told to. Finished: it has nothing more to train."""


@dataclass(slots=True)
class Run:
    """One training of a trial: the only one, or that of one fold, one seed, one sample of rows."""

    number: int
    status: RunStatus = "Pending"
    epochs: list[EpochDone] = field(default_factory=list)
    checkpoint: str | None = None
    slot: str = ""
    losses: int = 0
    """Times it lost its worker since its last checkpoint."""

    @property
    def reached(self) -> bool:
        """Whether it is where it was told to go."""
        return self.status in ("Reached", "Finished")

    @property
    def trained(self) -> float:
        """Epochs trained and evaluated."""
        return self.epochs[-1].epoch if self.epochs else 0

    def at(self, epoch: float) -> EpochDone | None:
        """Its result at `epoch`, or its last if it ended before; None if it may still come there."""
        for done in reversed(self.epochs):
            if done.epoch == epoch or (done.epoch < epoch and self.reached):
                return done
            if done.epoch < epoch:
                return None
        return None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a trial showed after `epoch` epochs, as the mean over its runs."""

    epoch: float
    value: float
    metrics: dict[str, float]
    deviation: float | None = None
    """Standard deviation of the value over the runs; None of a single one."""

    runs: int = 1
    thresholds: list[float] | None = None
    """Probability from which on each label is predicted, where it was tuned."""

    @classmethod
    def of(cls, done: EpochDone) -> "Evaluation":
        """The evaluation of a trial with a single run."""
        return cls(done.epoch, done.value, done.metrics, thresholds=done.thresholds)

    @property
    def standard_error(self) -> float | None:
        """Standard error of the value."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.runs)


def evaluations(runs: Sequence[Run]) -> Iterator[Evaluation]:
    """The mean curve: at each epoch at which every run has a result, or has ended before."""
    if len(runs) == 1:
        yield from map(Evaluation.of, runs[0].epochs)
        return
    for epoch in sorted({done.epoch for run in runs for done in run.epochs}):
        results = [done for run in runs if (done := run.at(epoch)) is not None]
        if len(results) == len(runs):
            yield _mean(epoch, results)


def _mean(epoch: float, results: list[EpochDone]) -> Evaluation:
    values = [done.value for done in results]
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    names = [name for name in results[0].metrics if all(name in done.metrics for done in results)]
    metrics = {
        name: math.fsum(done.metrics[name] for done in results) / len(results) for name in names
    }
    tuned = [done.thresholds for done in results if done.thresholds is not None]
    thresholds = [math.fsum(found) / len(tuned) for found in zip(*tuned, strict=True)] or None
    return Evaluation(epoch, mean, metrics, math.sqrt(variance), len(values), thresholds)


@dataclass(slots=True)
class Trial:
    """All that is known of one trial."""

    number: int
    params: Params
    status: TrialStatus = "Pending"
    bracket: int = 0
    """Which trials it is compared with."""

    level: int = 0
    """Index of the rung it trains for, or waits at."""

    begun: bool = False
    """Whether any of it was started."""

    runs: dict[int, Run] = field(default_factory=dict)
    plan: range | tuple[int, ...] = ()
    """Numbers of the runs that bring it to its rung."""

    evaluations: list[Evaluation] = field(default_factory=list)
    evaluated_level: int = 0
    """Rung of whose runs the evaluations are the mean."""

    rung_values: dict[int, float] = field(default_factory=dict)
    """Its value at each rung it has reached, by level."""

    rung_margins: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """Of the conditions of the objective there (`Problem.margins`), where it has any."""

    arrived: dict[int, int] = field(default_factory=dict)
    """Level it has reached, or failed on the way to → how many such arrivals the study had before."""

    best: Evaluation | None = None
    """Its value: the evaluation with the best objective (the earliest of equals), or the last."""

    failures: int = 0
    failure_class: str = ""
    message: str = ""
    generation: int | None = None
    """Evolution and CMAES: its generation. PBT: how many steps its member had before."""

    parent: int | None = None
    """PBT: the trial from whose last checkpoint it goes on."""

    member: int | None = None
    """PBT: its place in the population."""

    @property
    def is_candidate(self) -> bool:
        """Whether it can be the winner: it has a value, and neither diverged nor failed."""
        return self.best is not None and self.status not in ("Diverged", "Failed")

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.status in ("Completed", "Stopped", "Diverged", "Failed")

    @property
    def first_arrival(self) -> int:
        """Its place among the trials in the order of their first results, or of their failures before any."""
        return min(self.arrived.values(), default=self.number)

    def arrival(self, level: int) -> int:
        """Its place among the arrivals of the study at `level`, or where it ended before."""
        return next(
            (self.arrived[at] for at in range(level, -1, -1) if at in self.arrived), self.number
        )

    def has_finished(self, run: int) -> bool:
        """Whether that run has nothing more to train."""
        return run in self.runs and self.runs[run].status == "Finished"

    @property
    def planned_runs(self) -> list[Run]:
        """The runs that bring it to its rung."""
        return [self.runs[number] for number in self.plan]

    @property
    def trained(self) -> float:
        """Epochs trained, over all its runs."""
        return sum(run.trained for run in self.runs.values())


@dataclass(frozen=True)
class Proposal:
    """A trial to be; the last three as in `Trial`."""

    params: Params
    generation: int | None = None
    parent: int | None = None
    member: int | None = None
