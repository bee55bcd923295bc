"""Every hyperparameter of the trainer, declared once.

From this class come `spec.hyperparameters` (fixed values), `spec.searchSpaces` (domains), the
trainer's configuration and `docs/hyperparameters.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field

from finetune_api.docstrings import attribute_docs
from finetune_api.locations import WithoutCredentials
from finetune_api.schema import Model

Scalar: TypeAlias = float | int | str | bool


@dataclass(frozen=True)
class Decides:
    """What depends on a hyperparameter, beyond how training goes on from where it is."""

    tensors: bool = False
    """Which tensors a model has, and which of them training changes: it must not change while a model trains."""

    model: bool = False
    """What the model is built with: where it changes, the model is built anew around the same tensors."""

    batches: bool = False
    """What batches consist of: it must not change in the middle of an epoch."""


STRUCTURE = Decides(tensors=True)
MODEL = Decides(model=True)
BATCHES = Decides(batches=True)
READING = Decides(model=True, batches=True)
TRAINING = Decides()


class Hyperparameters(Model):
    """One complete configuration of the trainer; values that a study neither fixes nor searches have their defaults."""

    pretrained_model: Annotated[str, WithoutCredentials(), STRUCTURE] = Field("", max_length=253)
    """Hub id or folder of the pretrained encoder, for a search among several; if empty, that of `spec.model`."""

    epochs: Annotated[int, TRAINING] = Field(3, ge=1, le=1000)
    """Passes over the training rows. The learning-rate schedule spans all of them."""

    batch_size: Annotated[int, BATCHES] = Field(16, ge=1, le=4096)
    """Training rows in one forward pass."""

    gradient_accumulation: Annotated[int, BATCHES] = Field(1, ge=1, le=1024)
    """Forward passes whose gradients are summed before one optimizer step."""

    max_length: Annotated[int, READING] = Field(128, ge=8, le=8192)
    """Maximum tokens of a text, special tokens included; the rest is cut off. TokenClassification reads it in further
    windows."""

    duplicate_threshold: Annotated[float, BATCHES] = Field(1.0, ge=0.5, le=1)
    """Leave out training rows whose texts are at least this similar (cosine of the sentence embeddings of
    `dataset.cleaning.duplicateEncoder`) to an earlier training row or to any validation or test row. 1 keeps all."""

    augmentation: Annotated[
        Literal["None", "Synonyms", "Insertion", "Deletion", "Swap", "All"], READING
    ] = "None"
    """How copies of training rows are varied, drawn afresh each epoch: words replaced by synonyms, synonyms
    of words inserted, words deleted, words swapped, or one of the four at random for each copy (Wei and Zou,
    "EDA", 2019)."""

    augmentation_share: Annotated[float, BATCHES] = Field(0.1, gt=0, le=1)
    """Share of a text's words that `augmentation` changes; at least one."""

    augmentation_copies: Annotated[int, BATCHES] = Field(1, ge=1, le=16)
    """Varied copies of each training row, in addition to the row itself."""

    optimizer: Annotated[
        Literal["AdamW", "Adam", "SGD", "NesterovSGD", "RMSprop", "Adafactor"], TRAINING
    ] = "AdamW"
    """The optimizer. NesterovSGD is SGD that looks ahead along its momentum."""

    learning_rate: Annotated[float, TRAINING] = Field(2e-5, gt=0, le=1)
    """Peak learning rate."""

    layer_decay: Annotated[float, TRAINING] = Field(1.0, gt=0, le=1)
    """Learning rate of each layer as a share of that of the layer above; the head has the full rate, and
    1 gives all layers the same (Howard and Ruder, "Universal Language Model Fine-tuning", 2018)."""

    weight_decay: Annotated[float, TRAINING] = Field(0.01, ge=0, le=1)
    """Decay of weights toward zero, decoupled from the gradient with every optimizer (Adam with it is AdamW);
    biases and normalisation layers are exempt."""

    l1_penalty: Annotated[float, TRAINING] = Field(0.0, ge=0, le=1)
    """Factor of the sum of absolute weights in the loss; biases and normalisation layers are exempt."""

    momentum: Annotated[float, TRAINING] = Field(0.9, ge=0, lt=1)
    """Momentum of SGD, NesterovSGD and RMSprop; the others ignore it."""

    adam_beta1: Annotated[float, TRAINING] = Field(0.9, ge=0, lt=1)
    """AdamW and Adam: decay rate of the mean of gradients."""

    adam_beta2: Annotated[float, TRAINING] = Field(0.999, ge=0, lt=1)
    """AdamW and Adam: decay rate of the mean of squared gradients."""

    adam_epsilon: Annotated[float, TRAINING] = Field(1e-8, gt=0, le=1)
    """Term that keeps AdamW, Adam and RMSprop from dividing by zero."""

    rmsprop_alpha: Annotated[float, TRAINING] = Field(0.99, ge=0, lt=1)
    """RMSprop: decay rate of the mean of squared gradients."""

    lr_schedule: Annotated[
        Literal[
            "Linear",
            "Cosine",
            "CosineWithRestarts",
            "Polynomial",
            "Step",
            "Exponential",
            "InverseSqrt",
            "ReduceOnPlateau",
            "Constant",
        ],
        TRAINING,
    ] = "Linear"
    """How the learning rate falls after the warm-up. To zero: Linear, Cosine (half a cosine),
    CosineWithRestarts (lrCycles of them), Polynomial (with exponent lrPower). By the factor lrGamma: Step (every
    lrPatience epochs), Exponential (once an epoch, smoothly), ReduceOnPlateau (after lrPatience epochs without
    improvement of the objective). InverseSqrt falls with the inverse square root of the step; Constant does not fall."""

    lr_cycles: Annotated[int, TRAINING] = Field(2, ge=1, le=100)
    """Number of half cosines of CosineWithRestarts."""

    lr_power: Annotated[float, TRAINING] = Field(2.0, gt=0, le=16)
    """Exponent of Polynomial."""

    lr_gamma: Annotated[float, TRAINING] = Field(0.5, gt=0, lt=1)
    """Factor of Step, Exponential and ReduceOnPlateau."""

    lr_patience: Annotated[int, TRAINING] = Field(1, ge=1, le=1000)
    """Step: epochs between two reductions. ReduceOnPlateau: epochs without improvement before a reduction."""

    warmup_ratio: Annotated[float, TRAINING] = Field(0.06, ge=0, le=1)
    """Share of all optimizer steps in which the learning rate rises linearly from zero to its peak."""

    max_grad_norm: Annotated[float, TRAINING] = Field(1.0, gt=0, le=1000000)
    """Norm to which gradients with a larger norm are clipped."""

    pretrained_pull: Annotated[float, MODEL] = Field(0.0, ge=0, le=100)
    """How strongly weights are drawn back to their pretrained values at each step, as weight decay draws to zero: by
    the learning rate times this share of what they have moved ("L2-SP"; Li et al., "Explicit Inductive Bias for
    Transfer Learning", 2018). Not those of the head, of layers that begin anew, and of LoRA."""

    mixout: Annotated[float, MODEL] = Field(0.0, ge=0, lt=1)
    """Share of the elements of the encoder's matrices that have their pretrained values in a step, drawn anew for each;
    the others are scaled so that the mean stays (Lee et al., "Mixout", 2020). It draws to the pretrained model as
    dropout draws to zero."""

    adversarial_epsilon: Annotated[float, TRAINING] = Field(0.0, ge=0, le=100)
    """Length of a step by which the word embeddings of each row are moved to where its loss rises fastest; the row is
    trained as it is and as moved, in equal parts (Miyato et al., "Adversarial Training Methods for Semi-Supervised
    Text Classification", 2017). Training takes twice as long; 0 moves nothing. Not with frozen layers."""

    r_drop: Annotated[float, TRAINING] = Field(0.0, ge=0, le=100)
    """Weight of the difference between two predictions of each row under different dropout, which is added to the
    mean of their losses ("R-Drop"; Liang et al., 2021). Training takes twice as long; 0 predicts once."""

    averaging_start: Annotated[float, TRAINING] = Field(1.0, ge=0, le=1)
    """Share of all optimizer steps after which the weights of every step are averaged; the average is
    then evaluated and kept (stochastic weight averaging; Izmailov et al., 2018). 1 never averages."""

    averaging_decay: Annotated[float, TRAINING] = Field(1.0, gt=0, le=1)
    """Share of that average which stays at each step, so that earlier steps count less and less (an exponential
    average; Polyak and Juditsky, 1992; Tarvainen and Valpola, "Mean teachers", 2017): 0.99 is about the mean of the
    last hundred steps. 1 is the equal mean of all steps."""

    label_smoothing: Annotated[float, TRAINING] = Field(0.0, ge=0, lt=1)
    """Share of each label that is spread evenly over all classes, or in MultiLabel over yes and no."""

    focal_gamma: Annotated[float, TRAINING] = Field(0.0, ge=0, le=10)
    """How much less a row counts in the loss the surer the model already is of its label: by its probability that
    another is right to this power (Lin et al., "Focal Loss for Dense Object Detection", 2017). For rare classes;
    0 counts all rows alike."""

    class_balance: Annotated[Literal["None", "Weights", "Oversample", "Undersample"], BATCHES] = (
        "None"
    )
    """How rare classes are balanced. Weights: their rows count more in the loss, like scikit-learn's
    `balanced`; in MultiLabel the rows with a label count as much as those without it. Oversample repeats rows of
    rare classes, Undersample leaves out rows of frequent ones, drawn anew each epoch; neither is for MultiLabel and
    TokenClassification."""

    decision_threshold: Annotated[float, TRAINING] = Field(0.5, gt=0, lt=1)
    """MultiLabel: lowest probability at which a label is predicted."""

    threshold_tuning: Annotated[Literal["None", "PerLabel"], TRAINING] = "None"
    """MultiLabel. PerLabel: after each epoch every label gets its own threshold in place of
    decisionThreshold: the one with the best F1 on the validation rows. The exported model has these thresholds.
    For labels in few rows they are drawn towards the threshold that is best for all labels. Validation rows are
    judged by thresholds tuned on other validation rows, and their metrics are means over five folds; this applies
    to every trial of a study that tunes thresholds in any of them."""

    hidden_dropout: Annotated[float | None, MODEL] = Field(None, ge=0, lt=1)
    """Dropout of the encoder's hidden layers. Default: the value in the pretrained model's configuration."""

    attention_dropout: Annotated[float | None, MODEL] = Field(None, ge=0, lt=1)
    """Dropout of attention probabilities. Default: the value in the pretrained model's configuration."""

    classifier_dropout: Annotated[float | None, MODEL] = Field(None, ge=0, lt=1)
    """Dropout before the task's head. Default: the value in the pretrained model's configuration for its
    head, or else for its hidden layers."""

    pooling: Annotated[Literal["Architecture", "Cls", "Mean"], STRUCTURE] = "Architecture"
    """The input of the head. Architecture: what the model's own sequence classifier takes. Cls: the last
    hidden state of the first token. Mean: the mean of those of all tokens. The head over Cls and Mean
    has headLayers hidden layers."""

    head_layers: Annotated[int, STRUCTURE] = Field(0, ge=0, le=4)
    """Hidden layers (with GELU and classifierDropout) of the head over Cls or Mean, before its linear layer."""

    head_width: Annotated[int, STRUCTURE] = Field(0, ge=0, le=8192)
    """Width of the head's hidden layers; 0 uses the width of the encoder."""

    encoder_layers: Annotated[int, STRUCTURE] = Field(0, ge=0, le=256)
    """Layers of the encoder to keep, from the bottom; 0, or more than it has, keeps all."""

    reinit_layers: Annotated[int, STRUCTURE] = Field(0, ge=0, le=256)
    """Layers of the encoder that begin anew, from the top, drawn as the architecture draws them: they may know too
    much of pretraining (Zhang et al., "Revisiting Few-sample BERT Fine-tuning", 2021). They must not be frozen."""

    freeze: Annotated[Literal["None", "Embeddings", "Layers", "Encoder"], STRUCTURE] = "None"
    """What stays as pretrained: nothing, the embeddings, the embeddings and the lowest frozenLayers
    layers, or everything but the head. Frozen layers have no dropout either."""

    frozen_layers: Annotated[int, STRUCTURE] = Field(1, ge=1, le=256)
    """Number of layers that `freeze: Layers` freezes."""

    unfreeze_epochs: Annotated[float, TRAINING] = Field(0.0, ge=0, le=1000)
    """Epochs after which the next layer below begins to train: first the head alone, then one more layer
    each time (Howard and Ruder, 2018). 0 trains all layers from the beginning."""

    lora_rank: Annotated[int, STRUCTURE] = Field(0, ge=0, le=1024)
    """Rank of the low-rank updates that are trained in place of the encoder's linear layers (LoRA; Hu et al.,
    2021); 0 trains the layers themselves. They are merged into the exported model."""

    lora_alpha: Annotated[int, MODEL] = Field(16, ge=1, le=4096)
    """Scale of the low-rank updates, divided by their rank."""

    lora_dropout: Annotated[float, MODEL] = Field(0.0, ge=0, lt=1)
    """Dropout before the low-rank updates."""

    early_stopping_patience: Annotated[int, TRAINING] = Field(0, ge=0, le=1000)
    """Epochs without improvement of `objective.earlyStoppingMetric` after which a trial stops; 0 never
    stops early."""

    early_stopping_min_delta: Annotated[float, TRAINING] = Field(0.0, ge=0, le=1000000)
    """By how much a value must be better than the best so far to count as an improvement."""


CATEGORICAL = tuple(
    name
    for name, field in Hyperparameters.model_fields.items()
    if getattr(field.annotation, "__origin__", None) is Literal
)
"""Hyperparameters (Python names) that take one of a few words: the ones a `when` may name."""


def _that(decides: Callable[[Decides], bool]) -> tuple[str, ...]:
    """The Python names of those hyperparameters."""
    return tuple(
        name
        for name, field in Hyperparameters.model_fields.items()
        if any(isinstance(said, Decides) and decides(said) for said in field.metadata)
    )


STRUCTURAL = _that(lambda it: it.tensors)
"""Hyperparameters (Python names) that decide which tensors a model has and which of them training changes."""

BUILT_WITH = _that(lambda it: it.model)
"""Those that a model is built with, apart from its structure."""

IN_BATCHES = _that(lambda it: it.batches)
"""Those that decide what batches consist of."""


def json_name(name: str) -> str:
    """The JSON name of the hyperparameter with Python name `name`."""
    return str(Hyperparameters.model_fields[name].alias)


JSON_NAMES = {json_name(name): name for name in Hyperparameters.model_fields}
"""JSON name of each hyperparameter → its Python name."""


DOCS = attribute_docs(Hyperparameters)
"""What each hyperparameter (Python name) is, in words."""


def kind_of(name: str) -> Any:
    """The type of the values of the hyperparameter with Python name `name`."""
    annotation: Any = Hyperparameters.model_fields[name].annotation
    kinds = get_args(annotation)
    return next(kind for kind in kinds if kind is not NoneType) if NoneType in kinds else annotation


def described(name: str) -> str:
    """What the hyperparameter with Python name `name` is, with its default."""
    default = Hyperparameters.model_fields[name].default
    return DOCS[name] if default in ("", None) else f"{DOCS[name]} Default {default}."


def resolve(fixed: Model | None, params: dict[str, Scalar]) -> Hyperparameters:
    """The configuration of a trial: defaults, then the study's fixed values, then the trial's `params`.

    `params` has JSON names. Raises `pydantic.ValidationError` for a value out of range.
    """
    return Hyperparameters.model_validate(
        {**(fixed.to_json() if fixed else {}), **params}, by_alias=True, by_name=False
    )
