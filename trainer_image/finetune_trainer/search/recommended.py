"""What is tried first: the hyperparameters that the literature and model cards recommend, with their sources.

`python -m finetune_trainer.search.recommended`, run from the root of the repository, writes `docs/recommended.md`.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from finetune_api.combinations import Params, Space, conditions_last, is_active, values_of
from finetune_api.hyperparameters import Scalar
from finetune_api.spaces import ChoiceDomain, Domain, NumericDomain
from finetune_trainer.search.domains import is_number

PAGE = Path("docs/recommended.md")


@dataclass(frozen=True)
class Recommendation:
    """How models of some families, up to some size, are fine-tuned as a whole with AdamW."""

    families: tuple[str, ...]
    """Values of transformers' `model_type`; empty: any that no other row has."""

    learning_rate: float
    source_rates: tuple[float, float]
    """Lowest and highest learning rate that the source recommends or uses."""

    source: str
    """Author, year, title or model card, and where in it."""

    widest: int | None = None
    """Largest hidden size that the row is for; None: any that no row above it is for."""

    batch_size: int = 32
    """Rows in one optimizer step."""

    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    epochs: int = 3
    layer_decay: float = 1.0


_BERT = "Devlin et al. 2019, BERT, appendix A.3 (2e-5 to 5e-5, batch 16 or 32, 2 to 4 epochs)"
_TURC = (
    "Turc et al. 2019, Well-Read Students Learn Better; model cards google/bert_uncased_L-*"
    " (3e-5 to 3e-4, 4 epochs)"
)
_ROBERTA = (
    "Liu et al. 2019, RoBERTa, table 10 (1e-5 to 3e-5, batch 16 or 32, 10 epochs, warm-up 0.06,"
    " weight decay 0.1)"
)
_ELECTRA = "Clark et al. 2020, ELECTRA, table 7; its repository, configure_finetuning.py"
_CONVBERT = "Jiang et al. 2020, ConvBERT; its repository, configure_finetuning.py"
_DEBERTA = "He et al. 2021, DeBERTa; its repository, experiments/glue"
_MODERNBERT = "Warner et al. 2024, ModernBERT, appendix (fine-tuning on GLUE)"

_ROBERTAS = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "camembert",
    "data2vec-text",
    "ibert",
)
"""RoBERTa and models with its architecture and recipe."""

RECOMMENDATIONS: tuple[Recommendation, ...] = (
    Recommendation(("bert",), 3e-4, (3e-5, 3e-4), _TURC, widest=256, epochs=4),
    Recommendation(
        ("bert", "roberta", "xlm-roberta"),
        5e-5,
        (4e-5, 5e-5),
        "Wang et al. 2020, MiniLM; its repository, README (5e-5 and 5 epochs on XNLI, 4e-5 on SQuAD 2.0)",
        widest=384,
        epochs=5,
    ),
    Recommendation(("bert",), 1e-4, (3e-5, 3e-4), _TURC, widest=512, epochs=4),
    Recommendation(("bert",), 3e-5, (2e-5, 5e-5), _BERT, widest=768),
    Recommendation(
        ("bert",),
        2e-5,
        (1e-5, 3e-5),
        f"{_BERT}; Mosbach et al. 2021, On the Stability of Fine-tuning BERT, section 6 (2e-5 for BERT-large)",
    ),
    Recommendation(
        ("distilbert",),
        2e-5,
        (1e-5, 2e-5),
        "Transformers, guide Text classification (2e-5); model card distilbert-base-uncased-finetuned-sst-2-english"
        " (1e-5, batch 32, 3 epochs)",
    ),
    Recommendation(
        _ROBERTAS,
        2e-5,
        (1e-5, 3e-5),
        _ROBERTA,
        widest=768,
        warmup_ratio=0.06,
        weight_decay=0.1,
        epochs=10,
    ),
    Recommendation(
        _ROBERTAS,
        1e-5,
        (1e-5, 3e-5),
        f"{_ROBERTA}; fairseq, examples/roberta/README.glue.md (1e-5 on six of eight tasks)",
        warmup_ratio=0.06,
        weight_decay=0.1,
        epochs=10,
    ),
    Recommendation(
        ("mpnet",),
        2e-5,
        (1e-5, 2e-5),
        "Song et al. 2020, MPNet; its repository, MPNet/README.glue.md",
        warmup_ratio=0.06,
        weight_decay=0.1,
        epochs=10,
    ),
    Recommendation(
        ("albert",),
        2e-5,
        (1e-5, 5e-5),
        "Lan et al. 2020, ALBERT, table 14; its repository, run_glue.sh",
        epochs=5,
    ),
    Recommendation(("electra",), 3e-4, (1e-4, 3e-4), _ELECTRA, widest=256, layer_decay=0.8),
    Recommendation(("electra",), 1e-4, (1e-4, 1e-4), _ELECTRA, widest=768, layer_decay=0.8),
    Recommendation(("electra",), 5e-5, (5e-5, 5e-5), _ELECTRA, layer_decay=0.9),
    Recommendation(("convbert",), 3e-4, (3e-4, 3e-4), _CONVBERT, widest=384, layer_decay=0.8),
    Recommendation(("convbert",), 1e-4, (1e-4, 1e-4), _CONVBERT, layer_decay=0.8),
    Recommendation(
        ("deberta",),
        2e-5,
        (2e-5, 3e-5),
        f"{_DEBERTA} (base: 3e-5 on MNLI, 2e-5 on RTE)",
        widest=768,
    ),
    Recommendation(
        ("deberta",), 1e-5, (8e-6, 1e-5), f"{_DEBERTA} (large: 1e-5 on MNLI, 8e-6 on RTE)"
    ),
    Recommendation(
        ("deberta-v2",),
        4.5e-5,
        (4.5e-5, 4.5e-5),
        "He et al. 2023, DeBERTaV3; model card microsoft/deberta-v3-xsmall (fine-tuning on MNLI)",
        widest=384,
    ),
    Recommendation(
        ("deberta-v2",),
        2e-5,
        (1.5e-5, 4.5e-5),
        "He et al. 2023, DeBERTaV3; model cards microsoft/deberta-v3-base (2e-5) and -small (4.5e-5), which have"
        " the same hidden size; repository of DeBERTa, experiments/glue/mnli.sh (base: 1.5e-5)",
        widest=768,
    ),
    Recommendation(
        ("deberta-v2",),
        7e-6,
        (6e-6, 7e-6),
        "He et al. 2023, DeBERTaV3; model card microsoft/deberta-v3-large (6e-6); repository of DeBERTa,"
        " experiments/glue/mnli.sh (7e-6)",
        widest=1024,
        epochs=2,
    ),
    Recommendation(("deberta-v2",), 3e-6, (3e-6, 4e-6), f"{_DEBERTA} (xlarge-v2, xxlarge-v2)"),
    Recommendation(
        ("modernbert",),
        8e-5,
        (5e-5, 8e-5),
        f"{_MODERNBERT}; its repository, examples/finetune_modernbert_on_glue.ipynb (8e-5, 2 epochs)",
        widest=768,
        warmup_ratio=0.06,
        weight_decay=8e-6,
        epochs=2,
    ),
    Recommendation(
        ("modernbert",),
        3e-5,
        (3e-5, 8e-5),
        "Warner et al. 2024, ModernBERT, appendix (fine-tuning on GLUE, large)",
        warmup_ratio=0.06,
        weight_decay=1e-5,
        epochs=2,
    ),
    Recommendation(
        ("longformer",),
        3e-5,
        (3e-5, 5e-5),
        "Beltagy et al. 2020, Longformer, appendix (classification: batch 32, 15 epochs, warm-up 0.1)",
        epochs=15,
    ),
    Recommendation(
        ("big_bird",),
        2e-5,
        (5e-6, 5e-5),
        "Zaheer et al. 2020, Big Bird, appendix (hyperparameters for document classification)",
        epochs=10,
    ),
    Recommendation(
        ("xlnet",),
        2e-5,
        (2e-5, 5e-5),
        "Yang et al. 2019, XLNet; its repository, README (IMDB: 2e-5, batch 32, 4,000 steps; STS-B: 5e-5)",
        epochs=5,
    ),
    Recommendation(
        ("mobilebert",),
        4e-5,
        (1e-5, 1e-4),
        "Sun et al. 2020, MobileBERT, section on GLUE (1e-5 to 1e-4, 2 to 10 epochs); its repository, README"
        " (4e-5, batch 32, 5 epochs, warm-up 0.1)",
        epochs=5,
    ),
    Recommendation(
        ("squeezebert",),
        3e-5,
        (3e-5, 3e-5),
        "Iandola et al. 2020, SqueezeBERT; model card squeezebert/squeezebert-uncased",
        batch_size=16,
        epochs=10,
    ),
    Recommendation((), 2e-5, (2e-5, 5e-5), _BERT),
)
"""In order: the first row with the family and at least the size is the one that holds."""


@dataclass(frozen=True)
class FewRows:
    """What differs where there are at most so many training rows."""

    most: int
    epochs: int
    """At least so many."""

    warmup_ratio: float
    """At least this."""

    source: str
    batch_size: int | None = None
    """At most so many rows in one optimizer step; None: as with more training rows."""


FEW_ROWS: tuple[FewRows, ...] = (
    FewRows(
        5_000,
        20,
        0.1,
        "Mosbach et al. 2021, On the Stability of Fine-tuning BERT, section 6 (20 epochs, batch 16, warm-up 0.1;"
        " RTE, MRPC, CoLA); Zhang et al. 2021, Revisiting Few-sample BERT Fine-tuning, section 6 (train longer)",
        batch_size=16,
    ),
    FewRows(
        10_000,
        10,
        0.1,
        "Zhang et al. 2021 (few samples: below 10,000); Liu et al. 2019, RoBERTa, table 10 (10 epochs);"
        " Clark et al. 2020, ELECTRA, table 7 (10 epochs on RTE and STS-B)",
    ),
)
"""In order: the first that holds."""


@dataclass(frozen=True)
class LowRank:
    """The learning rate of low-rank updates: `factor` times that of the whole model, at most `most`."""

    factor: float
    most: float
    source: str


LORA = LowRank(
    10,
    1e-3,
    "Schulman et al. 2025, LoRA Without Regret (ten times the rate of full fine-tuning); Hu et al. 2021, LoRA,"
    " table 9 and repository, examples/NLU (5e-4 for RoBERTa-base); Lee et al. 2026, Learning Rate Matters,"
    " arXiv 2602.04998 (LoRA depends on a rate of its own); PEFT, quicktour (1e-3)",
)


@dataclass(frozen=True)
class HeadAlone:
    """The learning rate of a head over an encoder that stays as pretrained."""

    learning_rate: float
    source_rates: tuple[float, float]
    source: str


FROZEN_ENCODER = HeadAlone(
    1e-3,
    (1e-3, 1e-2),
    "Chollet 2020, Transfer learning and fine-tuning, Keras guide (new layers over a frozen model: Adam at its"
    " default 1e-3); SetFit, TrainingArguments.head_learning_rate (1e-2)",
)

ADAM = ("AdamW", "Adam")
"""Optimizers for which the learning rates hold: in this trainer, Adam decays weights as AdamW does."""

_SCHEDULE = "Linear"
"""Of all rows: warm-up, then linear decay."""

_BASIS = ("optimizer", "freeze", "loraRank", "gradientAccumulation")
"""What the other values depend on. A recommendation sets these too, so that a search does not draw them."""


def row_of(model_type: str, hidden_size: int) -> Recommendation:
    """The row for a model of that family and hidden size (of its layers, not of its embeddings)."""
    fitting = (row for row in RECOMMENDATIONS if row.widest is None or hidden_size <= row.widest)
    return next(row for row in fitting if model_type in row.families or not row.families)


def recommended(
    model_type: str, hidden_size: int, rows: int, fixed: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """The recommended hyperparameters (JSON names) for a model and a number of training rows.

    `fixed` has the values that a trial has anyway (JSON names, defaults filled in). The recommendation follows
    its optimizer, freeze, loraRank and gradientAccumulation, and repeats them. There is no learning rate for
    optimizers other than Adam and AdamW.
    """
    row = row_of(model_type, hidden_size)
    few = next((few for few in FEW_ROWS if rows <= few.most), None)
    batch, epochs, warmup = row.batch_size, row.epochs, row.warmup_ratio
    if few is not None:
        batch = min(batch, few.batch_size or batch)
        epochs = max(epochs, few.epochs)
        warmup = max(warmup, few.warmup_ratio)
    basis = {name: fixed[name] for name in _BASIS if name in fixed}
    point: dict[str, Scalar] = {
        **basis,
        "batchSize": max(1, batch // int(basis.get("gradientAccumulation", 1))),
        "epochs": epochs,
        "warmupRatio": warmup,
        "weightDecay": row.weight_decay,
        "layerDecay": row.layer_decay,
        "lrSchedule": _SCHEDULE,
    }
    if basis.get("optimizer", "AdamW") in ADAM:
        point["learningRate"] = _learning_rate(row, basis)
    return point


def _learning_rate(row: Recommendation, basis: Mapping[str, Scalar]) -> float:
    if basis.get("freeze") == "Encoder":
        return FROZEN_ENCODER.learning_rate
    if int(basis.get("loraRank", 0)) > 0:
        return min(float(f"{LORA.factor * row.learning_rate:.6g}"), LORA.most)
    return row.learning_rate


def first_point(
    model_type: str, hidden_size: int, rows: int, fixed: Mapping[str, Scalar], space: Space
) -> Params:
    """The recommendation as `space` has it; what it leaves out of the space is to be drawn.

    As `fitted(recommended(...), space)`, except that where the space has other values for optimizer, freeze,
    loraRank or gradientAccumulation than `fixed`, the rest follows those. There is no learning rate where one of
    the four is still to be drawn.
    """
    basis = {name: fixed[name] for name in _BASIS if name in fixed}
    nearest = fitted(basis, space)
    params = fitted(recommended(model_type, hidden_size, rows, {**fixed, **nearest}), space)
    if any(_is_open(space[name], name, params) for name in _BASIS if name in space):
        params.pop("learningRate", None)
    return params


def _is_open(domain: Domain, name: str, params: Params) -> bool:
    """Whether a hyperparameter is still to be drawn, or may be when those that its `when` names are drawn."""
    when = domain.when or {}
    return name not in params and all(
        key not in params or params[key] in words for key, words in when.items()
    )


def fitted(point: Mapping[str, Scalar], space: Space) -> dict[str, Scalar]:
    """The values of the point that the space searches, each moved to the nearest that its domain has.

    Nearest on a log scale for the learning rate and for domains with `scale: Log`; of two as near, the lower.
    Left out: words that a domain does not list, numbers for words and the reverse, and hyperparameters
    whose `when` does not hold for the values before them.
    """
    params: Params = {}
    for name, domain in conditions_last(space):
        if name in point and is_active(domain, params):
            value = _nearest(name, domain, point[name])
            if value is not None:
                params[name] = value
    return params


def _nearest(name: str, domain: Domain, value: Scalar) -> Scalar | None:
    if isinstance(domain, ChoiceDomain):
        return value if value in domain.values else None
    if not is_number(value):
        return None
    numeric, number = cast(NumericDomain, domain), float(value)
    values = values_of(numeric)
    if values is None:
        return min(max(number, cast(float, numeric.min)), cast(float, numeric.max))
    log = name == "learningRate" or numeric.scale == "Log"
    listed = numeric.values is not None
    return _nearest_of(sorted(cast(Sequence[float], values)) if listed else values, number, log)


def _nearest_of(ascending: Sequence[Scalar], value: float, log: bool) -> Scalar:
    """Found by bisection, since there may be billions of steps."""
    place = bisect_left(cast(Sequence[float], ascending), value)
    between = ascending[max(place - 1, 0) : place + 1]
    return min(between, key=lambda near: _distance(float(near), value, log))


def _distance(a: float, b: float, log: bool) -> float:
    distance = abs(math.log(a / b)) if log and a > 0 and b > 0 else abs(a - b)
    return float(f"{distance:.9g}")  # 0.08 and 0.12 are as near to 0.1


def table() -> str:
    """The recommendations as a Markdown table, one row each."""
    return "\n".join(_table())


def _table() -> Iterator[str]:
    yield "| family | hidden size | learning rate | batch | warm-up | weight decay | layer decay | epochs | source |"
    yield f"|{'---|' * 9}"
    seen: set[str] = set()
    for row in RECOMMENDATIONS:
        families = ", ".join(f"`{family}`" for family in row.families) or "any other"
        larger = "larger" if seen.intersection(row.families) else "any"
        size = larger if row.widest is None else f"up to {row.widest:,}"
        seen.update(row.families)
        values = (row.batch_size, row.warmup_ratio, row.weight_decay, row.layer_decay, row.epochs)
        numbers = " | ".join(map(_number, values))
        yield f"| {families} | {size} | {_number(row.learning_rate)} | {numbers} | {row.source} |"


def _number(value: float) -> str:
    """As a manifest would have it: 2e-5, 0.01, 32."""
    if 0 < value <= 1e-3:
        digits, _, exponent = f"{value:.6e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:,g}"


def _adjustments() -> Iterator[str]:
    yield "| where | what differs | source |"
    yield f"|{'---|' * 3}"
    for few in FEW_ROWS:
        batch = "" if few.batch_size is None else f", batch at most {few.batch_size}"
        yield (
            f"| at most {few.most:,} training rows | at least {few.epochs} epochs, warm-up at least"
            f" {_number(few.warmup_ratio)}{batch} | {few.source} |"
        )
    yield (
        f"| `loraRank` above 0 | learning rate {_number(LORA.factor)} times as high, at most {_number(LORA.most)}"
        f" | {LORA.source} |"
    )
    rate = _number(FROZEN_ENCODER.learning_rate)
    yield f"| `freeze: Encoder` | learning rate {rate} | {FROZEN_ENCODER.source} |"
    yield f"| `optimizer` other than {' or '.join(ADAM)} | no learning rate: it is drawn | |"


def page() -> str:
    """`docs/recommended.md`."""
    return f"""<!-- Generated by `python -m finetune_trainer.search.recommended`. -->
# The first trial

A study first tries what the literature and model cards recommend for the family and size of its model and for the
number of its training rows. This is one trial among the others: it counts towards the budget, schedulers stop or
promote it, it is recorded like any other trial, and the searcher learns from it. `search.defaults: false` switches
it off. The study's own `search.points` come before it.

Only what the study searches is set. Fixed values stay as they are, and hyperparameters without a recommendation are
drawn from the search space. Each value is moved to the nearest one that the space has, on a log scale for
`learningRate` and for domains with `scale: Log`. A word, such as `lrSchedule: {_SCHEDULE}`, is set only if the space
lists it.

## By family and size

Family is the `model_type` in the model's configuration. The first row that fits is used. The learning rates are for
AdamW, followed by linear decay; Regression has those of classification. `batch` is the number of rows in one
optimizer step: `batchSize` times `gradientAccumulation`. Where a source does not mention warm-up or weight decay,
the row has BERT's.

{table()}

## What changes it

{chr(10).join(_adjustments())}
"""


if __name__ == "__main__":
    PAGE.write_text(page())
