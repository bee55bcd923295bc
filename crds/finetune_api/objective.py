"""What a study optimises, and how the value of a trial comes about."""

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from finetune_api.metrics import METRIC_WORDS, Goal, natural_goal
from finetune_api.schema import Model, Name, Rule
from finetune_api.spaces import (
    ATOMIC,
)

Metric: TypeAlias = Literal[METRIC_WORDS]  # type: ignore[valid-type]  # the words are declared once, in metrics


class SecondaryObjective(Model):
    """A further objective: trials are compared by Pareto dominance."""

    metric: Metric
    goal: Goal | None = None
    """Default: the direction in which the metric improves."""

    @property
    def direction(self) -> Goal:
        """The goal, resolved."""
        return self.goal or natural_goal(self.metric)


class Objective(Model):
    """What the search optimises, measured on the validation rows after each epoch."""

    metric: Metric
    """The metric that ranks trials."""

    goal: Goal | None = None
    """Default: the direction in which the metric improves."""

    best_of: Literal["Max", "Last"] = "Max"
    """Which of a trial's epochs gives its value: the one with the best objective, or the last."""

    target: float | None = None
    """The search ends as soon as a trial reaches this value. It may be edited while the study runs."""

    secondary: list[SecondaryObjective] = Field([], max_length=3, json_schema_extra=ATOMIC)
    """Further objectives. The status has the Pareto front; the trial on it with the best
    `metric` is the winner and is refitted."""

    additional_metrics: list[Metric] = Field([], max_length=16, json_schema_extra=ATOMIC)
    """Further metrics to record."""

    constraints: list[Annotated[str, Field(min_length=1, max_length=1024)]] | None = Field(
        None, min_length=1, max_length=8, json_schema_extra=ATOMIC
    )
    """What the metrics of a trial must fulfil: CEL expressions over `metrics`, such as
    `metrics['accuracy@gap'] <= 0.05`. Trials, and epochs of a trial, that fulfil all of them rank before any
    other; the others rank by how far they break them. What is named is measured too."""

    early_stopping_metric: Metric | None = None
    """What `earlyStoppingPatience` watches. Default: the objective's metric."""

    @property
    def direction(self) -> Goal:
        """The goal, resolved."""
        return self.goal or natural_goal(self.metric)

    @property
    def named(self) -> tuple[str, ...]:
        """The metrics that it names, each once, but for those in constraints."""
        others = (*self.additional_metrics, *(one.metric for one in self.secondary))
        return tuple(dict.fromkeys((self.metric, *others, self.stopping_metric)))

    @property
    def stopping_metric(self) -> str:
        """What early stopping watches."""
        metric: str = self.early_stopping_metric or self.metric
        return metric

    @property
    def stopping_direction(self) -> Goal:
        """The direction in which that improves."""
        own = self.stopping_metric == self.metric
        return self.direction if own else natural_goal(self.stopping_metric)


class CrossValidation(Model):
    """Each trial trains once for each fold; its value is the mean over the folds."""

    folds: int = Field(ge=2, le=20)
    """Number of folds of the pooled training and validation rows; each fold is validated on once."""

    stratify: bool = True
    """Keep the share of each class equal in every fold. Ignored for Regression."""

    seed: int = Field(0, ge=0, le=4294967295)
    """Seed of the folds."""


class Slice(Model):
    """One way to divide the rows into slices, each of which is measured by itself: by the values of a column, or by
    whether an expression is true."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.column) != has(self.expression)",
            message="exactly one of column and expression must be given",
            holds=lambda self: (self.column is None) != (self.expression is None),
        ),
        Rule(
            cel="has(self.name) || (has(self.column) && !self.column.contains('=') && !self.column.contains('@'))",
            message="name must be given with expression, and for a column with = or @ in its name",
            holds=lambda self: (
                self.name is not None
                or (self.column is not None and not {"=", "@"} & set(self.column))
            ),
            field=".name",
        ),
    )

    name: str | None = Field(
        None, max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
    )
    """What the division is called in metrics, such as `f1_macro@language=de`. Default: the name of the column."""

    column: Name | None = None
    """A column of the data: each of its values, at most 32, is a slice."""

    expression: str | None = Field(None, min_length=1, max_length=1024)
    """A CEL expression over columns of the data, such as `double(stars) >= 4.0 || source == "mail"`: the rows for which
    it is true are one slice, the others another. In CSV files all values are texts; a missing value is null."""

    @property
    def division(self) -> str:
        """The name, resolved."""
        return self.name or self.column or ""


class Validation(Model):
    """How many trainings make up the value of a trial, and which rows are also measured by themselves."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.slices) || self.slices.all(a, self.slices.exists_one(b,"
            " (has(a.name) ? a.name : a.column) == (has(b.name) ? b.name : b.column)))",
            message="slices must have different names",
            holds=lambda self: (
                len({one.division for one in self.slices or ()}) == len(self.slices or ())
            ),
            field=".slices",
        ),
    )

    cross_validation: CrossValidation | None = None
    """Default: one training on the training rows, measured on the validation rows."""

    repeats: int = Field(1, ge=1, le=16)
    """Trainings of each trial, or of each of its folds, with different seeds; the value is their mean."""

    slices: list[Slice] | None = Field(None, min_length=1, max_length=8, json_schema_extra=ATOMIC)
    """Ways to divide the validation and test rows. Every metric is then recorded for each slice too, and
    `objective` can name the worst (`f1_macro@worst`) and the largest difference between two slices of one division
    (`f1_macro@gap`). They change nothing about training."""

    @property
    def folds(self) -> int:
        """Folds, or 1 without cross-validation."""
        return self.cross_validation.folds if self.cross_validation else 1

    @property
    def trainings(self) -> int:
        """Trainings of a trial: folds by repeats."""
        return self.folds * self.repeats
