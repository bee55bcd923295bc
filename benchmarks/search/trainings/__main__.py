"""What a search of 10, 20 or 30 trials makes of real trainings, in virtual time over the table of `table`.

Each way chooses configurations of the table's grid for two workers that train one epoch a tick, and hands over the
configuration with the best value on validation rows. Prints, for each data set and number of trials, the value on
test rows of what is handed over, as the difference to Random with whole trainings on the same seed of the table
(95 % interval over seeds of table and search), and the epochs trained.

    python -m benchmarks.search.trainings --curves curves.jsonl [--seeds 20]
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import optuna

from benchmarks.machine import describe
from benchmarks.search.adapters import (
    Config,
    Job,
    OurDecisions,
    Searcher,
    in_virtual_time,
    optuna_goes_on,
)
from benchmarks.search.trainings.table import DATA, EPOCHS, FIXED, GRID, SEEDS, TRAIN
from finetune_api.auto import choose
from finetune_api.constraints import Constraints
from finetune_api.hyperparameters import resolve
from finetune_api.search import Algorithm, Budget, Scheduler, SchedulerType, Search
from finetune_api.spaces import FloatDomain, IntegerDomain
from finetune_trainer.search.problem import Problem, Recommended
from finetune_trainer.search.recommended import first_point

TRIALS = (10, 20, 30)
WORKERS = 2
FACTOR = 3
MODEL = ("bert", 384)
"""Family and hidden size of MiniLM."""

Point: TypeAlias = tuple[float, ...]
"""Values in the order of the grid."""

Curve: TypeAlias = tuple[list[float], list[float]]
"""Values on validation and on test rows after each epoch."""


def ours(
    seed: int, trials: int, algorithm: Algorithm, scheduler: SchedulerType, defaults: bool
) -> OurDecisions:
    """The study's own state and decisions."""
    space: dict[str, FloatDomain | IntegerDomain] = {
        name: IntegerDomain(values=[int(value) for value in values])
        if name == "batchSize"
        else FloatDomain(values=list(values))
        for name, values in GRID.items()
    }
    budget = Budget(max_trials=trials)
    rungs = Scheduler(type=scheduler, reduction_factor=FACTOR)
    search = Search(algorithm=algorithm, seed=seed, scheduler=rungs)
    search = choose(search, [space], budget, EPOCHS, Constraints([], {}))
    first = None
    if defaults:
        fixed = resolve(None, FIXED).to_json()
        first = Recommended(0, first_point(*MODEL, TRAIN, fixed, space))
    problem = Problem(search, [space], ("metric",), ("Maximize",), EPOCHS, recommended=first)
    return OurDecisions(problem, budget)


class Optuna:
    """Optuna's own loop: its multivariate TPE, told of running trials, and its HyperbandPruner."""

    limits_itself = False

    def __init__(self, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(
            study_name=f"seed {seed}",  # Hyperband's brackets follow from it
            direction="maximize",
            sampler=sampler,
            pruner=optuna.pruners.HyperbandPruner(1, EPOCHS, FACTOR),
        )

    def next(self) -> tuple[Job, Config, int]:
        space: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1)
            for name, values in GRID.items()
        }
        trial = self._study.ask(space)
        return trial, {name: GRID[name][place] for name, place in trial.params.items()}, 0

    def goes_on(self, job: Job, epoch: int, value: float) -> bool:
        return optuna_goes_on(self._study, job, epoch, value, EPOCHS)


WAYS: dict[str, Callable[[int, int], Searcher]] = {
    "Random, whole trainings": lambda seed, n: ours(seed, n, "Random", "None", defaults=False),
    "ours: search: {}": lambda seed, n: ours(seed, n, "Auto", "Auto", defaults=True),
    "ours without the recommended trial": lambda seed, n: ours(
        seed, n, "Auto", "Auto", defaults=False
    ),
    "Optuna TPE + HyperbandPruner": lambda seed, n: Optuna(seed),
    "the literature's default alone": lambda seed, n: ours(
        seed, 1, "Random", "None", defaults=True
    ),
}


def run(way: Searcher, trials: int, table: Mapping[Point, Curve]) -> tuple[float, int]:
    """The value on test rows of what the search hands over, and the epochs that it trained."""

    def curve(config: Config) -> Curve:
        return table[tuple(float(config[name]) for name in GRID)]

    def value(config: Config, epoch: int) -> float:
        return curve(config)[0][epoch - 1]

    best, handed_over, trained = -1.0, 0.0, 0
    for done in in_virtual_time(way, WORKERS, value, trials):
        trained += len(done)
        for step in done:
            if step.value > best:
                best, handed_over = step.value, curve(step.config)[1][step.epoch - 1]
    return handed_over, trained


def read(path: Path) -> dict[tuple[str, int], dict[Point, Curve]]:
    """(data set, seed) → point → its curves; what diverged has its last values to the end, or 0."""
    tables: dict[tuple[str, int], dict[Point, Curve]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        point = (row["learning_rate"], float(row["batch_size"]), row["warmup_ratio"])
        each = [
            [*row[part], *([(row[part] or [0.0])[-1]] * EPOCHS)][:EPOCHS]
            for part in ("validation", "test")
        ]
        tables.setdefault((row["data"], row["seed"]), {})[point] = each[0], each[1]
    return tables


def lines(tables: Mapping[tuple[str, int], Mapping[Point, Curve]], seeds: int) -> Iterator[str]:
    """The table as Markdown."""
    rng = np.random.default_rng(0)
    yield "| data | trials | way | test value | difference to Random, whole [95 %] | epochs |"
    yield f"|{'---|' * 6}"
    for data in DATA:
        known = [tables[data, seed] for seed in SEEDS if len(tables.get((data, seed), {})) == 64]
        if not known:
            continue
        for trials in TRIALS:
            found = {
                name: np.array(
                    [
                        [run(make(seed, trials), trials, table) for seed in range(seeds)]
                        for table in known
                    ]
                )
                for name, make in WAYS.items()
            }
            base = found["Random, whole trainings"][..., 0]
            for name, values in found.items():
                ahead = values[..., 0] - base
                drawn = [ahead[:, rng.integers(seeds, size=seeds)].mean() for _ in range(1000)]
                low, high = np.quantile(drawn, [0.025, 0.975])
                mean, epochs = values[..., 0].mean(), values[..., 1].mean()
                yield f"| {data} | {trials} | {name} | {mean:.3f} | {ahead.mean():+.3f} [{low:+.3f}, {high:+.3f}] | {epochs:.0f} |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20, help="of each search")
    given = parser.parse_args()
    print(describe())
    for line in lines(read(given.curves), given.seeds):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
