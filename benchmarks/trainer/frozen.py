"""24 trials x 5 folds on a frozen encoder: ours compared with the same trainings one after another with Trainer.

Each way has its own process, so nothing is encoded beforehand:

- Trainer: MiniLM read again for each training, mean pooling and a linear head on top, which starts at the
  shares of the classes as ours does; the encoder gets no gradients and stays in evaluation mode. It trains
  the first 2 folds of every trial; the time of all 5 is extrapolated from them. All cores;
- ours: `TrialRun` on each trial and fold, with one `Pretrained`. All cores;
- the driver: the whole study as `finetune run` starts it, with Ray, records and one slot per core.

Rows, folds, hyperparameters and the number of evaluations are the same. Two times are compared: that of the
trainings alone, from the first to the last, and that of the whole process, with imports, data and Ray.

Accuracies after the last epoch must agree within 0.01 in the mean over all trainings that both ran.

Exits 1 if they do not, or if ours is less than 150 times as fast as Trainer without starts, or ours or the
driver less than 50 times with them.

    python -m benchmarks.trainer.frozen [--banking77 FOLDER] [--rows 2000]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.trainer.rows import add_arguments, as_items, sample, study_of
from finetune_api.hyperparameters import Hyperparameters, resolve
from finetune_api.manifest import parse_study
from finetune_api.study import FineTuneStudy
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import read_history
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.proposals import Proposer
from finetune_trainer.storage.folder import Storage

TRIALS, FOLDS, FOLDS_BY_TRAINER = 24, 5, 2
EPOCHS, MAX_LENGTH = 5, 64
TRAINER, OURS, DRIVER = "Trainer, one by one", "ours", "the driver"
BARS = {OURS: 150.0}
BARS_WITH_STARTS = {OURS: 50.0, DRIVER: 50.0}
APART = 0.01


@dataclass
class Way:
    """How one way went."""

    seconds: float
    """From the start of the first training to the end of the last one."""

    accuracies: list[list[float]]
    """After the last epoch, by trial and fold; for the driver in no particular order."""

    whole: float = 0.0
    """Seconds of the whole process."""

    def extrapolated(self) -> "Way":
        """The same with the time of all folds instead of those that were trained."""
        rest = self.seconds * (FOLDS / FOLDS_BY_TRAINER - 1)
        return Way(self.seconds + rest, self.accuracies, self.whole + rest)


def frozen_study(dataset: dict[str, Any], trials: int, epochs: int) -> FineTuneStudy:
    """A random search over a mean-pooled frozen encoder, cross-validated."""
    return study_of(
        dataset,
        hyperparameters={
            "epochs": epochs,
            "maxLength": MAX_LENGTH,
            "freeze": "Encoder",
            "pooling": "Mean",
        },
        searchSpaces=[
            {
                "learningRate": {"min": 1e-3, "max": 3e-2, "scale": "Log"},
                "batchSize": {"values": [16, 32, 64]},
                "weightDecay": {"min": 0.0, "max": 0.1},
            }
        ],
        search={"algorithm": "Random", "seed": 7},
        validation={"crossValidation": {"folds": FOLDS}},
        budget={"maxTrials": trials},
        refit=False,
    )


def configurations(study: FineTuneStudy) -> list[Hyperparameters]:
    """The hyperparameters of the study's trials, in order."""
    proposer, found = Proposer(Problem.of(study.spec)), []
    for _ in range(study.spec.budget.max_trials or 0):
        proposal = proposer.propose()
        assert proposal is not None  # the space is continuous
        found.append(resolve(study.spec.hyperparameters, dict(proposal.params)))
        proposer.record(proposal.params)
    return found


def by_ours(study: FineTuneStudy, base: Path) -> Way:
    """Every trial and fold, one after another, in this process."""
    from finetune_trainer.data import prepare
    from finetune_trainer.training import Pretrained, TrialRun

    spec = study.spec
    data = prepare(spec, base)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    folds = [data.fold(fold, FOLDS, stratify=True, seed=0) for fold in range(FOLDS)]
    accuracies = []
    started = time.perf_counter()
    for number, config in enumerate(configurations(study)):
        last = []
        for part in folds:
            run = TrialRun(pretrained, part, config, number, spec.objective)
            while not run.finished:
                result = run.train_to(config.epochs)
                assert result is not None  # nobody asks it to pause
                accuracy = result.metrics["accuracy"]
            last.append(accuracy)
        accuracies.append(last)
    return Way(time.perf_counter() - started, accuracies)


def by_trainer(study: FineTuneStudy, base: Path) -> Way:
    """The first folds of every trial with Hugging Face's Trainer."""
    import torch
    import transformers
    from torch import Tensor, nn

    from benchmarks.trainer import hugging_face
    from finetune_trainer.data import prepare
    from finetune_trainer.training.head import start_at_priors

    class MeanPooled(nn.Module):
        """What one would write for Trainer: a frozen encoder, mean pooling, a linear head."""

        def __init__(self, model: str, labels: int, dropout: float) -> None:
            super().__init__()
            self.encoder = transformers.AutoModel.from_pretrained(model)
            self.encoder.requires_grad_(False)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(self.encoder.config.hidden_size, labels)
            nn.init.normal_(self.head.weight, std=self.encoder.config.initializer_range)
            nn.init.zeros_(self.head.bias)

        def train(self, mode: bool = True) -> "MeanPooled":
            super().train(mode)
            self.encoder.eval()
            return self

        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
            hidden = self.encoder(input_ids, attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            logits = self.head(self.dropout(pooled))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    data = prepare(study.spec, base)
    tokenizer = data.model.tokenizer()
    parts = [data.fold(fold, FOLDS, stratify=True, seed=0) for fold in range(FOLDS_BY_TRAINER)]
    items = [
        [as_items(data, rows, MAX_LENGTH) for rows in (part.train, part.validation)]
        for part in parts
    ]
    accuracies = []
    started = time.perf_counter()
    for number, config in enumerate(configurations(study)):
        last = []
        for part, (train, validation) in zip(parts, items, strict=True):
            torch.manual_seed(number)
            model = MeanPooled(
                data.model.name, len(data.label_names), config.classifier_dropout or 0.1
            )
            start_at_priors(model.head, data.task, data.labels[part.train])
            trained = hugging_face.train(model, tokenizer, train, config, number, validation)
            last.append(trained.accuracies[-1])
        accuracies.append(last)
        took = time.perf_counter() - started
        print(f"{TRAINER}: trial {number + 1} after {took:.0f} s", file=sys.stderr, flush=True)
    return Way(time.perf_counter() - started, accuracies)


def by_driver(study: FineTuneStudy, base: Path) -> Way:
    """The whole study, with one slot per core; its accuracies are in no particular order."""
    from finetune_trainer.driver import Driver, Workplace
    from finetune_trainer.environment import SlotResources
    from finetune_trainer.runtime.local_sink import LocalSink

    slots = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        sink = LocalSink(Path(folder))
        Driver(Workplace(study, base, folder, sink, slots, SlotResources(1, 0))).run()
        events = read_history(Storage.open(folder)).events
    epochs = study.spec.max_epochs
    done = [event for event in events if isinstance(event, ev.EpochDone) and event.epoch == epochs]
    started = next(event.time for event in events if isinstance(event, ev.Started))
    return Way(done[-1].time - started, [[event.value for event in done]])


WAYS: dict[str, Callable[[FineTuneStudy, Path], Way]] = {
    TRAINER: by_trainer,
    OURS: by_ours,
    DRIVER: by_driver,
}


def in_its_own_process(way: str, study: FineTuneStudy, base: Path) -> Way:
    """Run `way` in a fresh process."""
    path = base / "study.json"
    path.write_text(json.dumps(study.to_json()))
    command = [sys.executable, "-m", "benchmarks.trainer.frozen", "--way", way, str(path)]
    started = time.perf_counter()
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = Way(**json.loads(run.stdout.splitlines()[-1]))
    found.whole = time.perf_counter() - started
    return found


def missed(ways: dict[str, Way]) -> list[str]:
    """Which ways are too slow, or have learnt something else."""
    words, trainer = [], ways[TRAINER]
    for name, bar in BARS.items():
        if (ratio := trainer.seconds / ways[name].seconds) < bar:
            words.append(f"{name}: {ratio:.0f} times as fast without starts, must be {bar:g}")
    for name, bar in BARS_WITH_STARTS.items():
        if (ratio := trainer.whole / ways[name].whole) < bar:
            words.append(f"{name}: {ratio:.0f} times as fast with starts, must be {bar:g}")
    ours = np.array(ways[OURS].accuracies)
    pairs = {
        f"{TRAINER} and {OURS}": (np.array(trainer.accuracies), ours[:, :FOLDS_BY_TRAINER]),
        f"{DRIVER} and {OURS}": (np.array(ways[DRIVER].accuracies), ours),
    }
    for names, (one, other) in pairs.items():
        print(f"accuracy of {names}, mean of {one.size}: {one.mean():.4f} and {other.mean():.4f}")
        if one.size != other.size or abs(one.mean() - other.mean()) > APART:
            words.append(f"{names} differ in accuracy")
    return words


def main() -> int:
    """Run the benchmark; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser, rows=2000)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument(
        "--way", nargs=2, metavar=("WAY", "STUDY"), help="only run this way, in this process"
    )
    asked = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    if asked.way is not None:
        way, path = asked.way[0], Path(asked.way[1])
        print(json.dumps(asdict(WAYS[way](parse_study(json.loads(path.read_text())), path.parent))))
        return 0
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        dataset = sample(asked.banking77, asked.rows, Path(folder))
        study = frozen_study(dataset, asked.trials, asked.epochs)
        ways = {way: in_its_own_process(way, study, Path(folder)) for way in WAYS}
    measured = ways[TRAINER].seconds
    ways[TRAINER] = ways[TRAINER].extrapolated()
    print(
        f"{asked.trials} trials x {FOLDS} folds x {asked.epochs} epochs; {TRAINER} is extrapolated from"
        f" {FOLDS_BY_TRAINER} folds of each trial, which took {measured:.0f} s"
    )
    print(f"{'':22} {'s':>9} {'x faster':>9} {'s, with starts':>15} {'x faster':>9}")
    trainer = ways[TRAINER]
    for name, way in ways.items():
        print(
            f"{name:22} {way.seconds:>9.1f} {trainer.seconds / way.seconds:>9.1f}"
            f" {way.whole:>15.1f} {trainer.whole / way.whole:>9.1f}",
            flush=True,
        )
    words = missed(ways)
    print("MISSED: " + "; ".join(words) if words else "as fast as it must be, with equal accuracy")
    return int(bool(words))


if __name__ == "__main__":
    sys.exit(main())
