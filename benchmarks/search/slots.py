"""How worker slots behave when a worker comes late and when the driver is told to end.

A second node joins 30 s after the search began: when does its slot begin its first item, and what share
of all items does it take from then on? How many worker processes are started in all? Then a study with
a real model is told to end by SIGTERM in the middle of an epoch: how long until all its work is saved?
Exits 1 if a bar is missed.

    python -m benchmarks.search.slots
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks.machine import describe
from benchmarks.search.noop import NoOp, study
from finetune_api.manifest import dump_yaml, load_yaml
from finetune_trainer.environment import SlotResources
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.records.log import read_history
from finetune_trainer.runtime.ray_tune import run_slots, start_broker, start_ray
from finetune_trainer.runtime.slot import Work
from finetune_trainer.search.problem import Problem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.worker.item import Item

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LATE_SECONDS = 30
ITEM_SECONDS = 0.05
TRIALS = 1200
TERMS = 5

Row = tuple[str, float, float | None]
"""Name, value, and the limit of the value."""


@dataclass
class Short(NoOp):
    """A worker whose items take some time."""

    def work(self, item: Item, work: Work) -> list[ev.Event]:
        """Sleep, then report."""
        time.sleep(ITEM_SECONDS)
        return super().work(item, work)


def started(folder: str) -> list[ev.Started]:
    """Every item that was begun."""
    events = read_history(Storage.open(folder)).events
    return [event for event in events if isinstance(event, ev.Started)]


def late_worker(folder: str) -> list[Row]:
    """A node that joins while the search runs."""
    start_ray(1)
    address = ray.get_runtime_context().gcs_address
    ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}"]
    command = [*ray_start, "--num-cpus=1", "--block"]
    spec = study(TRIALS).spec
    claim(Storage.open(folder), parts_of(spec))
    broker = start_broker(Problem.of(spec), spec.budget, folder, 1)
    broker.begin().get()
    worker: list[subprocess.Popen[bytes]] = []

    def join() -> None:
        worker.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    timer = threading.Timer(LATE_SECONDS, join)
    timer.start()
    begun = time.time()
    run_slots(broker, Short, 0.0, 2, SlotResources(1, 0))
    timer.join()
    worker[0].terminate()
    worker[0].wait()
    ray.shutdown()
    items = started(folder)
    slots = list(dict.fromkeys(item.slot for item in items))
    first = next(item.time for item in items if item.slot == slots[1])
    shared = [item.slot for item in items if item.time >= first]
    share = shared.count(slots[1]) / len(shared)
    return [
        (
            f"items before the worker that came {LATE_SECONDS} s late",
            len(items) - len(shared),
            None,
        ),
        ("from the start of that worker to its first item, s", first - begun - LATE_SECONDS, None),
        (f"the first worker's share of the {len(shared)} items from then on", 1 - share, 0.55),
        ("worker processes started, of 2 slots", len(slots), 2),
    ]


def told_to_end(folder: Path) -> list[Row]:
    """SIGTERM in the middle of epochs of real trials, each time resuming from what was saved."""
    manifest: dict[str, Any] = load_yaml((EXAMPLES / "library.yaml").read_text())
    for name in ("data", "models"):
        (folder / name).symlink_to(EXAMPLES / name)
    path, into = folder / "study.yaml", folder / "run"
    path.write_text(dump_yaml(manifest))
    command = [sys.executable, "-m", "finetune_trainer.cli", "run", str(path), "--into", str(into)]
    saves, exits = [], []
    for term in range(TERMS):
        with (folder / "log").open("ab") as log:
            run = subprocess.Popen(command, stdout=log, stderr=log)
        while len(_flying(into, term + 1)) < 2:
            if run.poll() is not None:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            time.sleep(0.2)
        time.sleep(1 + 0.7 * term)  # well within an epoch, each time at another point
        told = time.time()
        run.send_signal(signal.SIGTERM)
        run.wait(timeout=60)
        exits.append(time.time() - told)
        events = read_history(Storage.open(str(into))).events
        saves += [e.time - told for e in events if isinstance(e, ev.Saved) and e.time > told]
    return [
        (f"SIGTERM to saved, slowest of {len(saves)} trials in {TERMS} runs, s", max(saves), 5),
        ("SIGTERM to the end of the process, slowest, s", max(exits), None),
    ]


def _flying(into: Path, term: int) -> set[int]:
    """Trials begun in this term and not ended."""
    if not into.is_dir():
        return set()
    history = read_history(Storage.open(str(into))).events
    opened = [i for i, event in enumerate(history) if isinstance(event, ev.TermStarted)]
    if len(opened) < term:
        return set()
    flying: set[int] = set()
    for event in history[opened[term - 1] :]:
        if isinstance(event, ev.Started):
            flying.add(event.trial)
        elif isinstance(event, ev.Reached | ev.Requeued | ev.Failed):
            flying.discard(event.trial)
    return flying


def main() -> int:
    """Run both; 1 if a bar is missed."""
    print(describe())
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "late").mkdir()
        rows = late_worker(f"{folder}/late")
        rows += told_to_end(Path(folder))
    missed = False
    for name, value, bar in rows:
        miss = bar is not None and value > bar
        missed |= miss
        limit = f"   at most {bar}{'   MISSED' if miss else ''}" if bar is not None else ""
        print(f"{name:60} {round(value, 2):>8}{limit}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
