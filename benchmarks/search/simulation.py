"""How soon a search finds a good configuration: ours, Ray's ASHA, Optuna's pruner, synchronous halving, random.

All search the same real learning curves (`digits.py`) in the same random orders, with rungs at 1, 3, 9 and
27 epochs (η = 3), on 1, 4 and 25 workers that each train one epoch per tick. Ours is the study's own state and
decisions; Ray's scheduler and Optuna's pruner are the real objects, which get every result as from their own
loops. What counts is the number of ticks until the best value seen is 99 % and 99.75 % of the best possible.

The table also shows a lower bound: a search that knows after one epoch whether a configuration reaches the target.
It trains each one before the first such configuration for one epoch, and that one to the target. No search that
must train a configuration to judge it can be faster.

Prints medians over the seeds with 95 % intervals (bootstrap); exits 1 unless ours is first in every cell,
and at least 2.5 times as fast as Ray's ASHA to 99 % on one worker.

    python -m benchmarks.search.simulation [--seeds 200]
"""

import argparse
import math
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Protocol, TypeAlias

import optuna

from benchmarks.machine import describe
from benchmarks.search.adapters import OurDecisions, RayDecisions, optuna_goes_on
from benchmarks.search.digits import EPOCHS, Curves, curves
from finetune_api.search import Budget, Scheduler, SchedulerType, Search
from finetune_api.spaces import FloatDomain
from finetune_trainer.search.items import TrainItem
from finetune_trainer.search.problem import Problem

FACTOR = 3
TARGETS = (0.99, 0.9975)
WORKERS = (1, 4, 25)
AHEAD_OF_RAY = 2.5
RESAMPLES = 1000

Job: TypeAlias = Any
"""What a worker trains, in the form of its search."""


class Searcher(Protocol):
    """A search that is asked for work and gets the value of every epoch."""

    def next(self) -> tuple[Job, int, int] | None:
        """A job, the position of its configuration in the order, and its epochs so far; None while there is nothing to do."""
        ...

    def goes_on(self, job: Job, epoch: int, value: float) -> bool:
        """Take in the value after `epoch`; returns whether the worker continues the job."""
        ...


class Ours:
    """The study's decisions under one of its schedulers."""

    def __init__(self, trials: int, scheduler: SchedulerType = "ASHA") -> None:
        rungs = Scheduler(type=scheduler, reduction_factor=FACTOR)
        search = Search(algorithm="Random", scheduler=rungs)
        spaces = [{"configuration": FloatDomain(min=0.0, max=1.0)}]
        problem = Problem(search, spaces, ("accuracy",), ("Maximize",), EPOCHS)
        self._decisions = OurDecisions(problem, Budget(max_trials=trials))
        self.goes_on = self._decisions.goes_on

    def next(self) -> tuple[TrainItem, int, int] | None:
        item = self._decisions.take()
        return None if item is None else (item, item.trial, self._decisions.epochs(item))


class Rays:
    """Ray's ASHA: a trial runs until the scheduler stops it."""

    def __init__(self, trials: int) -> None:
        self._trials, self._decisions = trials, RayDecisions(EPOCHS, FACTOR)
        self.goes_on = self._decisions.goes_on

    def next(self) -> tuple[Any, int, int] | None:
        number = self._decisions.begun
        return None if number == self._trials else (self._decisions.take(), number, 0)


@dataclass
class Optunas:
    """Optuna's SuccessiveHalvingPruner: a trial runs until it is pruned."""

    trials: int
    begun: int = 0

    def __post_init__(self) -> None:
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR)
        sampler = optuna.samplers.RandomSampler(seed=0)
        self._study = optuna.create_study(direction="maximize", pruner=pruner, sampler=sampler)

    def next(self) -> tuple[optuna.Trial, int, int] | None:
        if self.begun == self.trials:
            return None
        self.begun += 1
        return self._study.ask(), self.begun - 1, 0

    def goes_on(self, job: optuna.Trial, epoch: int, value: float) -> bool:
        return optuna_goes_on(self._study, job, epoch, value, EPOCHS)


@dataclass
class Halving:
    """Successive halving as first published: 27 configurations, all of which reach a rung before the best go on."""

    trials: int
    begun: int = 0
    level: int = 0
    ready: list[int] = field(default_factory=list)
    values: dict[int, float] = field(default_factory=dict)
    awaited: int = 0

    def next(self) -> tuple[int, int, int] | None:
        if not self.ready and not self.awaited:
            self._next_rung()
        if not self.ready:
            return None
        number = self.ready.pop(0)
        return number, number, self._epochs(self.level - 1) if self.level else 0

    def _next_rung(self) -> None:
        best = sorted(self.values, key=lambda number: -self.values[number])
        best = best[: len(best) // FACTOR]
        if best:
            self.ready, self.level = best, self.level + 1
        else:
            self.level = 0
            self.ready = list(range(self.begun, min(self.begun + EPOCHS, self.trials)))
            self.begun += len(self.ready)
        self.values, self.awaited = {}, len(self.ready)

    @staticmethod
    def _epochs(level: int) -> int:
        return int(FACTOR**level)

    def goes_on(self, job: int, epoch: int, value: float) -> bool:
        if epoch < self._epochs(self.level):
            return True
        self.values[job] = value
        self.awaited -= 1
        return False


@dataclass
class AllToTheEnd:
    """Random search: every configuration is trained for all epochs."""

    trials: int
    begun: int = 0

    def next(self) -> tuple[int, int, int] | None:
        if self.begun == self.trials:
            return None
        self.begun += 1
        return self.begun - 1, self.begun - 1, 0

    def goes_on(self, job: int, epoch: int, value: float) -> bool:
        return epoch < EPOCHS


OURS = "ours: ASHA"
RAY = "Ray's ASHA"
RIVALS: dict[str, Callable[[int], Searcher]] = {
    OURS: Ours,
    RAY: Rays,
    "Optuna's SuccessiveHalvingPruner": Optunas,
    "synchronous halving": Halving,
    "random": AllToTheEnd,
}
OTHERS: dict[str, Callable[[int], Searcher]] = {
    f"ours: {name}": partial(Ours, scheduler=name) for name in ("PASHA", "Hyperband", "MedianStop")
}


BOUND = "lower bound"


def ticks_to(targets: list[float], table: Curves, search: Searcher, workers: int) -> list[float]:
    """Epochs of wall time until each target is reached; infinite if the search ends earlier."""
    slots: list[tuple[Job, list[float], int]] = []
    tick, reached = 0, [math.inf] * len(targets)
    while math.isinf(reached[-1]):
        while len(slots) < workers:
            given = search.next()
            if given is None:
                break
            slots.append((given[0], table[given[1]], given[2]))
        if not slots:
            break
        tick += 1
        going: list[tuple[Job, list[float], int]] = []
        for job, curve, epoch in slots:
            value = curve[epoch]
            reached = [
                tick if math.isinf(at) and value >= target else at
                for at, target in zip(reached, targets, strict=True)
            ]
            if search.goes_on(job, epoch + 1, value):
                going.append((job, curve, epoch + 1))
        slots = going
    return reached


def epochs_to(target: float, curve: list[float]) -> float:
    """Epochs until a configuration reaches the target; infinite if it never does."""
    return next((epoch for epoch, value in enumerate(curve, 1) if value >= target), math.inf)


def at_first_sight(target: float, order: Curves, workers: int) -> float:
    """The lower bound in epochs of wall time: each configuration shows after one epoch whether it reaches the target."""
    return min(i // workers + epochs_to(target, curve) for i, curve in enumerate(order))


def targets_in(table: Curves) -> list[float]:
    """The accuracies to reach."""
    best = max(max(curve) for curve in table)
    return [share * best for share in TARGETS]


def search_seed(table: Curves, seed: int) -> dict[tuple[str, int], list[float]]:
    """(rival, workers) → ticks to each target, all in the order of that seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    order = random.Random(seed).sample(table, len(table))
    targets = targets_in(table)
    found = {
        (name, workers): ticks_to(targets, order, make(len(order)), workers)
        for name, make in {**RIVALS, **OTHERS}.items()
        for workers in WORKERS
    }
    for workers in WORKERS:
        found[BOUND, workers] = [at_first_sight(target, order, workers) for target in targets]
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the median."""
    rng = random.Random(0)
    medians = sorted(median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[round(0.025 * RESAMPLES)], medians[round(0.975 * RESAMPLES) - 1]


def progress(results: Iterator[Any], total: int) -> Iterator[Any]:
    """The results, with their number shown on standard error."""
    for number, result in enumerate(results, start=1):
        print(f"\r{number}/{total} seeds", end="", file=sys.stderr, flush=True)
        yield result
    print(file=sys.stderr)


def main() -> int:
    """Run the benchmark; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=200)
    seeds: int = parser.parse_args().seeds
    table = curves()
    print(describe())
    print(
        f"{len(table)} MLP configurations on scikit-learn's digits, {EPOCHS} epochs; {seeds} seeds"
    )
    for share, target in zip(TARGETS, targets_in(table), strict=True):
        needed = sorted(epochs_to(target, curve) for curve in table)
        needed = [epochs for epochs in needed if epochs < math.inf]
        print(
            f"{share:.2%} of the best: reached by {len(needed)} configurations, in {needed[0]} to"
            f" {needed[-1]} epochs, median {median(needed):g}"
        )
    print("epochs of wall time to a share of the best: median [95 % interval], over ours")
    with ProcessPoolExecutor() as pool:
        found = list(progress(pool.map(partial(search_seed, table), range(seeds)), seeds))
    missed = []
    for workers in WORKERS:
        for index, share in enumerate(TARGETS):
            print(f"\n{workers} worker{'s' if workers > 1 else ''}, {share:.2%}")
            medians = {}
            for name in (*RIVALS, *OTHERS, BOUND):
                ticks = [run[name, workers][index] for run in found]
                low, high = interval(ticks)
                medians[name] = median(ticks)
                ratio = medians[name] / medians[OURS]
                print(f"  {name:34} {medians[name]:>7g} [{low:g}, {high:g}]   {ratio:.2f}")
            if any(medians[name] <= medians[OURS] for name in RIVALS if name != OURS):
                missed.append(f"not first: {workers} workers, {share:.2%}")
            if workers == 1 and share == TARGETS[0] and medians[RAY] < AHEAD_OF_RAY * medians[OURS]:
                missed.append(f"less than {AHEAD_OF_RAY} times as fast as Ray's ASHA")
    print("\n" + ("MISSED: " + "; ".join(missed) if missed else "first in every cell"))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
