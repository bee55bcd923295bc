"""Our search as a library compared with scikit-learn's four, on three of its data sets, with two processes each.

Both get the same estimators, folds, rows and candidates (or their number, where they are drawn), and search
with the same halving. Wall time is that of the search alone: scikit-learn's from `fit` with its processes
warm, ours from the first trial to the last; Ray's start time is printed beside it. The held-out
score is that of the best parameters, fitted again on all training rows. Repeated with several seeds; medians
with 95 % intervals (bootstrap).

Exits 1 if the median of a search's held-out scores is more than 0.01 below scikit-learn's, or that of its times
more than 1.2 times scikit-learn's, where a fit takes at least 100 ms.

    python -m benchmarks.search.scikit_learn [--seeds 5]
"""

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401  # enables the next import
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    KFold,
    RandomizedSearchCV,
    StratifiedKFold,
    train_test_split,
)

from benchmarks.machine import describe
from finetune_trainer import Resource, Study
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import read_history
from finetune_trainer.runtime.ray_tune import start_ray
from finetune_trainer.storage.folder import Storage

FOLDS = 3
FACTOR = 3
PROCESSES = 2
SLOWER, WORSE = 1.2, 0.01
LONG_FIT = 0.1

BOOSTING: dict[str, list[Any]] = {
    "learning_rate": [0.03, 0.1, 0.3],
    "max_depth": [2, 3],
    "subsample": [0.5, 1.0],
}
FOREST: dict[str, list[Any]] = {
    "max_depth": [6, 12, 24],
    "min_samples_leaf": [1, 4],
    "max_features": ["sqrt", "log2"],
}
SETS: dict[str, tuple[Any, Any, dict[str, list[Any]]]] = {
    "digits": (load_digits, RandomForestClassifier(200), FOREST),
    "breast cancer": (load_breast_cancer, GradientBoostingClassifier(n_estimators=150), BOOSTING),
    "diabetes": (load_diabetes, GradientBoostingRegressor(n_estimators=300), BOOSTING),
}
SEARCHES = ("Grid", "Random", "Grid, halving", "Random, halving")


@dataclass
class Data:
    """A data set, split for one seed."""

    estimator: Any
    space: dict[str, list[Any]]
    rows: Any
    labels: Any
    held_out: tuple[Any, Any]
    folds: list[tuple[Any, Any]]

    @classmethod
    def load(cls, name: str, seed: int) -> "Data":
        """Three quarters, shuffled, to search on; a quarter held out."""
        loader, estimator, space = SETS[name]
        rows, labels = loader(return_X_y=True)
        kind = StratifiedKFold if is_classifier(estimator) else KFold
        rows, other_rows, labels, other_labels = train_test_split(
            rows, labels, random_state=seed, stratify=labels if kind is StratifiedKFold else None
        )
        folds = list(kind(FOLDS, shuffle=True, random_state=seed).split(rows, labels))
        rng = np.random.default_rng(seed)
        folds = [(rng.permutation(train), test) for train, test in folds]
        estimator = clone(estimator).set_params(random_state=seed)
        return cls(estimator, space, rows, labels, (other_rows, other_labels), folds)

    @property
    def candidates(self) -> int:
        """Combinations of the space."""
        return int(np.prod([len(values) for values in self.space.values()]))

    def held_out_score(self, params: dict[str, Any]) -> float:
        """The score of the estimator with `params`, fitted on everything else."""
        model = clone(self.estimator).set_params(**params).fit(self.rows, self.labels)
        return float(model.score(*self.held_out))


@dataclass
class Outcome:
    """The cost and the result of a search."""

    seconds: float
    held_out: float
    start: float = 0.0


def by_scikit_learn(search: str, data: Data, seed: int) -> Outcome:
    """The search as users of scikit-learn run it."""
    common: dict[str, Any] = {"cv": data.folds, "n_jobs": PROCESSES, "refit": False}
    drawn = {"random_state": seed}
    halving = {"factor": FACTOR, "min_resources": len(data.rows) // FACTOR**2}
    searcher: Any
    match search:
        case "Grid":
            searcher = GridSearchCV(data.estimator, data.space, **common)
        case "Random":
            searcher = RandomizedSearchCV(
                data.estimator, data.space, n_iter=data.candidates // 2, **drawn, **common
            )
        case "Grid, halving":
            searcher = HalvingGridSearchCV(data.estimator, data.space, **halving, **drawn, **common)
        case _:
            searcher = HalvingRandomSearchCV(
                data.estimator,
                data.space,
                n_candidates=data.candidates,
                **halving,
                **drawn,
                **common,
            )
    started = time.perf_counter()
    searcher.fit(data.rows, data.labels)
    seconds = time.perf_counter() - started
    return Outcome(seconds, data.held_out_score(searcher.best_params_))


def by_ours(search: str, data: Data, seed: int) -> Outcome:
    """The same search with the library."""

    def train(config: dict[str, Any], resource: Resource, _: Path) -> float:
        rows, test = data.folds[resource.fold or 0]
        rows = rows[: resource.rows]
        model = clone(data.estimator).set_params(**config)
        model.fit(data.rows[rows], data.labels[rows])
        return float(model.score(data.rows[test], data.labels[test]))

    all_rows = min(len(rows) for rows, _ in data.folds)
    halving = "halving" in search
    scheduler = {
        "type": "SuccessiveHalving",
        "resource": "Samples",
        "minResource": all_rows // FACTOR**2,
        "reductionFactor": FACTOR,
    }
    algorithm = search.split(",")[0]
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        study = Study(
            train,
            {name: {"values": values} for name, values in data.space.items()},
            into=folder,
            search={
                "algorithm": algorithm,
                "seed": seed,
                "scheduler": scheduler if halving else {"type": "None"},
            },
            budget={"maxTrials": data.candidates // (2 if search == "Random" else 1)},
            folds=FOLDS,
            rows=all_rows,
            slots=PROCESSES,
        ).run(progress=False)
        events = read_history(Storage.open(folder)).events
    first = next(event.time for event in events if isinstance(event, ev.Started))
    last = next(event.time for event in events if isinstance(event, ev.SearchEnded))
    start = time.time() - began - (last - first)
    return Outcome(last - first, data.held_out_score(study.best_params_), start)


def fit_seconds(data: Data) -> float:
    """Median time of one fit on the rows of a fold."""
    times = []
    rows, _ = data.folds[0]
    for params in list(product(*data.space.values()))[::4]:
        model = clone(data.estimator).set_params(**dict(zip(data.space, params, strict=True)))
        started = time.perf_counter()
        model.fit(data.rows[rows], data.labels[rows])
        times.append(time.perf_counter() - started)
    return median(times)


def interval(values: list[float]) -> str:
    """Median [95 % interval of the median]."""
    rng = random.Random(0)
    medians = sorted(median(rng.choices(values, k=len(values))) for _ in range(1000))
    return f"{median(values):.3g} [{medians[25]:.3g}, {medians[974]:.3g}]"


def main() -> int:
    """Run the benchmark; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds: int = parser.parse_args().seeds
    print(describe())
    start_ray(PROCESSES)
    missed = []
    for name in SETS:
        fit = fit_seconds(Data.load(name, 0))
        print(
            f"\n{name}: a fit takes {1000 * fit:.0f} ms; {Data.load(name, 0).candidates} candidates"
        )
        print(
            f"{'':16} {'ours / theirs, time':24} {'s, ours':20} held out, ours - theirs   start, s"
        )
        for search in SEARCHES:
            pairs: list[tuple[Outcome, Outcome]] = []
            for seed in range(seeds):
                data = Data.load(name, seed)
                if not pairs:  # to warm up its processes, as Ray's are warm
                    by_scikit_learn("Random", data, seed)
                pairs.append((by_ours(search, data, seed), by_scikit_learn(search, data, seed)))
            ratios = [ours.seconds / theirs.seconds for ours, theirs in pairs]
            ahead = [ours.held_out - theirs.held_out for ours, theirs in pairs]
            seconds = [ours.seconds for ours, _ in pairs]
            start = median(ours.start for ours, _ in pairs)
            print(
                f"{search:16} {interval(ratios):24} {interval(seconds):20} {interval(ahead):24} {start:6.1f}",
                flush=True,
            )
            if fit >= LONG_FIT and median(ratios) > SLOWER:
                missed.append(f"{name}, {search}: {median(ratios):.2f} times the time")
            if median(ahead) < -WORSE:
                missed.append(f"{name}, {search}: {-median(ahead):.3f} worse")
    print("\n" + ("MISSED: " + "; ".join(missed) if missed else "no search slower or worse"))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
