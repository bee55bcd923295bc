"""How good a configuration a search has found after a budget of so many whole trainings.

Each search proposes configurations of seven hyperparameters to so many workers, which train one epoch a tick of
virtual time, on real tasks by the surrogate of LCBench. Its regret at a budget is the share of (best known - median
of random whole trainings) that its best value so far lacks. All searches have rungs at 1, 3, 9, 27 and 52 epochs
(SMAC3 at 2, 6, 17 and 52).

Prints for each budget the mean regret with its 95 % interval, its difference to our Random + ASHA in the same task
and seed, and the mean rank (intervals: bootstrap over tasks, then seeds). What was run is kept in `--out`, a file of
JSON lines, and not run again.

    python -m benchmarks.search.lcbench --out runs.jsonl [--workers 4] [--trainings 25] [--seeds 0 10]
        [--tasks 3945 …] [--searches "ours TPE + ASHA" …]

With `--trials 30` each search has 30 trials and ends by itself, whatever it trains; then the table says how many whole
trainings its epochs make.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from benchmarks.machine import describe
from benchmarks.search.adapters import Config, Job, Searcher, in_virtual_time
from benchmarks.search.lcbench.curves import EPOCHS, Curves, reference
from benchmarks.search.lcbench.searches import BASE, SEARCHES

TASKS = ("3945", "7593", "167152", "167168", "168330", "189862", "189873", "189906")
MARKS = (6, 12, 25, 100)
"""Whole trainings at which regrets are read."""

_RESAMPLES = 1000


class Setting(NamedTuple):
    """One run of one search."""

    search: str
    task: str
    seed: int
    workers: int
    trainings: int
    """The budget in whole trainings; 0 if trials limit the search."""

    limit: int = 0
    """Trials that there are at most; 0 if there is no limit."""


class Timed:
    """A search that counts what it is asked for, and the seconds of CPU time that it takes to answer."""

    def __init__(self, search: Searcher) -> None:
        self._search, self.goes_on = search, search.goes_on
        self.limits_itself = search.limits_itself
        self.asked, self.seconds = 0, 0.0

    def next(self) -> tuple[Job, Config, int] | None:
        since = time.process_time()
        given = self._search.next()
        self.seconds += time.process_time() - since
        self.asked += given is not None
        return given


def run(setting: Setting) -> dict[str, Any]:
    """The best value after each whole training, or at the end, and what the search cost."""
    curves, limit = Curves(setting.task), setting.limit or None
    search = Timed(SEARCHES[setting.search](setting.seed, setting.workers, limit))
    ends = {mark * EPOCHS // setting.workers: mark for mark in range(1, setting.trainings + 1)}
    best, found, whole, begun, trained = -1.0, dict[int, float](), 0, 0, 0
    ticks = in_virtual_time(search, setting.workers, curves.at, limit)
    for tick, done in enumerate(ticks, start=1):
        best = max(best, *(step.value for step in done))
        begun += sum(step.epoch == 1 for step in done)
        whole += sum(step.epoch == EPOCHS for step in done)
        trained += len(done)
        if tick in ends:
            found[ends[tick]] = best
            if ends[tick] == setting.trainings:
                break
    return {
        **setting._asdict(),
        "best": found or {setting.limit: best},
        "trials": begun,
        "whole": whole,
        "worth": round(trained / EPOCHS, 2),
        "ms": round(1000 * search.seconds / max(1, search.asked), 2),
    }


def _missing(settings: Sequence[Setting], out: Path) -> tuple[list[dict[str, Any]], list[Setting]]:
    lines = out.read_text().splitlines() if out.exists() else []
    known = {}
    for line in lines:
        result = json.loads(line)
        known[Setting(*(result.get(name, 0) for name in Setting._fields))] = result
    return [known[s] for s in settings if s in known], [s for s in settings if s not in known]


def results(settings: Sequence[Setting], out: Path) -> list[dict[str, Any]]:
    """The results of all settings, those that `out` lacks run now, on all cores."""
    known, missing = _missing(settings, out)
    with ProcessPoolExecutor() as pool, out.open("a") as file:
        pending = [pool.submit(run, setting) for setting in missing]
        for number, done in enumerate(as_completed(pending), start=1):
            file.write(json.dumps(done.result()) + "\n")
            file.flush()
            print(f"\r{number}/{len(missing)} runs", end="", file=sys.stderr, flush=True)
    if missing:
        print(file=sys.stderr)
        known = _missing(settings, out)[0]
    return known


def interval(values: "np.ndarray[Any, Any]", tasks: Sequence[str]) -> tuple[float, float]:
    """95 % interval of the mean, tasks drawn first and then seeds."""
    rng = np.random.default_rng(0)
    each = [np.flatnonzero(np.array(tasks) == task) for task in sorted(set(tasks))]
    means = [
        np.mean([values[rng.choice(each[n], len(each[n]))].mean() for n in chosen])
        for chosen in rng.integers(len(each), size=(_RESAMPLES, len(each)))
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def regrets_of(
    found: Sequence[dict[str, Any]], mark: int
) -> dict[str, dict[tuple[str, int], float]]:
    """Search → (task, seed) → its regret at that mark."""
    known = reference()
    best = {task: known[task]["best"] for task in {result["task"] for result in found}}
    for result in found:  # a surrogate may predict more than was ever published
        best[result["task"]] = max(best[result["task"]], *result["best"].values())
    regrets: dict[str, dict[tuple[str, int], float]] = {}
    for result in found:
        value = result["best"].get(str(mark))
        if value is not None:
            task = result["task"]
            regret = (best[task] - value) / (best[task] - known[task]["median"])
            regrets.setdefault(result["search"], {})[task, result["seed"]] = regret
    return regrets


def tables(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The lines of a table for each mark."""
    for mark in dict.fromkeys((*MARKS, *(result.get("limit", 0) for result in found))):
        regrets = regrets_of(found, mark)
        if not regrets:
            continue
        runs = sorted(set.intersection(*(set(each) for each in regrets.values())))
        tasks = [task for task, _ in runs]
        values = np.array([[regrets[name][key] for key in runs] for name in regrets])
        ranks = rankdata(values, axis=0)
        names = list(regrets)
        base = values[names.index(BASE)] if BASE in names else values[0]
        unit = "trials" if any(result.get("limit") for result in found) else "whole trainings"
        yield f"\nafter {mark} {unit}, {len(runs)} runs each"
        yield f"  {'search':32} {'regret':22} {'difference to ' + BASE:34} rank"
        for n in np.argsort(ranks.mean(axis=1)):
            low, high = interval(values[n], tasks)
            below, above = interval(values[n] - base, tasks)
            first, last = interval(ranks[n], tasks)
            yield (
                f"  {names[n]:32} {values[n].mean():.3f} [{low:.3f}, {high:.3f}]   "
                f"{(values[n] - base).mean():+.3f} [{below:+.3f}, {above:+.3f}]           "
                f"{ranks[n].mean():.2f} [{first:.2f}, {last:.2f}]"
            )


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trainings", type=int, default=25)
    parser.add_argument("--trials", type=int, default=0, metavar="N", help="end after N trials")
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 10), metavar=("FIRST", "END"))
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--searches", nargs="+", default=list(SEARCHES), choices=list(SEARCHES))
    given = parser.parse_args()
    print(describe())
    settings = [
        Setting(
            search, task, seed, given.workers, 0 if given.trials else given.trainings, given.trials
        )
        for seed in range(*given.seeds)
        for search in given.searches
        for task in given.tasks
    ]
    found = results(settings, given.out)
    print(f"{given.workers} workers, tasks {', '.join(given.tasks)}")
    for line in tables(found):
        print(line)
    print(
        "\ntrials begun, trained whole, whole trainings' worth of epochs, milliseconds of a proposal (means)"
    )
    for name in given.searches:
        own = [result for result in found if result["search"] == name]
        keys = ("trials", "whole", "worth", "ms")
        means = [
            float(np.mean([result.get(key, given.trainings) for result in own])) for key in keys
        ]
        print(f"  {name:32}", *(f"{mean:7.1f}" for mean in means))
    return 0


if __name__ == "__main__":
    sys.exit(main())
