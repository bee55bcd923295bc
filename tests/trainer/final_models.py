"""Small studies of each task that have ended, with the rows that they were tested on as a file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.csv

from finetune_trainer.data import prepare
from finetune_trainer.records import events as ev
from tests.trainer.conftest import MakeSpec
from tests.trainer.one_slot import run_study

STUDIES: dict[str, dict[str, Any]] = {
    "SingleLabel": {
        "source": "library.csv",
        "dataset": {"labelColumn": "library"},
        "objective": {"metric": "f1_macro", "additionalMetrics": ["accuracy"]},
    },
    "MultiLabel": {
        "source": "parameters.jsonl",
        "task": "MultiLabel",
        "dataset": {"labelColumn": "parameters"},
        "objective": {"metric": "f1_micro"},
        "hyperparameters": {"thresholdTuning": "PerLabel"},
    },
    "Regression": {
        "source": "arity.csv",
        "task": "Regression",
        "dataset": {"labelColumn": "arity"},
        "objective": {"metric": "rmse", "additionalMetrics": ["mae"]},
    },
    "TokenClassification": {
        "source": "names.jsonl",
        "task": "TokenClassification",
        "dataset": {"labelColumn": None, "spansColumn": "names"},
        "objective": {"metric": "f1_micro", "additionalMetrics": ["accuracy"]},
        "hyperparameters": {"maxLength": 24, "epochs": 6},
    },
    "Pooled": {
        "source": "library.csv",
        "dataset": {"labelColumn": "library", "cleaning": {"lowercase": True}},
        "objective": {"metric": "accuracy"},
        "hyperparameters": {"pooling": "Mean", "headLayers": 1},
    },
    "Ensemble": {
        "source": "library.csv",
        "dataset": {"labelColumn": "library"},
        "objective": {"metric": "loss", "additionalMetrics": ["accuracy"], "bestOf": "Last"},
        "searchSpaces": [
            {"pooling": {"values": ["Mean", "Cls"]}, "learningRate": {"values": [2e-3, 4e-3]}}
        ],
        "hyperparameters": {"epochs": 3},
        "ensemble": {"size": 2},
    },
}


@dataclass(frozen=True)
class Ended:
    """A study that has ended."""

    folder: Path
    test_file: Path
    tested: dict[str, float]
    """The metrics of its final model on the test rows, as recorded."""

    @property
    def report(self) -> dict[str, Any]:
        """Its report on them."""
        found: dict[str, Any] = json.loads(
            (self.folder / "results" / "test_report.json").read_text()
        )
        return found

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The test rows."""
        if self.test_file.suffix == ".csv":
            found: list[dict[str, Any]] = pyarrow.csv.read_csv(self.test_file).to_pylist()
            return found
        return [json.loads(line) for line in self.test_file.read_text().splitlines()]


def ended(name: str, make_spec: MakeSpec, model: Path, examples: Path, folder: Path) -> Ended:
    """Run one of `STUDIES` in `folder`, with `model` and a few rows of the examples."""
    changes = {**STUDIES[name]}
    source = examples / "data" / changes.pop("source")
    head, *lines = source.read_text().splitlines(keepends=True)
    if source.suffix != ".csv":
        head, lines = "", [head, *lines]
    parts = {"train": lines[:60], "validation": lines[60:90], "test": lines[90:130]}
    files = {}
    for part, rows in parts.items():
        files[part] = str(folder / f"{part}{source.suffix}")
        Path(files[part]).write_text(head + "".join(rows))
    spec = make_spec(
        **{
            "searchSpaces": [{"learningRate": {"values": [1e-3]}}],
            "search": {"algorithm": "Grid", "defaults": False},
            "model": {"name": str(model)},
            **changes,
            "dataset": {"files": files, **changes["dataset"]},
            "hyperparameters": {
                "epochs": 2,
                "maxLength": 32,
                "batchSize": 8,
                **changes.get("hyperparameters", {}),
            },
        }
    )
    events = run_study(spec, prepare(spec, folder), folder / "study")
    (done,) = (event for event in events if isinstance(event, ev.RefitDone))
    return Ended(folder / "study", Path(files["test"]), done.test_metrics)
