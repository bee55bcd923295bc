"""The study as one of Optuna's, for its figures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from finetune_reports.document import Objective, Parameter, Report, Scalar
from finetune_reports.figures.figure import label

if TYPE_CHECKING:  # it takes a second
    from optuna import Study
    from optuna.distributions import BaseDistribution


def optuna_study(report: Report, values: Mapping[int, float]) -> "Study":
    """The trials that have one of these `values`, by number, as complete trials of Optuna.

    Names and texts are as `label` makes them. What a later edit of the spaces left outside of them is left out.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = report.objective
    study = optuna.create_study(direction=_direction(objective))
    axes = {parameter.name: _Axis(parameter) for parameter in report.parameters}
    for trial in report.trials:
        if trial.number not in values:
            continue
        point = {name: axes[name].of(value) for name, value in trial.params.items() if name in axes}
        kinds = {name: axes[name].distribution for name in point}
        if not all(_holds(kinds[name], value) for name, value in point.items()):
            continue
        study.add_trial(
            optuna.create_trial(
                params={label(name): value for name, value in point.items()},
                distributions={label(name): kind for name, kind in kinds.items()},
                value=values[trial.number],
            )
        )
    return study


def _holds(kind: "BaseDistribution", value: Scalar) -> bool:
    try:
        return bool(kind._contains(kind.to_internal_repr(value)))
    except ValueError:  # not one of the choices
        return False


def _direction(objective: Objective) -> Literal["maximize", "minimize"]:
    return "maximize" if objective.goal == "Maximize" else "minimize"


class _Axis:
    """A parameter as Optuna knows it."""

    def __init__(self, parameter: Parameter) -> None:
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        low, high = parameter.low, parameter.high
        self._numeric = low is not None and high is not None
        self.distribution: BaseDistribution
        if low is None or high is None:
            values = parameter.values or [""]
            self.distribution = CategoricalDistribution(tuple(map(self.of, values)))
        elif parameter.integer:
            self.distribution = IntDistribution(int(low), int(high), log=parameter.log and low >= 1)
        else:
            self.distribution = FloatDistribution(low, high, log=parameter.log and low > 0)

    def of(self, value: Scalar) -> Scalar:
        """The value as it is on this axis."""
        return value if self._numeric else label(str(value))
