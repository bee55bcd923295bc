"""Rules for a search and its budget: what they must be together, in CEL and in Python."""

from typing import Any

from finetune_api.hyperparameters import (
    Hyperparameters,
    json_name,
)
from finetune_api.schema import Rule
from finetune_api.spaces import (
    DOMAINS,
    IntegerDomain,
    NumericDomain,
)


def _finite(domain: str, name: str) -> str:
    # An integer range without a step counts in ones; on a log scale it is drawn, so not finite.
    field = f"{domain}.{json_name(name)}"
    finite = f"has({field}.values) || has({field}.step)"
    if issubclass(DOMAINS[name], IntegerDomain):
        finite += f" || !has({field}.scale) || {field}.scale != 'Log'"
    return f"(!has({field}) || {finite})"


_NUMERIC = [name for name, domain in DOMAINS.items() if issubclass(domain, NumericDomain)]


def _continuous(spec: Any) -> list[tuple[str, str]]:
    """Where a Grid has a hyperparameter with any number of values."""
    return [
        (
            f".searchSpaces[{number}].{name}",
            "must have values or step with algorithm Grid, which tries every combination",
        )
        for number, space in enumerate(spec.search_spaces)
        for name, domain in space.domains().items()
        if domain.finite_values() is None
    ]


def fixed_epochs(spec: Any) -> int:
    fixed = spec.hyperparameters.epochs if spec.hyperparameters else None
    return int(fixed if fixed is not None else Hyperparameters.model_fields["epochs"].default)


_CEL_EPOCHS = "(has(self.hyperparameters) && has(self.hyperparameters.epochs) ? self.hyperparameters.epochs : {})"

_NONE = ("None", "Auto")
"""Schedulers that may have no rungs: where rungs are impossible, Auto has none."""

_NO_RUNGS = (
    "(self.search.scheduler.type == 'None'"
    " || self.search.scheduler.type == 'Auto' && self.search.algorithm != 'Auto')"
)

SEARCH_RULES = (
    Rule(
        cel="self.search.algorithm != 'Grid' || self.searchSpaces.all(s, "
        + " && ".join(_finite("s", name) for name in _NUMERIC)
        + ")",
        message="with algorithm Grid every hyperparameter must have values or step",
        holds=lambda self: self.search.algorithm != "Grid" or not _continuous(self),
        each=_continuous,
        field=".searchSpaces",
    ),
    Rule(
        cel="self.search.scheduler.type in ['None', 'Auto'] || self.searchSpaces.all(s, !has(s.epochs))",
        message="with a scheduler epochs must be fixed, not searched",
        holds=lambda self: (
            self.search.scheduler.type in _NONE
            or all("epochs" not in space.domains() for space in self.search_spaces)
        ),
        field=".searchSpaces",
    ),
    Rule(
        cel=f"{_NO_RUNGS} || self.search.scheduler.resource != 'Epochs'"
        " || self.search.scheduler.minResource <= double("
        + _CEL_EPOCHS.format(Hyperparameters.model_fields["epochs"].default)
        + ")",
        message="minResource must be at most hyperparameters.epochs",
        holds=lambda self: (
            self.search.scheduler.type == "None"
            or self.search.scheduler.resource != "Epochs"
            or self.search.scheduler.min_resource <= fixed_epochs(self)
        ),
        field=".search.scheduler.minResource",
        detail=lambda self: f"got {self.search.scheduler.min_resource:g}, {fixed_epochs(self)}",
    ),
    Rule(
        cel=f"{_NO_RUNGS} || self.search.scheduler.resource != 'Folds'"
        " || has(self.validation.crossValidation)"
        " && self.search.scheduler.minResource <= double(self.validation.crossValidation.folds)",
        message="resource Folds must go with validation.crossValidation, minResource at most its folds",
        holds=lambda self: (
            self.search.scheduler.type == "None"
            or self.search.scheduler.resource != "Folds"
            or (
                self.validation.cross_validation is not None
                and self.search.scheduler.min_resource <= self.validation.folds
            )
        ),
        field=".search.scheduler.resource",
    ),
    Rule(
        cel="self.search.algorithm != 'PBT' || self.search.scheduler.type in ['None', 'Auto']"
        " && !has(self.validation.crossValidation) && self.validation.repeats == 1"
        " && self.searchSpaces.all(s, !has(s.epochs))",
        message="algorithm PBT must have scheduler None, no cross-validation or repeats, and fixed epochs",
        holds=lambda self: (
            self.search.algorithm != "PBT"
            or (
                self.search.scheduler.type in _NONE
                and self.validation.cross_validation is None
                and self.validation.repeats == 1
                and all("epochs" not in space.domains() for space in self.search_spaces)
            )
        ),
        field=".search.algorithm",
    ),
    Rule(
        cel="self.search.algorithm != 'CMAES' || self.searchSpaces.size() == 1 && self.searchSpaces.all(s, "
        + " && ".join(f"!has(s.{json_name(name)})" for name in DOMAINS if name not in _NUMERIC)
        + ")",
        message="algorithm CMAES must have one space, of numbers only",
        holds=lambda self: (
            self.search.algorithm != "CMAES"
            or (
                len(self.search_spaces) == 1
                and all(
                    isinstance(domain, NumericDomain)
                    for domain in self.search_spaces[0].domains().values()
                )
            )
        ),
        field=".searchSpaces",
    ),
    Rule(
        cel="self.objective.secondary.size() == 0 || self.search.scheduler.type in ['None', 'Auto'] && "
        "self.search.algorithm != 'CMAES' && self.search.algorithm != 'PBT'",
        message="with secondary objectives the scheduler must be None, the algorithm not CMAES or PBT: "
        "rungs, CMAES and PBT compare by one objective",
        holds=lambda self: (
            not self.objective.secondary
            or (
                self.search.scheduler.type in _NONE
                and self.search.algorithm not in ("CMAES", "PBT")
            )
        ),
        field=".objective.secondary",
    ),
)
"""Rules for a search, whatever is trained."""

BUDGET_RULES = (
    Rule(
        cel="self.search.algorithm == 'Grid' || self.search.algorithm == 'PBT'"
        " || has(self.budget.maxTrials) || has(self.budget.maxDurationSeconds)",
        message="unless algorithm is Grid or PBT the budget must have maxTrials or maxDurationSeconds",
        holds=lambda self: (
            self.search.algorithm in ("Grid", "PBT")
            or self.budget.max_trials is not None
            or self.budget.max_duration_seconds is not None
        ),
        field=".budget",
    ),
    Rule(
        cel="self.search.scheduler.type != 'SuccessiveHalving' || self.search.algorithm == 'Grid' || has(self.budget.maxTrials)",
        message="with scheduler SuccessiveHalving the budget must have maxTrials, unless algorithm is Grid",
        holds=lambda self: (
            self.search.scheduler.type != "SuccessiveHalving"
            or self.search.algorithm == "Grid"
            or self.budget.max_trials is not None
        ),
        field=".budget",
    ),
)
"""Rules for a search and its budget, which may be edited."""
