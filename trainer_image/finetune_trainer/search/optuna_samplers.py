"""Models of which parameters do well, by Optuna: TPE and GP, told by the records.

TPE, tree-structured Parzen estimators: Bergstra et al., "Algorithms for Hyper-Parameter Optimization",
NeurIPS 2011, in its multivariate form (Falkner et al., "BOHB", ICML 2018). GP, a Gaussian process with
logEI: Ament et al., "Unexpected Improvements to Expected Improvement", NeurIPS 2023.

Optuna's study is built anew for each proposal and seeded by the trial's number, so a proposal is a
function of the records. Trials that run are told as such, so that parallel trials spread out.
"""

import hashlib
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

from finetune_api.hyperparameters import Scalar
from finetune_api.metrics import score
from finetune_api.spaces import ChoiceDomain, Domain, IntegerDomain, NumericDomain, Steps
from finetune_api.study import StudySpec
from finetune_trainer.search.domains import Params, conditions_last, is_active, rounded
from finetune_trainer.search.rungs import rung_epochs
from finetune_trainer.search.trials import Trial

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


class OptunaSampler:
    """Proposes what Optuna makes of the trials so far; the first ten are drawn at random."""

    def __init__(self, spec: StudySpec) -> None:
        self._seed = spec.search.seed
        self._direction = spec.objective.direction
        self._gaussian = spec.search.algorithm == "GP"
        self._rungs = rung_epochs(spec.search.scheduler, spec.max_epochs)
        self._spaces = [
            [(name, _Axis(f"{index}/{name}", domain)) for name, domain in conditions_last(space)]
            for index, space in enumerate(spec.spaces)
        ]

    def __call__(self, number: int, attempt: int, trials: Sequence[Trial]) -> Params:
        digest = hashlib.sha256(f"{self._seed}/{number}/{attempt}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        study = optuna.create_study(sampler=self._sampler(seed), direction="maximize")
        tell = self._gaussian_view(trials) if self._gaussian else self._parzen_view
        study.add_trials([tell(trial) for trial in trials])
        return self._suggest(study.ask())

    def _sampler(self, seed: int) -> BaseSampler:
        if self._gaussian:
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

    def _parzen_view(self, trial: Trial) -> FrozenTrial:
        """Complete, pruned at an epoch (the further the better), running, or of no use."""
        if trial.status == "Completed" and trial.best is not None:
            value = score(trial.best.value, self._direction)
            if math.isfinite(value):
                return self._known(trial, TrialState.COMPLETE, value=value)
        if trial.epochs and trial.status not in ("Diverged", "Failed"):
            last = trial.epochs[-1]
            reached = {last.epoch: score(last.value, self._direction)}
            return self._known(trial, TrialState.PRUNED, intermediate_values=reached)
        return self._known(trial, _UNFINISHED.get(trial.status, TrialState.PRUNED))

    def _gaussian_view(self, trials: Sequence[Trial]) -> Callable[[Trial], FrozenTrial]:
        """All trials by their value at one rung: the highest that enough of them have reached."""
        rung = next(
            (
                epoch
                for epoch in reversed(self._rungs)
                if sum(_value_at(trial, epoch) is not None for trial in trials) >= _STARTUP
            ),
            self._rungs[0],
        )

        def view(trial: Trial) -> FrozenTrial:
            value = _value_at(trial, rung)
            if value is not None and math.isfinite(value):
                value = score(value, self._direction)
                return self._known(trial, TrialState.COMPLETE, value=value)
            return self._known(trial, _UNFINISHED.get(trial.status, TrialState.PRUNED))

        return view

    def _known(self, trial: Trial, state: TrialState, **result: Any) -> FrozenTrial:
        point, distributions = self._point(trial.params)
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


def _value_at(trial: Trial, epoch: int) -> float | None:
    """The trial's value at that epoch, or at its end if it stopped by itself before; None without one."""
    if trial.status in ("Diverged", "Failed"):
        return None
    for done in trial.epochs:
        if done.epoch == epoch:
            return done.value
    return trial.epochs[-1].value if trial.epochs and trial.status == "Completed" else None


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
