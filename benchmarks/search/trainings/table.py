"""A table of real trainings: MiniLM on two small data sets, every combination of a grid of 64, two seeds, six epochs.

`--out` gets for each data set, seed and combination the objective on validation rows and on test rows after
each epoch. Half of the grid's learning rates lie above what the literature recommends for encoders of this kind and
two below: a search has to find its way on both sides.

banking77 is one of 77 classes (accuracy), signatures any of 42 labels of a docstring (micro F1). Both have 400 rows
to train on, 200 for validation and 500 for the test.

    python -m benchmarks.search.trainings.table --banking77 FOLDER --out curves.jsonl [--jobs 2]

makes it, about two hours on two cores; what `--out` has is not trained again.
"""

import argparse
import csv
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.machine import describe
from benchmarks.trainer.rows import EXAMPLES, study_of
from finetune_api.hyperparameters import Scalar, resolve
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.errors import TrialFailure
from finetune_trainer.training import Pretrained, TrialRun

EPOCHS = 6
SEEDS = (0, 1)
TRAIN, VALIDATION, TEST = 400, 200, 500
GRID: dict[str, tuple[float, ...]] = {
    "learningRate": (2e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3),
    "batchSize": (8, 16, 32, 64),
    "warmupRatio": (0.0, 0.1),
}
FIXED: dict[str, Scalar] = {
    "epochs": EPOCHS,
    "maxLength": 48,
    "pooling": "Mean",
    "lrSchedule": "Linear",
}
DATA = ("banking77", "signatures")


class Setting(NamedTuple):
    """One training of the table."""

    data: str
    seed: int
    learning_rate: float
    batch_size: int
    warmup_ratio: float

    @property
    def params(self) -> dict[str, Scalar]:
        """The hyperparameters as a study names them."""
        return dict(zip(GRID, self[2:], strict=True))


def settings() -> Iterator[Setting]:
    """All trainings of the table."""
    for data, seed in product(DATA, SEEDS):
        every = [
            Setting(data, seed, rate, int(size), warmup)
            for rate, size, warmup in product(*GRID.values())
        ]
        yield from random.Random(0).sample(
            every, len(every)
        )  # so that what is left can be estimated


def _rows(data: str, banking77: Path, folder: Path) -> dict[str, Any]:
    """The `dataset` of a study: the three parts drawn from the published rows, the same each time."""
    if data == "banking77":
        rows = []
        for name in ("train.csv", "test.csv"):
            with (banking77 / name).open(encoding="utf-8", newline="") as file:
                rows.append(
                    [{"text": text, "label": label} for text, label in list(csv.reader(file))[1:]]
                )
        drawn = (
            random.Random(0).sample(rows[0], TRAIN + VALIDATION),
            random.Random(0).sample(rows[1], TEST),
        )
        parts = {"train": drawn[0][:TRAIN], "validation": drawn[0][TRAIN:], "test": drawn[1]}
    else:
        text = (EXAMPLES / "data" / "signatures.jsonl").read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.splitlines()]
        rows_drawn = random.Random(0).sample(found, TRAIN + VALIDATION + TEST)
        each = [{"text": row["text"], "label": row["parameters"]} for row in rows_drawn]
        parts = {"train": each[:TRAIN], "validation": each[TRAIN:-TEST], "test": each[-TEST:]}
    files = {}
    for part, chosen in parts.items():
        path = folder / f"{data}-{part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
        files[part] = str(path)
    return {"files": files, "textColumns": ["text"], "labelColumn": "label"}


class Bench:
    """Trains settings on the rows of both data sets."""

    def __init__(self, banking77: Path, folder: Path) -> None:
        self._known: dict[str, tuple[Any, PreparedData, Pretrained]] = {}
        for name in DATA:
            many = name == "signatures"
            study = study_of(
                _rows(name, banking77, folder),
                task="MultiLabel" if many else "SingleLabel",
                objective={"metric": "f1_micro" if many else "accuracy"},
                hyperparameters=FIXED,
            )
            data = prepare(study.spec, Path("/"))
            pretrained = Pretrained.load(data.model, data.task, data.label_names)
            self._known[name] = study.spec, data, pretrained

    def train(self, setting: Setting) -> dict[str, Any]:
        """The objective after each epoch; epochs after a divergence are missing."""
        spec, data, pretrained = self._known[setting.data]
        config = resolve(spec.hyperparameters, setting.params)
        run = TrialRun(pretrained, data, config, setting.seed, spec.objective, "cpu", spec.compute)
        validation, test, seconds = [], [], 0.0
        try:
            for epoch in range(1, EPOCHS + 1):
                result = run.train_to(epoch)
                assert result is not None  # nothing asks it to pause
                metric = spec.objective.metric
                validation.append(round(result.metrics[metric], 5))
                test.append(round(run.evaluate("test")[metric], 5))
                seconds += result.seconds
        except TrialFailure as failure:
            print(f"{setting}: {failure}", file=sys.stderr)
        return {
            **setting._asdict(),
            "validation": validation,
            "test": test,
            "seconds": round(seconds, 1),
        }


_bench: Bench | None = None
"""Of a process that trains."""


def _begin(banking77: Path, folder: Path, threads: int) -> None:
    global _bench
    torch.set_num_threads(threads)
    _bench = Bench(banking77, Path(tempfile.mkdtemp(dir=folder)))


def _train(setting: Setting) -> dict[str, Any]:
    assert _bench is not None  # the process has begun
    return _bench.train(setting)


def main() -> int:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--banking77", type=Path, metavar="FOLDER", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    given = parser.parse_args()
    print(describe())
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    known = {Setting(*(json.loads(line)[name] for name in Setting._fields)) for line in lines}
    missing = [setting for setting in settings() if setting not in known]
    threads = max(1, torch.get_num_threads() // given.jobs)
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            given.jobs, get_context("spawn"), _begin, (given.banking77, Path(folder), threads)
        ) as pool,
        given.out.open("a") as file,
    ):
        pending = [pool.submit(_train, setting) for setting in missing]
        for number, done in enumerate(as_completed(pending), start=1):
            file.write(json.dumps(done.result()) + "\n")
            file.flush()
            print(f"\r{number}/{len(missing)} trainings", end="", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
