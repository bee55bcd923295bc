"""A study rebuilt as one of Optuna's, for its plots and its dashboard. It is told nothing that Optuna decides by."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from finetune_api.hyperparameters import Scalar
from finetune_api.metrics import Goal
from finetune_api.spaces import ChoiceDomain, Domain, IntegerDomain, NumericDomain
from finetune_trainer.records import events as ev
from finetune_trainer.search.results import table
from finetune_trainer.search.state import StudyState
from finetune_trainer.search.trials import Trial, TrialStatus

optuna.logging.set_verbosity(optuna.logging.WARNING)

Times = Mapping[int, tuple[float, float]]
"""When each trial began and when it was last heard of, in seconds since the epoch."""

_STATES: Mapping[TrialStatus, TrialState] = {
    "Pending": TrialState.WAITING,
    "Running": TrialState.RUNNING,
    "Paused": TrialState.RUNNING,
    "Completed": TrialState.COMPLETE,
    "Stopped": TrialState.PRUNED,
    "Diverged": TrialState.FAIL,
    "Failed": TrialState.FAIL,
}

_DIRECTIONS: Mapping[Goal, StudyDirection] = {
    "Maximize": StudyDirection.MAXIMIZE,
    "Minimize": StudyDirection.MINIMIZE,
}

_ELSEWHERE = ("trial", "value", "param_", "value_at_")
"""Beginnings of the names of columns that Optuna has places of its own for."""


def times_of(events: Iterable[ev.Event]) -> Times:
    """When each trial began (was proposed, if it never began) and when it was last heard of."""
    found: dict[int, tuple[float, float]] = {}
    begun: set[int] = set()
    for event in events:
        match event:
            case ev.Proposed():
                found[event.trial] = event.time, event.time
            case ev.Started() if event.trial not in begun:
                begun.add(event.trial)
                found[event.trial] = event.time, event.time
            case ev.EpochDone() | ev.Reached() | ev.Failed() | ev.Stopped():
                found[event.trial] = found[event.trial][0], event.time
            case _:
                pass
    return found


def optuna_study(
    state: StudyState,
    times: Times,
    name: str,
    storage: optuna.storages.BaseStorage | None = None,
) -> optuna.Study:
    """A new study called `name` in `storage` (default: in memory) with all trials of `state`.

    Each has its parameters, values, state, times and, as attributes of the user, what the table of trials says of it.
    Intermediate values are those of the first objective: by epoch, or by the number of the rung (from 0) where rungs
    are samples of rows or folds, or lie within epochs. A trial whose values are not all defined counts as failed.
    """
    problem = state.problem
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=[_DIRECTIONS[goal] for goal in problem.goals],
    )
    with warnings.catch_warnings():
        # Names of the objectives: Optuna below 6 (pinned) has them, with a warning.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([*problem.metrics])
    kinds = _distributions(state)
    rows = table(state).to_pylist()
    study.add_trials(
        [
            _frozen(state, trial, kinds, times[trial.number], row)
            for trial, row in zip(state.trials, rows, strict=True)
        ]
    )
    return study


def _frozen(
    state: StudyState,
    trial: Trial,
    kinds: Mapping[str, BaseDistribution],
    times: tuple[float, float],
    row: Mapping[str, Any],
) -> FrozenTrial:
    status, values = _STATES[trial.status], _values(state, trial)
    if status == TrialState.WAITING and trial.begun:
        status = TrialState.RUNNING  # between two rungs, or after losing its slot
    if status == TrialState.COMPLETE and values is None:
        status = TrialState.FAIL
    if status not in (TrialState.COMPLETE, TrialState.PRUNED):
        values = None
    made = create_trial(
        state=TrialState.WAITING,
        params=dict(trial.params),
        distributions={name: kinds[name] for name in trial.params},
        intermediate_values=_curve(state, trial),
        user_attrs={
            key: value
            for key, value in row.items()
            if value not in (None, "") and not key.startswith(_ELSEWHERE)
        },
    )
    began, ended = map(datetime.fromtimestamp, times)
    made.state, made.values = status, values
    made.datetime_start = None if status == TrialState.WAITING else began
    made.datetime_complete = ended if status.is_finished() else None
    return made


def _values(state: StudyState, trial: Trial) -> list[float] | None:
    """One for each objective; None if any is undefined."""
    best = trial.best
    if best is None:
        return None
    others = (best.metrics.get(name, math.nan) for name in state.problem.metrics[1:])
    found = [best.value, *others]
    return found if all(map(math.isfinite, found)) else None


def _curve(state: StudyState, trial: Trial) -> dict[int, float]:
    by_epoch = {done.epoch: done.value for done in trial.evaluations}
    whole = all(float(at).is_integer() for at in (*by_epoch, *state.problem.resources))
    if state.problem.rung_by == "Epochs" and whole:
        return {int(epoch): value for epoch, value in by_epoch.items()}
    return dict(trial.rung_values)


def _distributions(state: StudyState) -> dict[str, BaseDistribution]:
    """One for each hyperparameter: all spaces together, with what trials had from elsewhere (points, a population)."""
    names = dict.fromkeys(
        chain.from_iterable([*state.problem.spaces, *(trial.params for trial in state.trials)])
    )
    return {
        name: _distribution(
            [space[name] for space in state.problem.spaces if name in space],
            [trial.params[name] for trial in state.trials if name in trial.params],
        )
        for name in names
    }


def _distribution(domains: Sequence[Domain], seen: Sequence[Scalar]) -> BaseDistribution:
    ranges = [cast(NumericDomain, one) for one in domains if _is_range(one)]
    if not ranges or len(ranges) < len(domains):
        listed = chain.from_iterable(one.finite_values() or () for one in domains)
        return CategoricalDistribution([*dict.fromkeys([*listed, *seen])])
    bounds = [cast(float, end) for one in ranges for end in (one.min, one.max)]
    numbers = [*bounds, *(cast(float, value) for value in seen)]
    low, high = min(numbers), max(numbers)
    log = any(one.scale == "Log" for one in ranges) and low > 0
    if all(isinstance(one, IntegerDomain) for one in ranges):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _is_range(domain: Domain) -> bool:
    return not isinstance(domain, ChoiceDomain) and cast(NumericDomain, domain).values is None
