"""The rows that both sides of a comparison train on: banking77 if its folder is given, otherwise docstrings.

banking77 (`train.csv` of PolyAI's task-specific-datasets, CC BY 4.0) has questions of bank customers, each with
one of 77 intents and 14 tokens on average. Docstrings are the 480 rows of `examples/library.yaml`.
"""

import argparse
import csv
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.manifest import parse_study
from finetune_api.study import API_VERSION, KIND, FineTuneStudy
from finetune_trainer.data import PreparedData

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODEL = EXAMPLES / "models" / "all-MiniLM-L6-v2"


def add_arguments(parser: argparse.ArgumentParser, rows: int) -> None:
    """The options for which rows, and how many."""
    parser.add_argument(
        "--banking77",
        type=Path,
        metavar="FOLDER",
        default=os.environ.get("BANKING77"),
        help="folder with its train.csv (default: $BANKING77, otherwise docstrings)",
    )
    parser.add_argument(
        "--rows", type=int, default=rows, help=f"at most this many rows (default {rows})"
    )


def sample(banking77: Path | None, rows: int, folder: Path) -> dict[str, Any]:
    """The `dataset` of a study: at most `rows` rows, drawn into a file in `folder`, the same each time."""
    if banking77 is not None:
        source, label = Path(banking77) / "train.csv", "category"
    else:
        source, label = EXAMPLES / "data" / "library.csv", "library"
    with source.open(encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file)
    drawn = random.Random(0).sample(found, min(rows, len(found)))
    path = folder / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *drawn])
    return {"files": {"train": str(path)}, "textColumns": ["text"], "labelColumn": label}


def study_of(dataset: dict[str, Any], **spec: Any) -> FineTuneStudy:
    """A study of MiniLM on `dataset` with the given fields of its spec; by default a single trial."""
    single = {
        "searchSpaces": [{"learningRate": {"values": [2e-5]}}],
        "search": {"algorithm": "Grid"},
        "objective": {"metric": "accuracy"},
    }
    fixed = {"task": "SingleLabel", "model": {"name": str(MODEL)}, "dataset": dataset}
    return parse_study(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "benchmark"},
            "spec": {**single, **fixed, **spec},
        }
    )


def training_only(data: PreparedData, rows: NDArray[np.int64] | None = None) -> PreparedData:
    """The same data with `rows` (default: all) for training and nothing to evaluate on."""
    if rows is None:
        rows = np.concatenate([data.train, data.validation, data.test])
    return replace(data, train=rows, validation=rows[:0], test=rows[:0])


def as_items(
    data: PreparedData, rows: NDArray[np.int64], max_length: int
) -> list[dict[str, list[int] | int]]:
    """The rows as Trainer takes them, tokenised and cut; a list is the fastest data set for it."""
    room, frame = max_length - data.frame.special, data.frame
    return [
        {
            "input_ids": [*frame.before, *data.columns[0][row][:room].tolist(), *frame.after],
            "labels": int(data.labels[row]),
        }
        for row in rows
    ]
