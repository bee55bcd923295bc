"""Useful tokens per second of a training step: ours, and Hugging Face's Trainer with and without `group_by_length`.

All three train MiniLM on the same rows with the same batch, epochs, learning rate, schedule, weight decay,
clipping and threads, in one process, in turn, each after a short run that is not timed. Only the epochs are
timed: ordering rows, making batches, optimizer steps; not evaluation, reading the model or creating the
optimizer. Useful tokens are those that are not padding. Figures are medians over the repeats.

Lengths are mixed (rows as they are, cut at 128 tokens) or static (rows of at least the median length, cut to
it, so that batching rows of similar length gains nothing; Trainer then runs only with its defaults).

The table also shows the mean loss, without dropout, of the same 256 training rows after the training, median
over the repeats. Losses agree if they are within 5 % of Trainer's at its defaults, or as close to it as its own
repeats (with other seeds) are to each other.

Exits 1 if losses do not agree, or if ours is less than 1.8 times as fast as Trainer at its defaults or 1.1
times as fast as with `group_by_length` on mixed lengths, or less than 0.95 times as fast as at its defaults
on static ones.

    python -m benchmarks.trainer.throughput [--banking77 FOLDER] [--rows 1600] [--repeats 3]
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.machine import describe
from benchmarks.trainer import hugging_face
from benchmarks.trainer.rows import add_arguments, as_items, sample, study_of, training_only
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.training import Pretrained, TrialRun

BATCHES, ACCUMULATIONS = (16, 32), (1, 4)
MAX_LENGTH = 128
LEARNING_RATE = 3e-4
DEFAULTS, GROUPED, OURS = "Trainer, defaults", "Trainer, group_by_length", "ours"
BARS = {"mixed": {DEFAULTS: 1.8, GROUPED: 1.1}, "static": {DEFAULTS: 0.95}}
LOSS_ROWS, LOSS_APART = 256, 0.05
WARM_BATCHES = 4


@dataclass(frozen=True)
class Setting:
    """What is trained in one comparison."""

    lengths: str
    """`mixed` or `static`."""

    pretrained: Pretrained
    data: PreparedData
    config: Hyperparameters

    @property
    def name(self) -> str:
        """Lengths, batch and accumulation."""
        config = self.config
        return f"{self.lengths}, batch {config.batch_size} x {config.gradient_accumulation}"

    @property
    def tokens(self) -> int:
        """Useful tokens in a training."""
        lengths = self.data.lengths(self.data.train, self.config.max_length)
        return int(lengths.sum()) * self.config.epochs

    def short(self) -> "Setting":
        """The same with only the rows of a few batches."""
        rows = self.data.train[: WARM_BATCHES * self.config.batch_size]
        return replace(self, data=training_only(self.data, rows))


@dataclass(frozen=True)
class Outcome:
    """The cost and the result of a training."""

    seconds: float
    loss: float


def by_trainer(setting: Setting, seed: int, grouped: bool = False) -> Outcome:
    """The training with Hugging Face's Trainer."""
    source, data, config = setting.pretrained.source, setting.data, setting.config
    tokenizer = source.tokenizer()
    transformers.set_seed(seed)  # the new head is drawn when the model is read
    model, _ = source.weights(source.config(num_labels=len(data.label_names)))
    items = as_items(data, data.train, config.max_length)
    trained = hugging_face.train(model, tokenizer, items, config, seed, grouped=grouped)
    return Outcome(trained.seconds, final_loss(model, tokenizer, items))


def by_ours(setting: Setting, seed: int) -> Outcome:
    """The training with our loop."""
    data, config = setting.data, setting.config
    run = TrialRun(setting.pretrained, data, config, seed, Objective(metric="accuracy"))
    seconds = 0.0
    while not run.finished:
        result = run.train_to(config.epochs)
        assert result is not None  # nobody asks it to pause
        seconds += result.seconds
    items = as_items(data, data.train, config.max_length)
    return Outcome(seconds, final_loss(run.model, setting.pretrained.source.tokenizer(), items))


def final_loss(model: Any, tokenizer: Any, items: list[Any]) -> float:
    """Mean cross entropy of the first rows, without dropout."""
    model.eval()
    batch = transformers.DataCollatorWithPadding(tokenizer)(items[:LOSS_ROWS])
    with torch.inference_mode():
        return float(model(**batch).loss)


RIVALS: dict[str, Callable[[Setting, int], Outcome]] = {
    DEFAULTS: by_trainer,
    GROUPED: lambda setting, seed: by_trainer(setting, seed, grouped=True),
    OURS: by_ours,
}


def measure(setting: Setting, repeats: int) -> dict[str, list[Outcome]]:
    """The outcomes of ours and of each rival that it is compared with, in turn."""
    rivals = {name: RIVALS[name] for name in (*BARS[setting.lengths], OURS)}
    for rival in rivals.values():
        rival(setting.short(), 0)
    found: dict[str, list[Outcome]] = {name: [] for name in rivals}
    for seed in range(repeats):
        for name, rival in rivals.items():
            found[name].append(rival(setting, seed))
            gc.collect()  # so that no rival has to clear away what another left
    return found


def settings(data: PreparedData, epochs: int) -> Iterator[Setting]:
    """All comparisons, mixed lengths first."""
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    mixed = training_only(data)
    lengths = mixed.lengths(mixed.train, MAX_LENGTH)
    middle = int(np.median(lengths))
    static = training_only(data, mixed.train[lengths >= middle])
    for batch, accumulation in product(BATCHES, ACCUMULATIONS):
        config = Hyperparameters(
            epochs=epochs,
            batch_size=batch,
            gradient_accumulation=accumulation,
            max_length=MAX_LENGTH,
            learning_rate=LEARNING_RATE,
        )
        yield Setting("mixed", pretrained, mixed, config)
        if accumulation == 1:
            cut = config.model_copy(update={"max_length": middle})
            yield Setting("static", pretrained, static, cut)


def missed(setting: Setting, found: dict[str, list[Outcome]]) -> list[str]:
    """What is too slow, or has learnt something else."""
    seconds = {name: median(outcome.seconds for outcome in runs) for name, runs in found.items()}
    words = [
        f"{setting.name}: {seconds[rival] / seconds[OURS]:.2f} times as fast as {rival}, must be {bar:g}"
        for rival, bar in BARS[setting.lengths].items()
        if seconds[rival] / seconds[OURS] < bar
    ]
    losses = {name: [outcome.loss for outcome in runs] for name, runs in found.items()}
    reference = median(losses[DEFAULTS])
    spread = max(losses[DEFAULTS]) - min(losses[DEFAULTS])
    allowed = max(LOSS_APART * reference, spread)
    for name, values in losses.items():
        if abs(median(values) - reference) > allowed:
            words.append(
                f"{setting.name}: loss of {name} {median(values):.3f}, not {reference:.3f}"
            )
    return words


def show(setting: Setting, found: dict[str, list[Outcome]]) -> None:
    """Print one line per rival."""
    ours = median(outcome.seconds for outcome in found[OURS])
    for name, runs in found.items():
        seconds = median(outcome.seconds for outcome in runs)
        losses = [outcome.loss for outcome in runs]
        print(
            f"{setting.name:22} {name:26} {setting.tokens / seconds:>9.0f} {seconds / ours:>9.2f}"
            f" {median(losses):>8.3f} ({min(losses):.3f} to {max(losses):.3f})",
            flush=True,
        )


def main() -> int:
    """Run the benchmark; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser, rows=1600)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        dataset = sample(asked.banking77, asked.rows, Path(folder))
        data = prepare(study_of(dataset).spec, Path(folder))
    texts = "banking77" if asked.banking77 else "docstrings"
    print(f"{describe()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"MiniLM, {len(data.labels)} rows of {texts}, {asked.epochs} epochs")
    print(f"{'':22} {'':26} {'tokens/s':>9} {'x, ours':>9} {'loss':>8} (of the repeats)")
    words = []
    for setting in settings(data, asked.epochs):
        found = measure(setting, asked.repeats)
        show(setting, found)
        words += missed(setting, found)
    print("MISSED: " + "; ".join(words) if words else "as fast as it must be, with equal losses")
    return int(bool(words))


if __name__ == "__main__":
    sys.exit(main())
