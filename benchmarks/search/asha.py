"""Promoting ASHA against Ray's AsyncHyperBandScheduler, which only stops: epochs for a winner at least as good.

Both get the same configurations in the same order, on real learning curves (`digits.py`), with the same
rungs (1, 3, 9, 27 epochs, η = 3). Ray's scheduler is the real object, told every result as Ray Tune would
tell it. Ours is the study's own state: if its winner is worse than Ray's when its search ends, it goes on
with further configurations, at its own expense, until it is as good.

Prints a table; exits 1 if the median ratio of epochs is above 0.6.

    python -m benchmarks.search.asha [--seeds 20]
"""

import argparse
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from benchmarks.machine import describe
from benchmarks.search.digits import EPOCHS, Curves, curves
from finetune_api.study import Budget, StudySpec
from finetune_trainer.search import events as ev
from finetune_trainer.search.state import StudyState, TrainItem, next_item

BAR = 0.6
FACTOR = 3


@dataclass
class Search:
    """What a search has done: epochs trained, the best value, and the epochs after which it was there."""

    epochs: int = 0
    best: float = 0.0
    epochs_to_best: int = 0
    finished_at: int = 0
    """Epochs when the search itself had ended."""

    def see(self, value: float) -> None:
        """One more epoch."""
        self.epochs += 1
        if value > self.best:
            self.best, self.epochs_to_best = value, self.epochs


def search_by_ray(table: Curves, order: list[int], workers: int) -> Search:
    """Every configuration of `order` runs until the scheduler stops it."""
    scheduler = AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="accuracy",
        mode="max",
        max_t=EPOCHS,
        grace_period=1,
        reduction_factor=FACTOR,
    )
    search, waiting = Search(), iter(order)
    slots = [
        slot for slot in (_ray_trial(scheduler, table, waiting) for _ in range(workers)) if slot
    ]
    while slots:  # every slot trains an epoch
        for slot in list(slots):
            trial, curve = slot
            trial.epoch += 1
            value = curve[trial.epoch - 1]
            search.see(value)
            result = {"epoch": trial.epoch, "accuracy": value}
            action = scheduler.on_trial_result(None, trial, result)
            if action == TrialScheduler.STOP:
                scheduler.on_trial_complete(None, trial, result)
                slots.remove(slot)
                slots.extend([more] if (more := _ray_trial(scheduler, table, waiting)) else [])
    search.finished_at = search.epochs
    return search


def _ray_trial(
    scheduler: AsyncHyperBandScheduler, table: Curves, waiting: Iterator[int]
) -> tuple[Any, list[float]] | None:
    number = next(waiting, None)
    if number is None:
        return None
    trial = SimpleNamespace(trial_id=str(number), epoch=0)
    scheduler.on_trial_add(None, trial)
    return trial, table[number]


def _spec() -> StudySpec:
    return StudySpec.model_validate(
        {
            "task": "SingleLabel",
            "model": {"name": "none"},
            "dataset": {"files": {"train": "a.csv"}, "textColumns": ["t"], "labelColumn": "l"},
            "objective": {"metric": "accuracy"},
            "hyperparameters": {"epochs": EPOCHS},
            "searchSpaces": [{"learningRate": {"min": 1e-5, "max": 1.0, "scale": "Log"}}],
            "search": {
                "algorithm": "Random",
                "scheduler": {"type": "ASHA", "reductionFactor": FACTOR},
            },
            "budget": {"maxTrials": 1},
        }
    )


def search_by_promotion(
    table: Curves, order: list[int], trials: int, workers: int, as_good_as: float
) -> Search:
    """Our search over the first `trials` of `order`, and more of them until it is `as_good_as`."""
    state, search, slots = StudyState(_spec()), Search(), list[list[Any]]()
    while True:
        while len(slots) < workers:
            item = next_item(state, Budget(max_trials=trials), 0.0)
            if not isinstance(item, TrainItem):
                break
            if item.trial == len(state.trials):
                state.apply(ev.Proposed(0.0, item.trial, item.params))
            slots.append([item, len(state.trials[item.trial].epochs)])
            state.apply(ev.Started(0.0, item.trial, "slot", item.to_epoch))
        if not slots:
            search.finished_at = search.finished_at or search.epochs
            if search.best >= as_good_as or trials == len(order):
                return search
            trials += 1
            continue
        for slot in list(slots):  # every slot trains an epoch
            item, slot[1] = slot[0], slot[1] + 1
            value = table[order[item.trial]][slot[1] - 1]
            search.see(value)
            if search.finished_at and search.best >= as_good_as:
                return search
            state.apply(ev.EpochDone(0.0, item.trial, slot[1], value, {}, 0.0, 1.0, 0.0))
            if slot[1] == item.to_epoch:
                state.apply(ev.Reached(0.0, item.trial))
                slots.remove(slot)


def compare(table: Curves, trials: int, workers: int, seeds: int) -> float:
    """Print a line of the table; the median ratio of epochs."""
    ratios, to_best, ray_epochs, our_epochs, ahead, longer = [], [], [], [], [], 0
    for seed in range(seeds):
        order = random.Random(seed).sample(range(len(table)), len(table))
        theirs = search_by_ray(table, order[:trials], workers)
        ours = search_by_promotion(table, order, trials, workers, theirs.best)
        ratios.append(ours.epochs / theirs.epochs)
        ray_epochs.append(theirs.epochs)
        our_epochs.append(ours.epochs)
        to_best.append(
            _epochs_to(table, order, trials, workers, theirs.best) / theirs.epochs_to_best
        )
        ahead.append(ours.best - theirs.best)
        longer += ours.epochs > ours.finished_at
    median = statistics.median(ratios)
    print(
        f"{trials:>8} {workers:>8} {statistics.median(ray_epochs):>11.0f} "
        f"{statistics.median(our_epochs):>11.0f} {median:>8.2f} "
        f"{min(ratios):>6.2f}–{max(ratios):<6.2f} {longer:>7} {statistics.median(ahead):>+11.4f} "
        f"{statistics.median(to_best):>11.2f}"
    )
    return median


def _epochs_to(table: Curves, order: list[int], trials: int, workers: int, value: float) -> int:
    """Epochs after which our search first has `value`."""
    clipped = [[min(v, value) for v in curve] for curve in table]
    return search_by_promotion(clipped, order, trials, workers, value).epochs_to_best


def main() -> int:
    """Run the benchmark; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    seeds: int = parser.parse_args().seeds
    table = curves()
    print(describe())
    print(
        f"{len(table)} MLP configurations on scikit-learn's digits, {EPOCHS} epochs, median of {seeds} seeds"
    )
    print(
        f"{'trials':>8} {'workers':>8} {'Ray epochs':>11} {'our epochs':>11} {'ratio':>8} "
        f"{'range':>13} {'longer':>7} {'ahead by':>11} {'to Ray best':>11}"
    )
    medians = [compare(table, trials, workers, seeds) for trials in (60, 200) for workers in (1, 4)]
    print("longer: seeds in which ours needed more configurations than Ray to be as good")
    print("to Ray best: epochs to the first sight of a value as good as Ray's winner, ours / Ray's")
    print(f"ratio at most {BAR}: {'reached' if max(medians) <= BAR else 'MISSED'}")
    return int(max(medians) > BAR)


if __name__ == "__main__":
    sys.exit(main())
