"""One GPU: how each technique affects the speed and memory of a base-size BERT, at 128 and 512 tokens.

The model has the configuration of bert-base with random weights, and the texts are random words: neither
affects the time of a step. A batch has 16,384 tokens; a training step is forward, backward and AdamW. One
epoch warms up (and compiles), two are timed; the figure is their median. Techniques:

- none: FP32, with every text at the full length, as padding to it would give;
- dynamic padding: texts between a quarter of the length and all of it, batched by length, padded to the longest
  of a batch;
- accumulation: four passes of a quarter of the batch per optimizer step;
- mixed precision: BF16 matrix products, FP32 weights;
- compile: `torch.compile`;
- mixed precision and compile: both, with every text at the full length: how well the chip can be used;
- freezing: the embeddings and the lower half of the layers; their outputs are kept if they fit into memory;
- all: all of these.

Memory is the most that torch allocated. Utilisation is model FLOPs per second, relative to the chip's peak of
dense BF16 matrix products for all variants alike. Model FLOPs per token of a batch, including padding, in a row
of `length` tokens as batched:

    6 N + 12 layers x width x length

N is the number of parameters in the layers that are trained: 2 FLOPs each forward, 4 backward. The second term
is the two products of attention, 4 x width x length forward in each such layer and twice that backward. Embeddings
are looked up, not multiplied, and count nothing; nor do frozen layers, whose outputs may be kept, nor the
head, which sees one token per row.

Without a GPU it says so and does nothing. `--tiny` runs all of it with a tiny model, on a CPU too.

    python -m benchmarks.trainer.gpu [--tiny]
"""

import argparse
import csv
import random
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from benchmarks.machine import describe
from benchmarks.trainer.rows import study_of, training_only
from finetune_api.cluster import Compute
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.data.model_source import quiet_transformers
from finetune_trainer.training import Pretrained, TrialRun
from finetune_trainer.training.batches import training_steps

EPOCHS = 3
"""The first one warms up."""

PARTS = 4
"""Passes per batch, with accumulation."""

PEAKS = {
    "A10": 125e12,
    "A100": 312e12,
    "B200": 2250e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L4": 121e12,
    "L40S": 362e12,
}
"""Dense BF16 matrix products, FLOPs per second, by words in the chip's name (NVIDIA's data sheets)."""


@dataclass(frozen=True)
class Scale:
    """The size of model and data."""

    config: BertConfig
    lengths: tuple[int, ...]
    batch_tokens: int
    steps: int
    """Optimizer steps per epoch."""


BASE = Scale(BertConfig(), (128, 512), 16384, 16)
TINY = Scale(
    BertConfig(
        vocab_size=500,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    ),
    (32,),
    256,
    2,
)


@dataclass(frozen=True)
class Variant:
    """The techniques in use."""

    name: str
    dynamic: bool = False
    parts: int = 1
    precision: Literal["FP32", "BF16"] = "FP32"
    compile: bool = False
    freezes: bool = False


VARIANTS = (
    Variant("none"),
    Variant("dynamic padding", dynamic=True),
    Variant("accumulation", parts=PARTS),
    Variant("mixed precision", precision="BF16"),
    Variant("compile", compile=True),
    Variant("mixed precision and compile", precision="BF16", compile=True),
    Variant("freezing", freezes=True),
    Variant("all", True, PARTS, "BF16", True, True),
)


@dataclass(frozen=True)
class Outcome:
    """The results of a variant, per epoch."""

    rows: int
    flops: float
    seconds: float
    bytes: int

    def utilisation(self, peak: float | None) -> str:
        """Share of the chip's peak, in per cent."""
        return f"{100 * self.flops / self.seconds / peak:.1f}" if peak else "—"


def place_model(folder: Path, config: BertConfig) -> None:
    """Write a model with random weights, whose tokenizer knows the words w0, w1, …"""
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"w{number}" for number in range(config.vocab_size - len(special))]
    with quiet_transformers():
        BertModel(config).save_pretrained(folder)
        BertTokenizer(
            vocab={word: number for number, word in enumerate(words)},
            model_max_length=config.max_position_embeddings,
        ).save_pretrained(folder)


def prepared(scale: Scale, length: int, dynamic: bool, folder: Path) -> PreparedData:
    """Texts of `length` tokens, or of a quarter of that to all of it, prepared like those of a study."""
    rng, special = random.Random(0), 2
    words = scale.config.vocab_size - 5
    path = folder / f"{length}-{dynamic}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for row in range(scale.steps * scale.batch_tokens // length):
            tokens = rng.randint(length // 4, length) if dynamic else length
            text = " ".join(f"w{rng.randrange(words)}" for _ in range(tokens - special))
            table.writerow([text, "ab"[row % 2]])
    dataset = {"files": {"train": path.name}, "textColumns": ["text"], "labelColumn": "label"}
    spec = study_of(dataset, model={"name": "model"}).spec
    return training_only(prepare(spec, folder))


def hyperparameters(scale: Scale, variant: Variant, length: int) -> Hyperparameters:
    """The hyperparameters of a variant's trial."""
    layers = scale.config.num_hidden_layers
    return Hyperparameters(
        epochs=EPOCHS,
        batch_size=scale.batch_tokens // length // variant.parts,
        gradient_accumulation=variant.parts,
        max_length=length,
        freeze="Layers" if variant.freezes else "None",
        frozen_layers=layers // 2,
    )


def flops_of_an_epoch(
    scale: Scale, data: PreparedData, config: Hyperparameters, multiple: int
) -> float:
    """Model FLOPs by the formula above; rows are padded to a multiple of `multiple` tokens."""
    with torch.device("meta"):
        layers = BertModel(scale.config).encoder.layer
    trained = layers[config.frozen_layers if config.freeze == "Layers" else 0 :]
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    lengths = data.lengths(data.train, config.max_length)
    steps = training_steps(
        np.arange(len(lengths)),
        lengths,
        config.batch_size,
        config.gradient_accumulation,
        seed=0,
        epoch=1,
    )
    total = 0.0
    for batch in (batch for step in steps for batch in step):
        padded = min(-(-int(lengths[batch].max()) // multiple) * multiple, config.max_length)
        a_token = 6 * parameters + 12 * len(trained) * scale.config.hidden_size * padded
        total += len(batch) * padded * a_token
    return total


def run(scale: Scale, variant: Variant, data: PreparedData, length: int) -> Outcome:
    """Train with a variant's techniques, the first epoch untimed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = hyperparameters(scale, variant, length)
    compute = Compute(precision=variant.precision, compile=variant.compile)
    torch.compiler.reset()
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    trial = TrialRun(pretrained, data, config, 0, Objective(metric="accuracy"), device, compute)
    seconds = []
    while not trial.finished:
        if trial.position == 1 and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result = trial.train_to(config.epochs)
        assert result is not None  # nobody asks it to pause
        seconds.append(result.seconds)
    most = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    flops = flops_of_an_epoch(scale, data, config, 8 if device == "cuda" else 1)
    return Outcome(len(data.train), flops, median(seconds[1:]), most)


def peak_of(chip: str) -> float | None:
    """The chip's peak; None if it is not in the table."""
    words = set(re.split(r"[\s-]+", chip))
    known = [name for name in PEAKS if words.issuperset(name.split())]
    return PEAKS[max(known, key=len)] if known else None


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU too")
    scale = TINY if parser.parse_args().tiny else BASE
    if scale is BASE and not torch.cuda.is_available():
        print("no GPU: not measured")
        return 0
    chip = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{describe()}; {chip}, torch {torch.__version__}")
    print("| length | technique | samples/s | peak memory, GiB | utilisation, % |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        place_model(Path(folder) / "model", scale.config)
        for length in scale.lengths:
            texts = {
                dynamic: prepared(scale, length, dynamic, Path(folder)) for dynamic in (False, True)
            }
            for variant in VARIANTS:
                found = run(scale, variant, texts[variant.dynamic], length)
                print(
                    f"| {length} | {variant.name} | {found.rows / found.seconds:.0f} |"
                    f" {found.bytes / 2**30:.1f} | {found.utilisation(peak_of(chip))} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
