"""Every hyperparameter of the trainer, declared once.

From this class come `spec.hyperparameters` (fixed values), `spec.searchSpaces` (domains), the
trainer's configuration and `docs/hyperparameters.md`.
"""

from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field, create_model

from finetune_api.schema import Model

Scalar: TypeAlias = float | int | str | bool


class Hyperparameters(Model):
    """One complete configuration of the trainer; what a study neither fixes nor searches has its default."""

    epochs: int = Field(3, ge=1, le=1000)
    """Passes over the training rows. The learning-rate schedule spans all of them."""

    batch_size: int = Field(16, ge=1, le=4096)
    """Training rows in one forward pass."""

    gradient_accumulation: int = Field(1, ge=1, le=1024)
    """Forward passes whose gradients are summed before one optimizer step."""

    max_length: int = Field(128, ge=8, le=8192)
    """Tokens after which a text is cut off, special tokens included."""

    optimizer: Literal["AdamW", "SGD", "RMSprop"] = "AdamW"
    """The optimizer."""

    learning_rate: float = Field(2e-5, gt=0, le=1)
    """Peak learning rate."""

    weight_decay: float = Field(0.01, ge=0, le=1)
    """Decay of weights toward zero (decoupled for AdamW); biases and normalisation layers have none."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD and RMSprop; AdamW ignores it."""

    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay rate of AdamW's mean of gradients."""

    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay rate of AdamW's mean of squared gradients."""

    adam_epsilon: float = Field(1e-8, gt=0, le=1)
    """Term that keeps AdamW and RMSprop from dividing by zero."""

    rmsprop_alpha: float = Field(0.99, ge=0, lt=1)
    """Decay rate of RMSprop's mean of squared gradients."""

    lr_schedule: Literal["Linear", "Cosine", "Constant"] = "Linear"
    """How the learning rate falls after the warm-up: to zero linearly, to zero on a half cosine, or not."""

    warmup_ratio: float = Field(0.06, ge=0, le=1)
    """Share of all optimizer steps in which the learning rate rises linearly from zero to its peak."""

    max_grad_norm: float = Field(1.0, gt=0, le=1000000)
    """Norm to which larger gradients are clipped."""

    hidden_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of the encoder's hidden layers."""

    attention_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of attention probabilities."""

    classifier_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout before the task's head."""

    early_stopping_patience: int = Field(0, ge=0, le=1000)
    """Epochs without improvement of the objective after which a trial stops; 0 never stops early."""


CATEGORICAL = tuple(
    name
    for name, field in Hyperparameters.model_fields.items()
    if getattr(field.annotation, "__origin__", None) is Literal
)
"""Hyperparameters (Python names) that take one of a few words: the ones a `when` may name."""


def json_name(name: str) -> str:
    """The JSON name of the hyperparameter with Python name `name`."""
    return str(Hyperparameters.model_fields[name].alias)


JSON_NAMES = {json_name(name): name for name in Hyperparameters.model_fields}
"""JSON name of each hyperparameter → its Python name."""


def _optional(name: str) -> Any:
    field = Hyperparameters.model_fields[name]
    note = f"{field.description} Default {field.default}."
    return Annotated[(cast(Any, field.annotation), Field(), *field.metadata)] | None, Field(
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
