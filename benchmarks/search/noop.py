"""What a search costs apart from its work: 10,000 trials through Ray Tune, including records and progress.

First with a function that computes for 10 ms, one call per trial; then, under ASHA, with one that does nothing. Prints
trials per second, milliseconds per item, the memory of driver and broker, the seconds that loading the records and
deriving the state from them takes, and the size of the findings; exits 1 if a bar is missed.

    python -m benchmarks.search.noop [--trials 10000]
"""

import argparse
import json
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks.machine import describe
from finetune_api.manifest import parse_study
from finetune_api.study import FineTuneStudy, StudySpec
from finetune_trainer.driver import PUBLISH_SECONDS
from finetune_trainer.environment import SlotResources
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.records.log import read_history
from finetune_trainer.runtime.ray_tune import run_slots, start_broker, start_ray
from finetune_trainer.runtime.slot import Work
from finetune_trainer.search.items import TrainItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.results import findings
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from finetune_trainer.worker.item import Item

SLOTS = 2
EPOCHS = 27
LEAST_RATE = 80
WORK_SECONDS = 0.01


def study(trials: int, scheduler: str = "ASHA") -> FineTuneStudy:
    """A study over one continuous hyperparameter; ASHA has rungs at 1, 3, 9 and 27 epochs."""
    return parse_study(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneStudy",
            "metadata": {"name": "noop"},
            "spec": {
                "task": "SingleLabel",
                "model": {"name": "none"},
                "dataset": {
                    "files": {"train": "none.csv"},
                    "textColumns": ["t"],
                    "labelColumn": "l",
                },
                "objective": {"metric": "accuracy"},
                "hyperparameters": {"epochs": EPOCHS},
                "searchSpaces": [{"learningRate": {"min": 1e-6, "max": 1e-2, "scale": "Log"}}],
                "search": {"algorithm": "Random", "scheduler": {"type": scheduler}},
                "budget": {"maxTrials": trials},
                "refit": False,
            },
        }
    )


@dataclass
class NoOp:
    """A worker that answers at once: the value grows with learning rate and epochs."""

    seconds: float
    """Seconds of computing before it answers."""

    def work(self, item: Item, work: Work) -> list[ev.Event]:
        """Report the epoch that the item asks for."""
        assert isinstance(item, TrainItem)  # the study has no refit
        began = time.thread_time()
        while time.thread_time() - began < self.seconds:
            pass
        now = time.time()
        value = float(item.params["learningRate"]) * 100 * (1 - 0.9**item.to_epoch)
        epochs = range(1 + int(item.checkpoint or 0), int(item.to_epoch) + 1)
        done: list[ev.Event] = [
            ev.EpochDone(
                now,
                trial=item.trial,
                epoch=epoch,
                value=value,
                metrics={"accuracy": value},
                train_loss=0.0,
                seconds=0.0,
                gpu_seconds=0.0,
            )
            for epoch in epochs
        ]
        return [
            *done,
            ev.Saved(now, trial=item.trial, epoch=item.to_epoch, path=str(item.to_epoch)),
            ev.Reached(now, trial=item.trial, finished=item.to_epoch == EPOCHS),
        ]


class CountingFilesystem:
    """Counts the requests made by reading."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        self.requests += 1
        return getattr(self._filesystem, name)


@dataclass
class Cost:
    """What a search cost."""

    seconds: float
    driver_mb: float
    broker_mb: float


def search(spec: StudySpec, folder: str, work_seconds: float) -> Cost:
    """Run the study into `folder`, asking for progress as often as the driver does."""
    start_ray(SLOTS)
    claim(Storage.open(folder), parts_of(spec))
    broker = start_broker(Problem.of(spec), spec.budget, folder, 1)
    broker.begin().get()
    over = threading.Event()

    def follow() -> None:
        while not over.wait(PUBLISH_SECONDS):
            broker.snapshot(spec.budget, None).get()

    following = threading.Thread(target=follow)
    following.start()
    started = time.perf_counter()
    run_slots(broker, NoOp, work_seconds, SLOTS, SlotResources(1, 0))
    seconds = time.perf_counter() - started
    over.set()
    following.join()
    driver_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    broker_mb = _broker_memory()
    ray.shutdown()
    return Cost(seconds, driver_mb, broker_mb)


def main() -> int:
    """Run the benchmark; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    trials: int = parser.parse_args().trials
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        cost = search(study(trials, "None").spec, folder, WORK_SECONDS)
    print(f"a function of {1000 * WORK_SECONDS:.0f} ms, one call per trial")
    rows = [("driver memory, MB", round(cost.driver_mb), 500)]
    missed = _show_rate(trials / cost.seconds) | _show(rows)
    print("a function that does nothing, under ASHA")
    return int(missed | _without_work(trials))


def _without_work(trials: int) -> bool:
    spec = study(trials).spec
    with tempfile.TemporaryDirectory() as folder:
        cost = search(spec, folder, 0.0)
        files = len(list(Path(folder, "records").rglob("*.jsonl")))

        started = time.perf_counter()
        storage = Storage.open(folder)
        history = read_history(storage)
        state = StudyState.replayed(Problem.of(spec), history.events)
        found = findings(state, spec.budget, storage, time.time())
        load = time.perf_counter() - started
        counting = CountingFilesystem(storage.filesystem)
        read_history(Storage(counting, storage.root))
    items = sum(isinstance(event, ev.Reached) for event in history.events)
    size = len(json.dumps(found.to_json()))
    rows = [
        ("items", items, None),
        ("ms per item (including Ray Tune's start)", round(1000 * cost.seconds / items, 2), 5),
        ("driver memory, MB", round(cost.driver_mb), 400),
        ("broker memory, MB", round(cost.broker_mb), 400),
        ("events", len(history.events), None),
        ("records: files", files, None),
        ("records: load and derive the state, s", round(load, 2), 2),
        ("records: requests to load", counting.requests, 100),
        ("findings, bytes", size, 64 * 1024),
    ]
    return _show_rate(trials / cost.seconds) | _show(rows)


def _show_rate(rate: float) -> bool:
    """Print the trials per second; returns whether they are too few."""
    missed = rate < LEAST_RATE
    least = f"   at least {LEAST_RATE}{'   MISSED' if missed else ''}"
    print(f"{'trials per second (including the start)':42} {rate:>10.0f}{least}")
    return missed


def _show(rows: Sequence[tuple[str, float, float | None]]) -> bool:
    """Print each row with its bar; returns whether one is missed."""
    missed = False
    for name, value, bar in rows:
        miss = bar is not None and value > bar
        missed |= miss
        print(
            f"{name:42} {value:>10}"
            + (f"   at most {bar}{'   MISSED' if miss else ''}" if bar else "")
        )
    return missed


def _broker_memory() -> float:
    """Peak resident memory of the broker's process, MB."""
    peaks = [0.0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            name = (status.parent / "cmdline").read_bytes()
            if b"ray::Broker" in name:
                line = next(
                    line for line in status.read_text().splitlines() if line.startswith("VmHWM")
                )
                peaks.append(int(line.split()[1]) / 1024)
        except (OSError, StopIteration):  # the process ended while we looked
            continue
    return max(peaks)


if __name__ == "__main__":
    sys.exit(main())
