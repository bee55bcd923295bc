"""Models of which parameters do well, by Optuna: TPE and GP, told by the records.

TPE, tree-structured Parzen estimators: Bergstra et al., "Algorithms for Hyper-Parameter Optimization",
NeurIPS 2011, in its multivariate form (Falkner et al., "BOHB", ICML 2018). GP, a Gaussian process with
logEI: Ament et al., "Unexpected Improvements to Expected Improvement", NeurIPS 2023.

Optuna's study is built anew for each proposal and seeded by the trial's number, so a proposal is a
function of the records. Trials that run are told as such, so that parallel trials spread out.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from finetune_api.combinations import Params, conditions_last, is_active
from finetune_api.hyperparameters import Scalar
from finetune_api.spaces import ChoiceDomain, Domain, IntegerDomain, NumericDomain, Steps
from finetune_trainer.search.domains import rounded
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.trials import Proposal, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

_SPACE = "space"
_STARTUP = 10
"""Results that a model needs; before that trials are drawn at random."""

_UNFINISHED = {
    "Pending": TrialState.RUNNING,
    "Running": TrialState.RUNNING,
    "Failed": TrialState.FAIL,
}

_Point: TypeAlias = dict[str, Scalar]
"""Optuna's parameters: which space, and a coordinate for each of its active domains."""

_View: TypeAlias = Callable[[Trial], FrozenTrial]


class OptunaSampler:
    """Proposes what Optuna makes of the trials so far; the first ten are drawn at random."""

    def __init__(self, problem: Problem, inherited: Sequence[tuple[Params, float]]) -> None:
        self._problem = problem
        self._algorithm = problem.search.algorithm
        self._inherited = inherited
        self._spaces = [
            [(name, _Axis(f"{index}/{name}", domain)) for name, domain in conditions_last(space)]
            for index, space in enumerate(problem.spaces)
        ]

    def __call__(self, number: int, attempt: int, trials: Sequence[Trial]) -> Proposal:
        seed = self._problem.seed(f"{number}/{attempt}")
        study = optuna.create_study(
            sampler=self._sampler(seed), directions=["maximize"] * len(self._problem.goals)
        )
        parzen = self._algorithm == "TPE" and len(self._problem.goals) == 1
        tell = self._parzen_view if parzen else self._view_at_a_rung(trials)
        # What was inherited comes before all that was tried.
        study.add_trials([*self._heritage(), *(tell(trial) for trial in trials)])
        return Proposal(self._suggest(study.ask()))

    def _sampler(self, seed: int) -> BaseSampler:
        if self._algorithm == "GP":
            return GPSampler(seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False)
        with warnings.catch_warnings():
            # Conditions need `group`, which Optuna 5 (pinned) calls experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return TPESampler(
                seed=seed,
                n_startup_trials=_STARTUP,
                multivariate=True,
                group=True,
                constant_liar=True,
            )

    def _suggest(self, trial: optuna.Trial) -> Params:
        choice = 0
        if len(self._spaces) > 1:
            choice = trial.suggest_categorical(_SPACE, range(len(self._spaces)))
        params: Params = {}
        for name, axis in self._spaces[choice]:
            if is_active(axis.domain, params):
                params[name] = axis.suggest(trial)
        return params

    def _heritage(self) -> list[FrozenTrial]:
        if len(self._problem.goals) > 1:  # of other studies only the first objective is known
            return []
        return [
            self._known(params, TrialState.COMPLETE, value=self._problem.score(value))
            for params, value in self._inherited
            if math.isfinite(value)
        ]

    def _parzen_view(self, trial: Trial) -> FrozenTrial:
        """Complete, pruned at a rung (the further the better), running, or of no use."""
        if trial.status == "Completed" and trial.best is not None:
            value = self._problem.score(trial.best.value)
            if math.isfinite(value):
                return self._known(trial.params, TrialState.COMPLETE, value=value)
        if trial.best is not None and trial.status not in ("Diverged", "Failed"):
            far = trial.best.epoch if self._problem.rung_by == "Epochs" else trial.evaluated_level
            reached = {round(1000 * far): self._problem.score(trial.best.value)}
            return self._known(trial.params, TrialState.PRUNED, intermediate_values=reached)
        return self._known(trial.params, _UNFINISHED.get(trial.status, TrialState.PRUNED))

    def _view_at_a_rung(self, trials: Sequence[Trial]) -> _View:
        """All trials by their value at one rung: the highest that enough of them have reached."""
        levels = range(len(self._problem.resources))
        level = next(
            (
                level
                for level in reversed(levels)
                if sum(_value_at(trial, level) is not None for trial in trials) >= _STARTUP
            ),
            min((min(trial.rung_values) for trial in trials if trial.rung_values), default=0),
        )

        def view(trial: Trial) -> FrozenTrial:
            value = _value_at(trial, level)
            if value is None or not math.isfinite(value):
                state = _UNFINISHED.get(trial.status, TrialState.PRUNED)
                if len(self._problem.goals) > 1 and state == TrialState.PRUNED:
                    state = TrialState.FAIL  # Optuna prunes by one objective only
                return self._known(trial.params, state)
            return self._known(
                trial.params,
                TrialState.COMPLETE,
                values=[self._problem.score(value), *self._others(trial)],
            )

        return view

    def _others(self, trial: Trial) -> list[float]:
        """Scores of the secondary objectives; undefined ones are worse than any."""
        assert trial.best is not None  # it has a value
        scores = self._problem.scores(trial.best.value, trial.best.metrics)[1:]
        return [score if math.isfinite(score) else -1e308 for score in scores]

    def _known(self, params: Params, state: TrialState, **result: Any) -> FrozenTrial:
        point, distributions = self._point(params)
        return create_trial(state=state, params=point, distributions=distributions, **result)

    def _point(self, params: Params) -> tuple[_Point, dict[str, BaseDistribution]]:
        """What `_suggest` would have been told to give these parameters, in the first space that can."""
        for choice, space in enumerate(self._spaces):
            point: _Point = {}
            kinds: dict[str, BaseDistribution] = {}
            for name, axis in space:
                if name in params and is_active(axis.domain, params):
                    coordinate = axis.coordinate(params[name])
                    if coordinate is None:
                        break
                    point[axis.name], kinds[axis.name] = coordinate, axis.distribution
            else:
                if len(point) == len(params):
                    if len(self._spaces) > 1:
                        point[_SPACE] = choice
                        kinds[_SPACE] = CategoricalDistribution(range(len(self._spaces)))
                    return point, kinds
        return {}, {}  # of an earlier version's making: it teaches nothing


def _value_at(trial: Trial, level: int) -> float | None:
    """The trial's value at that rung, or at its end if it ended by itself before; None without one."""
    if trial.status in ("Diverged", "Failed") or not trial.rung_values:
        return None
    if trial.status == "Completed":
        level = min(level, max(trial.rung_values))
    return trial.rung_values.get(level)


class _Axis:
    """A domain as one of Optuna's: steps and lists of numbers by their index, in ascending order."""

    def __init__(self, name: str, domain: Domain) -> None:
        self.name = name
        self.domain = domain
        self._steps: Sequence[Scalar] | None = None
        self.distribution = self._make()

    def _make(self) -> BaseDistribution:
        if isinstance(self.domain, ChoiceDomain):
            return CategoricalDistribution(self.domain.values)
        numeric = cast(NumericDomain, self.domain)
        values = numeric.finite_values()
        if values is not None:
            self._steps = values if isinstance(values, Steps) else sorted(values)
            return IntDistribution(0, len(values) - 1)
        low, high, log = cast(Any, numeric.min), cast(Any, numeric.max), numeric.scale == "Log"
        if isinstance(numeric, IntegerDomain):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(low, high, log=log)

    def suggest(self, trial: optuna.Trial) -> Scalar:
        """A value of the domain."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return cast(Scalar, trial.suggest_categorical(self.name, choices))
            case IntDistribution(low=low, high=high, log=log):
                whole = trial.suggest_int(self.name, low, high, log=log)
                return whole if self._steps is None else self._steps[whole]
            case FloatDistribution(low=low, high=high, log=log):
                real = trial.suggest_float(self.name, low, high, log=log)
                return rounded(cast(NumericDomain, self.domain), real)
            case _:
                raise TypeError(f"no suggestion from {self.distribution}")

    def coordinate(self, value: Scalar) -> Scalar | None:
        """Where `value` is on this axis; None if it is not."""
        if isinstance(self.domain, ChoiceDomain):
            return value if value in self.domain.values else None
        numeric = cast(NumericDomain, self.domain)
        if self._steps is None:
            low, high = cast(Any, numeric.min), cast(Any, numeric.max)
            return value if low <= cast(float, value) <= high else None
        return self._steps.index(value) if value in self._steps else None
