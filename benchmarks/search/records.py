"""The records of a study of 10,000 trials: their speed, requests, memory, and the size of the status.

Prints a table; exits 1 if a bar is missed.

    python -m benchmarks.search.records [--trials 10000]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.trainer.object_store import object_store

from benchmarks.machine import describe
from finetune_api.study import StudySpec
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import RecordLog, read_history
from finetune_trainer.search.decisions import next_item, starting
from finetune_trainer.search.items import TrainItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.results import findings, table, write_tables
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage

SLOTS = 16
EPOCHS = 27


def spec(trials: int) -> StudySpec:
    """Random search over six hyperparameters under ASHA with rungs at 1, 3, 9 and 27 epochs."""
    return StudySpec.model_validate(
        {
            "task": "SingleLabel",
            "model": {"name": "none"},
            "dataset": {"files": {"train": "a.csv"}, "textColumns": ["t"], "labelColumn": "l"},
            "objective": {"metric": "f1_macro"},
            "hyperparameters": {"epochs": EPOCHS},
            "searchSpaces": [
                {
                    "learningRate": {"min": 1e-6, "max": 1e-2, "scale": "Log"},
                    "batchSize": {"values": [8, 16, 32, 64]},
                    "weightDecay": {"min": 0.0, "max": 0.1},
                    "warmupRatio": {"min": 0.0, "max": 0.2},
                    "optimizer": {"values": ["AdamW", "SGD", "RMSprop"]},
                    "momentum": {
                        "min": 0.5,
                        "max": 0.99,
                        "when": {"optimizer": ["SGD", "RMSprop"]},
                    },
                }
            ],
            "search": {"algorithm": "Random", "scheduler": {"type": "ASHA"}},
            "budget": {"maxTrials": trials},
            "refit": False,
        }
    )


def simulate(study: StudySpec, storage: Storage) -> tuple[StudyState, int]:
    """Run the study's decisions and records with 16 slots and no work; returns the state and the number of appends."""
    log, history = RecordLog.start(storage, 1, time.time())
    state = StudyState(Problem.of(study))
    appends = 0

    def write(*events: ev.Event) -> None:
        nonlocal appends
        appends += 1
        log.append(events)
        for event in events:
            state.apply(event)

    for event in history.events:
        state.apply(event)
    running: list[TrainItem] = []
    while True:
        item = next_item(state, study.budget, time.time())
        if isinstance(item, TrainItem):
            now = time.time()
            write(*starting(state, study.budget, item, f"slot/{appends}", now))
            running.append(item)
        if not running:
            return state, appends
        if len(running) >= SLOTS or not isinstance(item, TrainItem):
            for report in _work(state, running.pop(0)):
                write(*report)


def _work(state: StudyState, item: TrainItem) -> list[list[ev.Event]]:
    """One report per epoch, then the end of the item, as slots send them."""
    now = time.time()
    rate = float(item.params["learningRate"])
    metrics = {"f1_macro": 0.0, "accuracy": 0.75, "loss": 0.123456789012345}
    reports: list[list[ev.Event]] = []
    begun = int(state.trials[item.trial].trained)
    for epoch in range(begun + 1, int(item.to_epoch) + 1):
        value = (rate * 7919 % 1) * (1 - 0.9**epoch)
        found = {**metrics, "f1_macro": value}
        reports.append(
            [
                ev.EpochDone(
                    now,
                    trial=item.trial,
                    epoch=epoch,
                    value=value,
                    metrics=found,
                    train_loss=0.5,
                    seconds=12.3,
                    gpu_seconds=12.3,
                )
            ]
        )
    path = f"checkpoints/{item.trial}/{item.to_epoch}-01234567"
    finished = item.to_epoch == EPOCHS
    end: list[ev.Event] = [ev.Reached(now, trial=item.trial, finished=finished)]
    reports.append(
        end if finished else [ev.Saved(now, trial=item.trial, epoch=item.to_epoch, path=path), *end]
    )
    return reports


def load(folder: str, trials: int) -> dict[str, float]:
    """What a driver that restarts has to pay, in a process of its own."""
    study, storage = spec(trials), Storage.open(folder)
    before = _memory()
    started = time.perf_counter()
    history = read_history(storage)
    state = StudyState.replayed(Problem.of(study), history.events)
    loaded = time.perf_counter() - started
    status = json.dumps(findings(state, study.budget, storage, time.time()).to_json())
    decided = time.perf_counter()
    next_item(state, study.budget, time.time())
    first = time.perf_counter() - decided
    after = _memory()
    return {
        "seconds": loaded,
        "first": first,
        "events": len(history.events),
        "status": len(status),
        "rss": after,
        "grown": after - before,
    }


def _memory() -> float:
    """Peak resident memory of this process, MB (`ru_maxrss` would start from the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def _requests(folder: Path) -> int:
    """Requests to read the same files from an object store, by pyarrow's S3 client."""
    with object_store() as store:
        storage = Storage.open(store.uri)
        for path in (folder / "records").rglob("*.jsonl"):
            store.objects[f"{storage.root}/{path.relative_to(folder)}"] = path.read_bytes()
        store.requests.clear()
        read_history(storage)
        return store.requests.total()


def main() -> int:
    """Run the benchmark; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--load", help="only load the records of this folder and print the cost")
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(load(arguments.load, arguments.trials)))
        return 0
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        study, storage = spec(arguments.trials), Storage.open(folder)
        started = time.perf_counter()
        state, appends = simulate(study, storage)
        simulated = time.perf_counter() - started
        files = len(list(Path(folder, "records").rglob("*.jsonl")))
        started = time.perf_counter()
        write_tables(storage, table(state))
        tables = time.perf_counter() - started
        command = [sys.executable, "-m", "benchmarks.search.records", "--load", folder]
        run = subprocess.run(
            [*command, "--trials", str(arguments.trials)],
            check=True,
            capture_output=True,
            text=True,
        )
        loaded = json.loads(run.stdout)
        requests = _requests(Path(folder))
    rows: list[tuple[str, float, float | None]] = [
        ("trials", len(state.trials), None),
        ("events", loaded["events"], None),
        ("appends", appends, None),
        ("append and decision, ms each", 1000 * simulated / appends, None),
        ("files", files, None),
        ("load and derive the state, s", loaded["seconds"], 2),
        ("first decision after that, s", loaded["first"], None),
        ("requests to an object store to load", requests, 100),
        ("status, bytes", loaded["status"], 64 * 1024),
        ("memory of the loaded process, MB", loaded["rss"], 400),
        ("of which the records, MB", loaded["grown"], None),
        ("tables (CSV and Parquet), s", tables, None),
    ]
    missed = False
    for name, value, bar in rows:
        miss = bar is not None and value > bar
        missed |= miss
        limit = f"   at most {bar:g}{'   MISSED' if miss else ''}" if bar is not None else ""
        print(f"{name:42} {value:>12,.{0 if value >= 100 or value == int(value) else 3}f}{limit}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
