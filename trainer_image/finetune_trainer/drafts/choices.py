"""What a first study searches, and within which limits, for a task, a model and a number of rows."""

import math
from dataclasses import dataclass

from finetune_api.tasks import TASKS, Task
from finetune_trainer.drafts.facts import Facts, Lengths
from finetune_trainer.search.recommended import recommended, row_of

SMALL_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MULTILINGUAL_MODEL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
"""Small encoders, for a first study that a laptop can train."""

MINUTES = 60
"""Of searching, unless others are asked for."""

_SENTENCE_MODELS = ("sentence-transformers/",)
_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_MOST_EPOCHS = 10
_TRIALS, _FEWER_TRIALS, _MANY_ROWS = 20, 12, 20_000
_LOWER, _HIGHER = 5, 10
"""How far the learning rates reach below and above the recommended one."""

_CHARACTERS_OF_A_TOKEN = 4.0
_CHARACTERS_ELSEWHERE = 2.0
"""Of English, and of languages that tokenizers know less of."""


@dataclass(frozen=True)
class Model:
    """The pretrained model, as far as it is here."""

    name: str
    """As the manifest names it."""

    family: str = ""
    """`model_type` of its configuration; empty if that is not here."""

    width: int = 0
    tokens: Lengths | None = None
    """Tokens of the rows, special ones included; None if the model is not here."""

    limit: int = 512
    """Most tokens that it reads."""

    pools_by_mean: bool = False
    """Whether it is a sentence encoder, trained for the mean of its states."""


def usual_model(facts: Facts) -> str:
    """The model of a first study of such texts."""
    return SMALL_MODEL if facts.is_english else MULTILINGUAL_MODEL


def is_sentence_model(name: str) -> bool:
    """Whether a model of the hub is a sentence encoder, by its name."""
    return name.startswith(_SENTENCE_MODELS)


@dataclass(frozen=True)
class Choices:
    """The values of a manifest that follow from the rows and the model."""

    validation: float
    test: float
    metric: str
    additional: tuple[str, ...]
    epochs: int
    recommended_epochs: int
    max_length: int
    length: int
    """Tokens that 95 % of the texts have at most."""

    is_estimate: bool
    """Whether `length` is estimated from the characters, because the model is not here."""

    rates: tuple[float, float]
    rate: float
    """The recommended learning rate."""

    batch_sizes: tuple[int, ...]
    balances: tuple[str, ...]
    """Values of `classBalance` to search; none where classes are balanced."""

    pooling: str | None
    thresholds: bool
    trials: int
    seconds: int


def choose(task: Task, facts: Facts, model: Model, minutes: int) -> Choices:
    """What a first study of these rows should search."""
    validation, test = _shares(facts.usable)
    family, width = (model.family, model.width) if model.family else ("bert", 384)
    point = recommended(family, width, facts.usable, {"optimizer": "AdamW"})
    rate, epochs = float(point["learningRate"]), int(point["epochs"])
    length = _length(facts, model)
    rare = facts.has_rare_classes
    metric, additional = _metrics(task, rare)
    return Choices(
        validation=validation,
        test=test,
        metric=metric,
        additional=additional,
        epochs=min(epochs, _MOST_EPOCHS),
        recommended_epochs=epochs,
        max_length=_max_length(length, model.limit),
        length=length,
        is_estimate=model.tokens is None,
        rates=(_round(rate / _LOWER), _round(min(rate * _HIGHER, 1e-2))),
        rate=rate,
        batch_sizes=(8, 16) if int(point["batchSize"]) <= 16 else (16, 32),
        balances=_balances(task) if rare else (),
        pooling="Mean" if model.pools_by_mean and "pooling" not in TASKS[task].without else None,
        thresholds=task == "MultiLabel" and rare,
        trials=_TRIALS if facts.usable <= _MANY_ROWS else _FEWER_TRIALS,
        seconds=60 * minutes,
    )


def _shares(rows: int) -> tuple[float, float]:
    """Shares of the rows for validation and test: the fewer there are, the larger, so that they measure something."""
    share = 0.2 if rows < 1000 else 0.15 if rows < 10_000 else 0.1 if rows < 100_000 else 0.05
    return share, share


def _metrics(task: Task, rare: bool) -> tuple[str, tuple[str, ...]]:
    """The objective and what is recorded besides."""
    if task == "SingleLabel":
        return ("f1_macro", ("accuracy",)) if rare else ("accuracy", ("f1_macro",))
    if task == "MultiLabel":
        return ("f1_macro", ("f1_micro",)) if rare else ("f1_micro", ("f1_macro",))
    if task == "Regression":
        return "rmse", ("mae", "r2")
    return TASKS[task].usual_metric, ("f1_macro", "accuracy")


def _balances(task: Task) -> tuple[str, ...]:
    refused = TASKS[task].without_values.get("class_balance", ())
    return tuple(each for each in ("None", "Weights", "Oversample") if each not in refused)


def _length(facts: Facts, model: Model) -> int:
    if model.tokens is not None:
        return model.tokens.most
    of_token = _CHARACTERS_OF_A_TOKEN if facts.is_english else _CHARACTERS_ELSEWHERE
    return math.ceil(facts.characters.most / of_token) + 2


def _max_length(length: int, limit: int) -> int:
    enough = next((each for each in _LENGTHS if each >= length), _LENGTHS[-1])
    return max(8, min(enough, limit))


def _round(rate: float) -> float:
    """To one figure."""
    return float(f"{rate:.0e}")


def source_of(model: Model) -> str:
    """Where the recommended learning rate comes from, shortly."""
    row = row_of(model.family or "bert", model.width or 384)
    return row.source.partition(" (")[0].partition(";")[0]
