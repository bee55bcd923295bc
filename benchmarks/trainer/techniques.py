"""What each technique gains and costs on real data: banking77 and docstrings, one technique at a time.

Each technique trains MiniLM once per seed with one change from the baseline of its data, tests it on the
held-out rows, and prints the test metric, its difference, and the time of training and evaluation relative to
the baseline's ("plain" in the output). Baselines: banking77 (one class of 77; accuracy), docstrings with their
parameters' names (any of 10 labels; micro F1). The standard deviation of the baseline over more seeds is printed
first: a difference of that size means nothing.

With `--jobs 2`, two are trained at a time, each with its share of the cores; times are then those of trainings
that run side by side, also for the baseline.

    python -m benchmarks.trainer.techniques --banking77 FOLDER [--rows 1500] [--seeds 2] [--jobs 1] [--only NAME]
"""

import argparse
import csv
import random
import sys
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.trainer.rows import EXAMPLES, study_of
from finetune_api.hyperparameters import resolve
from finetune_api.study import StudySpec
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.errors import TrialFailure
from finetune_trainer.training import Pretrained, TrialRun

PLAIN = {"epochs": 4, "batchSize": 16, "maxLength": 48, "learningRate": 3e-4, "pooling": "Mean"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN_SEEDS = 5
TEST_ROWS = 1500


@dataclass(frozen=True)
class Technique:
    """One change: `hyperparameters` and fields of the spec, on `rows`."""

    name: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    compute: dict[str, Any] = field(default_factory=dict)
    labels: str = "banking77"

    @property
    def fields(self) -> str:
        """The change as written in the study."""
        written = [f"`{name}: {value}`" for name, value in self.hyperparameters.items()]
        for part in ("dataset", "compute"):
            for name, value in getattr(self, part).items():
                inner = value.items() if isinstance(value, dict) else [("", value)]
                written += [
                    f"`{part}.{name}{'.' if key else ''}{key}: {one}`" for key, one in inner
                ]
        return ", ".join(written)


def _one(name: str, **hyperparameters: Any) -> Technique:
    return Technique(name, hyperparameters)


CLEANED = {
    "stripHtml": True,
    "normalizeUnicode": True,
    "normalizeWhitespace": True,
    "lowercase": True,
    "duplicates": "Drop",
    "conflicts": "Drop",
}
TECHNIQUES = (
    Technique("cleaning, duplicates and conflicts", dataset={"cleaning": CLEANED}),
    _one("near-duplicates left out", duplicateThreshold=0.95),
    _one("synonyms", augmentation="Synonyms"),
    _one("insertion", augmentation="Insertion"),
    _one("deletion", augmentation="Deletion"),
    _one("swap", augmentation="Swap"),
    _one("all four", augmentation="All", augmentationCopies=2),
    _one("class weights", classBalance="Weights"),
    _one("oversampling", classBalance="Oversample"),
    _one("undersampling", classBalance="Undersample"),
    _one("pooling of the architecture", pooling="Architecture"),
    _one("pooling of the first token", pooling="Cls"),
    _one("deeper head", headLayers=1, headWidth=256),
    _one("lower four layers only", encoderLayers=4),
    _one("no dropout", hiddenDropout=0.0, attentionDropout=0.0, classifierDropout=0.0),
    _one("top layer anew", reinitLayers=1),
    _one("LoRA", loraRank=8, learningRate=2e-3),
    _one("embeddings frozen", freeze="Embeddings"),
    _one("lower three layers frozen", freeze="Layers", frozenLayers=3),
    _one("encoder frozen", freeze="Encoder", learningRate=1e-2, epochs=20),
    _one("gradual unfreezing", unfreezeEpochs=0.5),
    _one("rates by layer", layerDecay=0.8),
    _one("Adam", optimizer="Adam"),
    _one("SGD with momentum", optimizer="SGD", learningRate=0.05),
    _one("SGD, Nesterov", optimizer="NesterovSGD", learningRate=0.05),
    _one("RMSprop", optimizer="RMSprop", momentum=0.0, learningRate=1e-4),
    _one("Adafactor", optimizer="Adafactor", learningRate=1e-3),
    _one("cosine", lrSchedule="Cosine"),
    _one("cosine with restarts", lrSchedule="CosineWithRestarts"),
    _one("polynomial", lrSchedule="Polynomial"),
    _one("steps", lrSchedule="Step"),
    _one("exponential", lrSchedule="Exponential"),
    _one("inverse square root", lrSchedule="InverseSqrt"),
    _one("reduce on plateau", lrSchedule="ReduceOnPlateau"),
    _one("constant", lrSchedule="Constant"),
    _one("no warm-up", warmupRatio=0.0),
    _one("weight decay", weightDecay=0.1),
    _one("L1", l1Penalty=1e-5),
    _one("label smoothing", labelSmoothing=0.1),
    _one("drawn to the pretrained", pretrainedPull=10.0),
    _one("R-Drop", rDrop=1.0),
    _one("mixout", mixout=0.5),
    _one("adversarial words", adversarialEpsilon=1.0),
    _one("focal loss", focalGamma=2.0),
    _one("clipping at 0.1", maxGradNorm=0.1),
    _one("accumulation", batchSize=4, gradientAccumulation=4),
    _one("averaged weights", averagingStart=0.5),
    _one("exponential average", averagingStart=0.0, averagingDecay=0.95),
    Technique("BF16", compute={"precision": "BF16"}),
    Technique("gradient checkpointing", compute={"gradientCheckpointing": True}),
    Technique("threshold of 0.3", {"decisionThreshold": 0.3}, labels="parameters"),
    Technique("thresholds tuned", {"thresholdTuning": "PerLabel"}, labels="parameters"),
    Technique("focal loss, labels", {"focalGamma": 2.0}, labels="parameters"),
    Technique("labels weighed", {"classBalance": "Weights"}, labels="parameters"),
)


@dataclass(frozen=True)
class Outcome:
    """The result and the cost of one training."""

    metric: float
    seconds: float


class Bench:
    """Trains techniques on the rows of both data sets."""

    def __init__(self, banking77: Path, rows: int, folder: Path) -> None:
        self._files = {
            "banking77": {
                "train": _sampled(banking77 / "train.csv", rows, folder / "train.csv"),
                "test": _sampled(banking77 / "test.csv", TEST_ROWS, folder / "test.csv"),
            },
            "parameters": {"train": str(EXAMPLES / "data" / "parameters.jsonl")},
        }
        self._prepared: dict[str, tuple[PreparedData, Pretrained]] = {}

    def train(self, technique: Technique, seed: int) -> Outcome:
        """Train once and test."""
        spec = self._spec(technique)
        data, pretrained = self._data(technique, spec)
        config = resolve(spec.hyperparameters, {"learningRate": _rate(technique)})
        started = time.perf_counter()
        run = TrialRun(pretrained, data, config, seed, spec.objective, DEVICE, spec.compute)
        while not run.finished:
            run.train_to(config.epochs)
        seconds = time.perf_counter() - started
        return Outcome(run.evaluate("test")[spec.objective.metric], seconds)

    def _spec(self, technique: Technique) -> StudySpec:
        many = technique.labels == "parameters"
        dataset = {
            "files": self._files[technique.labels],
            "textColumns": ["text"],
            "labelColumn": "parameters" if many else "category",
            **technique.dataset,
        }
        fixed = {**PLAIN, **technique.hyperparameters}
        del fixed["learningRate"]
        study = study_of(
            dataset,
            task="MultiLabel" if many else "SingleLabel",
            objective={"metric": "f1_micro" if many else "accuracy"},
            hyperparameters=fixed,
            compute=technique.compute,
            searchSpaces=[{"learningRate": {"values": [_rate(technique)]}}],
        )
        return study.spec

    def _data(self, technique: Technique, spec: StudySpec) -> tuple[PreparedData, Pretrained]:
        alone = {"augmentation", "duplicateThreshold"} & technique.hyperparameters.keys()
        key = technique.name if alone or technique.dataset else technique.labels
        if key not in self._prepared:
            data = prepare(spec, Path("/"))
            self._prepared[key] = (
                data,
                Pretrained.load(data.model, data.task, data.label_names),
            )
        return self._prepared[key]


def _rate(technique: Technique) -> float:
    return float(technique.hyperparameters.get("learningRate", PLAIN["learningRate"]))


def _sampled(source: Path, rows: int, path: Path) -> str:
    with source.open(encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file)
    drawn = random.Random(0).sample(found, min(rows, len(found)))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *drawn])
    return str(path)


_bench: Bench | None = None
"""Of a process that trains."""


def _begin(banking77: Path, rows: int, folder: Path, threads: int) -> None:
    global _bench
    folder = Path(tempfile.mkdtemp(dir=folder))
    torch.set_num_threads(threads)
    _bench = Bench(banking77, rows, folder)


def _train(technique: Technique, seed: int) -> Outcome:
    assert _bench is not None  # the process has begun
    return _bench.train(technique, seed)


def _cells(trainings: list[Future[Outcome]], same: list[Future[Outcome]]) -> str:
    """Metric, difference and time of a technique relative to the baseline with the same seeds."""
    try:
        metric = fmean(one.result().metric for one in trainings)
    except TrialFailure as failure:
        return f"{failure} | — | —"
    ahead = metric - fmean(one.result().metric for one in same)
    seconds = fmean(one.result().seconds for one in trainings)
    ratio = seconds / fmean(one.result().seconds for one in same)
    return f"{metric:.4f} | {ahead:+.4f} | {ratio:.2f} x"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--banking77", type=Path, metavar="FOLDER", required=True)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--only", metavar="NAME", help="only techniques whose name contains this")
    parsed = parser.parse_args()
    print(
        f"{describe()}; trained on {torch.cuda.get_device_name() if DEVICE == 'cuda' else 'the CPU'}"
    )
    chosen = [one for one in TECHNIQUES if not parsed.only or parsed.only in one.name]
    threads = max(1, torch.get_num_threads() // parsed.jobs)
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            parsed.jobs,
            get_context("spawn"),
            _begin,
            (parsed.banking77, parsed.rows, Path(folder), threads),
        ) as pool,
    ):
        plain = {
            labels: [
                pool.submit(_train, Technique("plain", labels=labels), seed)
                for seed in range(PLAIN_SEEDS)
            ]
            for labels in ("banking77", "parameters")
        }
        found = [[pool.submit(_train, one, seed) for seed in range(parsed.seeds)] for one in chosen]
        for labels, trainings in plain.items():
            metrics = [one.result().metric for one in trainings]
            seconds = fmean(one.result().seconds for one in trainings)
            print(
                f"{labels}, plain: {fmean(metrics):.4f} ± {stdev(metrics):.4f} over {PLAIN_SEEDS} seeds,"
                f" {seconds:.1f} s",
                flush=True,
            )
        print("\n| technique | fields | test | against plain | time |\n|---|---|---|---|---|")
        for technique, trainings in zip(chosen, found, strict=True):
            cells = _cells(trainings, plain[technique.labels][: parsed.seeds])
            print(f"| {technique.name} | {technique.fields} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
