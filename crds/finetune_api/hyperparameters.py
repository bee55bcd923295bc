"""Every hyperparameter of the trainer, declared once.

From this class come `spec.hyperparameters` (fixed values), `spec.searchSpaces` (domains), the
trainer's configuration and `docs/hyperparameters.md`.
"""

from types import NoneType
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field, create_model

from finetune_api.docstrings import attribute_docs
from finetune_api.schema import Model

Scalar: TypeAlias = float | int | str | bool


class Hyperparameters(Model):
    """One complete configuration of the trainer; what a study neither fixes nor searches has its default."""

    pretrained_model: str = Field("", max_length=253)
    """Hub id, or folder, of the pretrained encoder, to search among several; empty is that of `spec.model`."""

    epochs: int = Field(3, ge=1, le=1000)
    """Passes over the training rows. The learning-rate schedule spans all of them."""

    batch_size: int = Field(16, ge=1, le=4096)
    """Training rows in one forward pass."""

    gradient_accumulation: int = Field(1, ge=1, le=1024)
    """Forward passes whose gradients are summed before one optimizer step."""

    max_length: int = Field(128, ge=8, le=8192)
    """Tokens after which a text is cut off, special tokens included."""

    duplicate_threshold: float = Field(1.0, ge=0.5, le=1)
    """Training rows are left out whose texts are at least this similar (cosine of the sentence embeddings of
    `dataset.cleaning.duplicateEncoder`) to an earlier training row or to any validation or test row. 1 keeps all."""

    augmentation: Literal["None", "Synonyms", "Insertion", "Deletion", "Swap", "All"] = "None"
    """How copies of training rows are varied, drawn afresh each epoch: words replaced by synonyms, synonyms
    of words inserted, words deleted, words swapped, or one of the four at random for each copy (Wei and Zou,
    "EDA", 2019)."""

    augmentation_share: float = Field(0.1, gt=0, le=1)
    """Share of a text's words that `augmentation` changes; at least one."""

    augmentation_copies: int = Field(1, ge=1, le=16)
    """Varied copies of each training row, beside the row itself."""

    optimizer: Literal["AdamW", "Adam", "SGD", "NesterovSGD", "RMSprop", "Adafactor"] = "AdamW"
    """The optimizer. NesterovSGD is SGD that looks ahead along its momentum."""

    learning_rate: float = Field(2e-5, gt=0, le=1)
    """Peak learning rate."""

    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate of each layer as a share of that of the layer above; the head has the full rate, and
    1 gives all the same (Howard and Ruder, "Universal Language Model Fine-tuning", 2018)."""

    weight_decay: float = Field(0.01, ge=0, le=1)
    """Decay of weights toward zero, decoupled from the gradient with every optimizer (Adam with it is AdamW);
    biases and normalisation layers have none."""

    l1_penalty: float = Field(0.0, ge=0, le=1)
    """Weight of the sum of absolute weights in the loss; biases and normalisation layers have none."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD, NesterovSGD and RMSprop; the others ignore it."""

    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the mean of gradients of AdamW and Adam."""

    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay rate of the mean of squared gradients of AdamW and Adam."""

    adam_epsilon: float = Field(1e-8, gt=0, le=1)
    """Term that keeps AdamW, Adam and RMSprop from dividing by zero."""

    rmsprop_alpha: float = Field(0.99, ge=0, lt=1)
    """Decay rate of RMSprop's mean of squared gradients."""

    lr_schedule: Literal[
        "Linear",
        "Cosine",
        "CosineWithRestarts",
        "Polynomial",
        "Step",
        "Exponential",
        "InverseSqrt",
        "ReduceOnPlateau",
        "Constant",
    ] = "Linear"
    """How the learning rate falls after the warm-up. To zero: Linear, Cosine (half a cosine),
    CosineWithRestarts (lrCycles of them), Polynomial (of lrPower). By lrGamma: Step (every lrPatience
    epochs), Exponential (once an epoch, smoothly), ReduceOnPlateau (after lrPatience epochs without
    improvement of the objective). InverseSqrt falls with the root of the step; Constant does not fall."""

    lr_cycles: int = Field(2, ge=1, le=100)
    """Half cosines of CosineWithRestarts."""

    lr_power: float = Field(2.0, gt=0, le=16)
    """Exponent of Polynomial."""

    lr_gamma: float = Field(0.5, gt=0, lt=1)
    """Factor of Step, Exponential and ReduceOnPlateau."""

    lr_patience: int = Field(1, ge=1, le=1000)
    """Epochs between two reductions of Step, and without improvement before one of ReduceOnPlateau."""

    warmup_ratio: float = Field(0.06, ge=0, le=1)
    """Share of all optimizer steps in which the learning rate rises linearly from zero to its peak."""

    max_grad_norm: float = Field(1.0, gt=0, le=1000000)
    """Norm to which larger gradients are clipped."""

    averaging_start: float = Field(1.0, ge=0, le=1)
    """Share of all optimizer steps after which the weights of every step are averaged, and the average is
    what is evaluated and kept (stochastic weight averaging; Izmailov et al., 2018). 1 never averages."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each label that is spread evenly over all classes, or in MultiLabel over yes and no."""

    class_balance: Literal["None", "Weights", "Oversample", "Undersample"] = "None"
    """What is done about rare classes. Weights: their rows count more in the loss, as scikit-learn's
    `balanced`; in MultiLabel a label's rows count as much as those without it. Oversample repeats rows of
    rare classes, Undersample leaves out rows of frequent ones, drawn afresh each epoch; not for MultiLabel."""

    decision_threshold: float = Field(0.5, gt=0, lt=1)
    """MultiLabel: probability from which on a label is predicted."""

    threshold_tuning: Literal["None", "PerLabel"] = "None"
    """MultiLabel. PerLabel: after each epoch every label gets a threshold of its own in place of
    decisionThreshold, that with the best F1 on the validation rows, and the exported model carries them; those
    of labels in few rows lean on the threshold that is best for all labels. The validation rows are judged by
    thresholds tuned on others of them, and their metrics are means over five folds, in every trial of a study
    that tunes thresholds in any."""

    hidden_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of the encoder's hidden layers. Default: what the pretrained model's configuration has."""

    attention_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of attention probabilities. Default: what the pretrained model's configuration has."""

    classifier_dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout before the task's head. Default: what the pretrained model's configuration has, for its head or
    else for its hidden layers."""

    pooling: Literal["Architecture", "Cls", "Mean"] = "Architecture"
    """What the head sees. Architecture: what the model's own sequence classifier takes. Cls: the last
    hidden state of the first token. Mean: the mean of those of all tokens. Cls and Mean have a head of
    headLayers."""

    head_layers: int = Field(0, ge=0, le=4)
    """Hidden layers (with GELU and classifierDropout) of the head over Cls or Mean, before the linear one."""

    head_width: int = Field(0, ge=0, le=8192)
    """Width of the head's hidden layers; 0 is that of the encoder."""

    encoder_layers: int = Field(0, ge=0, le=256)
    """Layers of the encoder to keep, from the bottom; 0, or more than it has, keeps all."""

    freeze: Literal["None", "Embeddings", "Layers", "Encoder"] = "None"
    """What stays as pretrained: nothing, the embeddings, the embeddings and the lowest frozenLayers
    layers, or everything but the head. What is frozen has no dropout either."""

    frozen_layers: int = Field(1, ge=1, le=256)
    """Layers that `freeze: Layers` freezes."""

    unfreeze_epochs: float = Field(0.0, ge=0, le=1000)
    """Epochs after which the next layer below begins to train: first the head alone, then one layer more
    each time (Howard and Ruder, 2018). 0 trains all from the beginning."""

    lora_rank: int = Field(0, ge=0, le=1024)
    """Rank of low-rank updates that are trained in place of the encoder's linear layers (LoRA; Hu et al.,
    2021); 0 trains the layers themselves. The exported model has them merged in."""

    lora_alpha: int = Field(16, ge=1, le=4096)
    """Scale of the low-rank updates, divided by their rank."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the low-rank updates."""

    early_stopping_patience: int = Field(0, ge=0, le=1000)
    """Epochs without improvement of `objective.earlyStoppingMetric` after which a trial stops; 0 never
    stops early."""

    early_stopping_min_delta: float = Field(0.0, ge=0, le=1000000)
    """By how much a value must be better than the best so far to count as an improvement."""


CATEGORICAL = tuple(
    name
    for name, field in Hyperparameters.model_fields.items()
    if getattr(field.annotation, "__origin__", None) is Literal
)
"""Hyperparameters (Python names) that take one of a few words: the ones a `when` may name."""


STRUCTURAL = (
    "pretrained_model",
    "pooling",
    "head_layers",
    "head_width",
    "encoder_layers",
    "freeze",
    "frozen_layers",
    "lora_rank",
)
"""Hyperparameters (Python names) that decide which tensors a model has and which of them training changes."""


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


def _optional(name: str) -> Any:
    field, note = Hyperparameters.model_fields[name], described(name)
    return Annotated[(kind_of(name), Field(), *field.metadata)] | None, Field(
        None, description=note
    )


FixedHyperparameters: type[Model] = create_model(
    "FixedHyperparameters",
    __base__=Model,
    __doc__="Values that hold for every trial. What is neither here nor searched has its documented default.",
    **{name: _optional(name) for name in Hyperparameters.model_fields},
)
"""`spec.hyperparameters`: as `Hyperparameters`, with every field optional."""


def resolve(fixed: Model | None, params: dict[str, Scalar]) -> Hyperparameters:
    """The configuration of a trial: defaults, then the study's fixed values, then the trial's `params`.

    `params` has JSON names. Raises `pydantic.ValidationError` for a value out of range.
    """
    return Hyperparameters.model_validate(
        {**(fixed.to_json() if fixed else {}), **params}, by_alias=True, by_name=False
    )
