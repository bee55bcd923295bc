"""Learning curves of neural networks on OpenML tasks, as the surrogate predicts them; README.md has their source.

    python -m benchmarks.search.lcbench.curves

prints the median of random whole trainings of each task, as in reference.json.
"""

import json
import math
import random
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime

FOLDER = Path(__file__).parent
EPOCHS = 52
_PIECES = (1, 3, 9, 27, 52)
"""Epochs up to which a curve is predicted at once: most are looked at for a few only."""

_ACCURACY = 1
_DRAWS = 2000


class Dimension(NamedTuple):
    """A hyperparameter of the benchmark."""

    name: str
    kind: Literal["int", "float"]
    low: float
    high: float
    log: bool


SPACE = (
    Dimension("batch_size", "int", 16, 512, True),
    Dimension("learning_rate", "float", 1e-4, 1e-1, True),
    Dimension("momentum", "float", 0.1, 0.99, False),
    Dimension("weight_decay", "float", 1e-5, 1e-1, False),
    Dimension("num_layers", "int", 1, 5, False),
    Dimension("max_units", "int", 64, 1024, True),
    Dimension("max_dropout", "float", 0.0, 1.0, False),
)


@cache
def _session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), options)


@cache
def tasks() -> dict[str, int]:
    """OpenML task → its number in the surrogate."""
    found: dict[str, int] = json.loads((FOLDER / "encoding.json").read_text())["OpenML_task_id"]
    return {task: number for task, number in found.items() if not task.startswith("#")}


def reference() -> dict[str, dict[str, float]]:
    """Task → its best known validation accuracy, and the median of random whole trainings, in percent."""
    found: dict[str, dict[str, float]] = json.loads((FOLDER / "reference.json").read_text())
    return found


class Curves:
    """The validation accuracy, in percent, of every configuration of one task after each epoch."""

    def __init__(self, task: str) -> None:
        self._task = tasks()[task]
        self._known: dict[tuple[float, ...], list[float]] = {}

    def at(self, config: dict[str, Any], epoch: int) -> float:
        """The accuracy of `config` after `epoch` epochs, from 1 to 52."""
        row = tuple(float(config[dimension.name]) for dimension in SPACE)
        known = self._known.setdefault(row, [])
        if len(known) < epoch:
            to = next(piece for piece in _PIECES if piece >= epoch)
            rows = [[at, *row] for at in range(len(known) + 1, to + 1)]
            numbers = np.array(rows, np.float32)
            task = np.full((len(rows), 1), self._task, np.int32)
            predicted = _session().run(None, {"x_cat": task, "x_cont": numbers})[0]
            known.extend(float(value) for value in np.asarray(predicted)[:, _ACCURACY])
        return known[epoch - 1]


def draw(rng: random.Random) -> dict[str, float]:
    """A configuration drawn at random."""
    config: dict[str, float] = {}
    for name, kind, low, high, log in SPACE:
        if log:
            value = math.exp(rng.uniform(math.log(low), math.log(high + (kind == "int"))))
        else:
            value = rng.uniform(low, high + (kind == "int"))
        config[name] = min(int(high), int(value)) if kind == "int" else value
    return config


def main() -> int:
    """Print the medians."""
    for task in tasks():
        curves, rng = Curves(task), random.Random(0)
        values = [curves.at(draw(rng), EPOCHS) for _ in range(_DRAWS)]
        print(f"{task} {statistics.median(values):.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
