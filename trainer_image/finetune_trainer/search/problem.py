"""What a search is about: all that its decisions depend on beside the records and the budget."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from finetune_api.auto import described, settled
from finetune_api.combinations import Params, Space
from finetune_api.constraints import Constraints
from finetune_api.expressions import ExpressionError
from finetune_api.feasibility import MetricConstraints, broken, metric_constraints_of
from finetune_api.hyperparameters import Scalar, resolve
from finetune_api.metrics import Goal, score
from finetune_api.rungs import RungRule, rung_resources
from finetune_api.search import Resource, Search
from finetune_api.status import ChosenSearch
from finetune_api.study import StudySpec
from finetune_trainer.errors import SpecError
from finetune_trainer.records.claim import choice_of, claim, parts_of, rung_rule_of
from finetune_trainer.search.trials import Trial
from finetune_trainer.storage.folder import Storage

FAR = 1e12
"""How far what breaks a condition is below anything that does not, and what breaks it by 1 more below that."""


@dataclass(frozen=True)
class Recommended:
    """What is recommended for a study's model and rows."""

    space: int
    """Index of the search space that it is in."""

    params: Params
    """Values of that space; others are drawn."""


@dataclass(frozen=True)
class Problem:
    """A study without its model and data, or a search over any Python function."""

    search: Search
    spaces: Sequence[Space]
    metrics: tuple[str, ...]
    """The objective's metric, then those of secondary objectives."""

    goals: tuple[Goal, ...]
    max_epochs: int
    """Epochs of a whole training where `epochs` is not searched."""

    points: tuple[Params, ...] = ()
    """What to try first."""

    recommended: Recommended | None = None
    """What to try after the points."""

    folds: int = 1
    repeats: int = 1
    best_of_last: bool = False
    """Whether a trial's value is that of its last epoch, not of its best."""

    target: float | None = None
    refit: bool = False
    ensemble: int = 0
    """The most trials that may make the final model together; 0 if only the winner may."""

    conditions: tuple[str, ...] = ()
    """What the metrics of a trial must fulfil (`objective.constraints`)."""

    defaults: dict[str, Scalar] = field(default_factory=dict)
    """The values of hyperparameters that a trial does not set."""

    rung_rule: RungRule = "SomeWhole"
    """The rule by which trials are promoted: that of a study's beginning."""

    is_chosen: bool = False
    """Whether the study left its search to be chosen (algorithm Auto)."""

    @classmethod
    def of(
        cls,
        spec: StudySpec,
        rung_rule: RungRule = "SomeWhole",
        choice: ChosenSearch | None = None,
    ) -> "Problem":
        """The search of a study; `rung_rule` and `choice` are those of one that has begun (`identity.problem_of`).

        Raises SpecError if the search is Auto and a constraint cannot be evaluated.
        """
        is_chosen = spec.search.algorithm == "Auto"
        with told_of_constraints():
            metric_constraints_of(spec)
            spec = settled(spec, choice)
        objective = spec.objective
        return cls(
            search=spec.search,
            spaces=[space.domains() for space in spec.spaces],
            metrics=(objective.metric, *(second.metric for second in objective.secondary)),
            goals=(objective.direction, *(second.direction for second in objective.secondary)),
            max_epochs=spec.max_epochs,
            points=tuple(point.to_json() for point in spec.search.points),
            folds=spec.validation.folds,
            repeats=spec.validation.repeats,
            best_of_last=objective.best_of == "Last",
            target=objective.target,
            conditions=tuple(objective.constraints or ()),
            refit=spec.refit,
            ensemble=spec.ensemble.size if spec.ensemble else 0,
            defaults=resolve(spec.hyperparameters, {}).to_json(),
            rung_rule=rung_rule,
            is_chosen=is_chosen,
        )

    @cached_property
    def resources(self) -> tuple[float, ...]:
        """The resource at each rung; the last is a whole training."""
        return rung_resources(self.search.scheduler, self.max_epochs, self.folds, self.rung_rule)

    @cached_property
    def constraints(self) -> Constraints:
        """What every trial must fulfil. Raises SpecError if a constraint cannot be evaluated."""
        searched = {name for space in self.spaces for name in space}
        with told_of_constraints():
            return _Told(self.search.constraints, self.defaults, searched)

    def admits(self, params: Params) -> bool:
        """Whether `params` fulfil the constraints. Raises SpecError where they have no answer."""
        return self.constraints.hold(params)

    @property
    def rung_by(self) -> Resource:
        """What rungs give more of; Epochs without a scheduler."""
        scheduler = self.search.scheduler
        return "Epochs" if scheduler.type == "None" else scheduler.resource

    @property
    def trainings(self) -> int:
        """Trainings of a whole trial: folds by repeats."""
        return self.folds * self.repeats

    def score(self, value: float, objective: int = 0) -> float:
        """`value` of that objective such that larger is better."""
        return score(value, self.goals[objective])

    @cached_property
    def _conditions(self) -> MetricConstraints:
        return MetricConstraints(self.conditions)

    @property
    def count_conditions(self) -> int:
        """How many margins there are."""
        return len(self.margins({}))

    def margins(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """One for each condition; above 0 for those that the metrics of a trial break."""
        if not self.conditions:
            return ()
        with told_of_constraints():
            return self._conditions.margins(metrics)

    def violation(self, metrics: Mapping[str, float]) -> float:
        """By how much the metrics of a trial break the conditions; 0 if they fulfil them."""
        return broken(self.margins(metrics))

    def ranked(self, value: float, violation: float = 0.0) -> float:
        """`value` of the first objective such that larger is better, and below whatever breaks the conditions less."""
        return self.score(value) - _penalty(violation)

    def score_at(self, trial: Trial, level: int) -> float | None:
        """`ranked` by the trial's value at that rung; None if it has none there."""
        value = trial.rung_values.get(level)
        violation = broken(trial.rung_margins.get(level, ()))
        return None if value is None else self.ranked(value, violation)

    def scores(self, value: float, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """One for each objective, larger is better; what is undefined is worse than anything."""
        values = (value, *(metrics.get(name, math.nan) for name in self.metrics[1:]))
        found = (self.score(each, number) for number, each in enumerate(values))
        return tuple(-math.inf if math.isnan(each) else each for each in found)

    def ranked_scores(self, value: float, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The same, each below that of whatever breaks the conditions less."""
        penalty = _penalty(self.violation(metrics))
        return tuple(score - penalty for score in self.scores(value, metrics))

    def seed(self, place: str) -> int:
        """The seed of that place in the study, of 32 bits."""
        digest = hashlib.sha256(f"{self.search.seed}/{place}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


def _penalty(violation: float) -> float:
    return FAR * (1 + violation) if violation else 0.0


class _Told(Constraints):
    """Constraints whose errors are the study's."""

    def hold(self, params: Mapping[str, Scalar]) -> bool:
        with told_of_constraints():
            return super().hold(params)


@contextmanager
def told_of_constraints() -> Iterator[None]:
    """ExpressionError becomes the study's SpecError."""
    try:
        yield
    except ExpressionError as error:
        raise SpecError(error.field, error.message) from error


def begin(storage: Storage, spec: StudySpec) -> None:
    """Mark the folder as that of this study, with what its Auto stands for, or check that it is.

    Raises SpecError as `claim`, and if a constraint cannot be evaluated.
    """
    choice = None
    if spec.search.algorithm == "Auto":
        with told_of_constraints():
            choice = described(settled(spec).search)
    claim(storage, parts_of(spec), choice=choice)


def problem_of(spec: StudySpec, storage: Storage) -> Problem:
    """The search of a study by the rules that it began with in `storage`, those of a new one if it has not begun.

    Raises ValueError for a rule that a later version made.
    """
    return Problem.of(spec, rung_rule_of(storage), choice_of(storage))
