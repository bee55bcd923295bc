"""Models of which hyperparameters do well, by Optuna: TPE and GP, told by the records.

TPE, tree-structured Parzen estimators: Bergstra et al., "Algorithms for Hyper-Parameter Optimization",
NeurIPS 2011, in its multivariate form (Falkner et al., "BOHB", ICML 2018). GP, a Gaussian process with
logEI: Ament et al., "Unexpected Improvements to Expected Improvement", NeurIPS 2023.

With rungs they learn by BOHB's rule (`lessons`). A sampler is made anew for each proposal and seeded by the
trial's number, so a proposal is a function of the records. Trials that run are told as such, so that parallel
trials spread out.
"""

import math
import random
import warnings
from bisect import bisect_left
from collections.abc import Container, Iterator, Mapping, Sequence
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
from finetune_api.feasibility import UNDEFINED
from finetune_api.hyperparameters import Scalar
from finetune_api.spaces import ChoiceDomain, Domain, IntegerDomain, NumericDomain, Steps
from finetune_trainer.search.domains import draw_params, rounded
from finetune_trainer.search.lessons import STARTUP, Lesson, draws_at_random, lesson, level_of
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.trials import Proposal, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

_SPACE = "space"

_GOOD_SHARE, _GOOD_LEAST = 0.15, 3
"""How many of the results at a rung TPE takes for good: that share, and at least so many."""

_GP_RESULTS = 250
"""Results that a Gaussian process is told at most, at most half of them inherited: its cost grows with their cube."""

_Point: TypeAlias = dict[str, Scalar]
"""Optuna's parameters: which space, and a coordinate for each of its active domains."""


class OptunaSampler:
    """Proposes what Optuna makes of the trials so far; until they are enough, trials are drawn at random."""

    def __init__(self, problem: Problem, inherited: Sequence[tuple[Params, float]]) -> None:
        self._problem = problem
        self._algorithm = problem.search.algorithm
        self._inherited = inherited
        self._spaces = [
            [(name, _Axis(f"{index}/{name}", domain)) for name, domain in conditions_last(space)]
            for index, space in enumerate(problem.spaces)
        ]
        self._made: dict[int, tuple[tuple[Any, ...], FrozenTrial]] = {}
        """Trial → what it was told as the last time: with thousands of trials, making them costs more than the model."""

    def __call__(self, number: int, attempt: int, trials: Sequence[Trial]) -> Proposal:
        inherited = self._inherited_scores()
        if self._algorithm == "GP":
            inherited = inherited[: _GP_RESULTS // 2]
        least = max(0, STARTUP - len(inherited)) if len(self._problem.resources) == 1 else None
        learned = lesson(self._problem, trials, least)
        if draws_at_random(self._problem, number) or (learned is None and not inherited):
            rng = random.Random(f"{self._problem.search.seed}/random/{number}/{attempt}")
            return Proposal(draw_params(rng.choice(self._problem.spaces), rng))
        results = dict(self._told_results(learned, _GP_RESULTS - len(inherited)))
        margins = self._margins(trials, results, learned)
        if inherited and learned and learned.level < len(self._problem.resources) - 1:
            # Values of whole trainings and those of a rung can be compared by their places alone.
            inherited = [
                (params, place)
                for (params, _), place in zip(
                    inherited, _places([score for _, score in inherited]), strict=True
                )
            ]
            results = dict(zip(results, _places(list(results.values())), strict=True))
        fulfils = self._fulfils()
        heritage = [
            self._frozen(params, TrialState.COMPLETE, (s,), fulfils) for params, s in inherited
        ]
        told = [*heritage, *self._told(trials, results, margins)]  # what was inherited came before
        for place, trial in enumerate(told, start=1):
            trial.number = place
        study = optuna.create_study(
            storage=_Told(told),
            sampler=self._sampler(self._problem.seed(f"{number}/{attempt}"), learned),
            directions=["maximize"] * len(self._problem.goals),
        )
        return Proposal(self._suggest(study.ask()))

    def _told_results(self, learned: Lesson | None, most: int) -> Iterator[tuple[int, float]]:
        """Trials whose values the model is told, with their scores; GP is told `most` of them."""
        found = learned.results if learned else []
        if self._algorithm == "GP" and len(self._problem.goals) > 1:
            found = found[-most:]  # the latest: none is the best by all objectives
        elif self._algorithm == "GP":
            found = sorted(found, key=lambda pair: -pair[1])[:most]
        for trial, _ in found:
            assert learned is not None  # there are results
            level = level_of(trial, learned.level)
            yield trial.number, self._problem.score(trial.rung_values[level])

    def _margins(
        self, trials: Sequence[Trial], results: Mapping[int, float], learned: Lesson | None
    ) -> dict[int, dict[str, float]]:
        """By how much each trial with a result breaks each condition; as much as any, if its metrics are undefined."""
        if learned is None or not self._problem.conditions:
            return {}
        found = {
            trial.number: trial.rung_margins[level_of(trial, learned.level)]
            for trial in trials
            if trial.number in results
        }
        most = [
            max((each for each in margins if each < UNDEFINED), default=0.0)
            for margins in zip(*found.values(), strict=True)
        ]
        return {
            number: {
                str(at): each if each < UNDEFINED else max(1.0, most[at])
                for at, each in enumerate(margins)
            }
            for number, margins in found.items()
        }

    def _fulfils(self) -> dict[str, float]:
        """What is told of conditions where nothing breaks them, or nothing is known."""
        return {str(at): 0.0 for at in range(self._problem.count_conditions)}

    def _sampler(self, seed: int, learned: Lesson | None) -> BaseSampler:
        if self._algorithm == "GP":
            return GPSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)
        options: dict[str, Any] = {}
        if learned is not None and len(self._problem.resources) > 1:
            results = len(learned.results) + len(self._inherited)
            good = min(max(math.ceil(_GOOD_SHARE * results), _GOOD_LEAST), results - 1)
            options["gamma"] = lambda _: good
        with warnings.catch_warnings():
            # Conditions need `group`, and BOHB's rule `gamma`, which Optuna below 6 (pinned) has, with warnings.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", FutureWarning)
            return TPESampler(
                seed=seed,
                n_startup_trials=1,
                multivariate=True,
                group=True,
                constant_liar=True,
                **options,
            )

    def _told(
        self,
        trials: Sequence[Trial],
        results: Mapping[int, float],
        margins: Mapping[int, dict[str, float]],
    ) -> Iterator[FrozenTrial]:
        """What the model is told of the trials, in the order of their numbers; `results` are scores by trial.

        Complete by their value at the rung that it learns from, running, or worse than any (diverged). Where
        several objectives count, Optuna has no place for these: they are left out, as are those that failed
        for another reason and those that have not come to this rung.
        """
        for trial in trials:
            score = results.get(trial.number)
            if score is not None:
                scores = (score, *self._others(trial))
                yield self._known(trial, TrialState.COMPLETE, scores, margins.get(trial.number))
            elif trial.status in ("Pending", "Running"):
                yield self._known(trial, TrialState.RUNNING)
            elif trial.status == "Diverged" and len(self._problem.goals) == 1:
                yield self._known(trial, TrialState.PRUNED, None, self._fulfils())

    def _suggest(self, trial: optuna.Trial) -> Params:
        choice = 0
        if len(self._spaces) > 1:
            choice = trial.suggest_categorical(_SPACE, range(len(self._spaces)))
        params: Params = {}
        for name, axis in self._spaces[choice]:
            if is_active(axis.domain, params):
                params[name] = axis.suggest(trial)
        return params

    def _inherited_scores(self) -> list[tuple[Params, float]]:
        if len(self._problem.goals) > 1:  # of other studies only the first objective is known
            return []
        return [
            (params, self._problem.score(value))
            for params, value in self._inherited
            if math.isfinite(value)
        ]

    def _others(self, trial: Trial) -> list[float]:
        """Scores of the secondary objectives; undefined ones are worse than any."""
        assert trial.best is not None  # it has a value
        scores = self._problem.scores(trial.best.value, trial.best.metrics)[1:]
        return [score if math.isfinite(score) else -1e308 for score in scores]

    def _known(
        self,
        trial: Trial,
        state: TrialState,
        scores: tuple[float, ...] | None = None,
        margins: dict[str, float] | None = None,
    ) -> FrozenTrial:
        key = (state, scores, margins)
        known = self._made.get(trial.number)
        if known is None or known[0] != key:
            made = self._frozen(trial.params, state, scores, margins)
            known = self._made[trial.number] = key, made
        return known[1]

    def _frozen(
        self,
        params: Params,
        state: TrialState,
        scores: tuple[float, ...] | None = None,
        margins: dict[str, float] | None = None,
    ) -> FrozenTrial:
        point, distributions = self._point(params)
        return create_trial(
            state=state,
            params=point,
            distributions=distributions,
            values=scores,
            constraints=margins or None,
        )

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


def _places(scores: list[float]) -> list[float]:
    """Each score's place among them, from 0 for the worst to 1."""
    ordered = sorted(scores)
    return [bisect_left(ordered, score) / max(1, len(scores) - 1) for score in scores]


class _Told(optuna.storages.InMemoryStorage):
    """A storage whose study has the trials that it is given, beside those that are asked for."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._given = trials

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """The given trials, then the others; as in the base class."""
        given = [trial for trial in self._given if states is None or trial.state in states]
        return [*given, *super().get_all_trials(study_id, deepcopy, states)]


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
