"""What a study learns from finished ones: `spec.search.warmStart`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.combinations import Params
from finetune_api.study import StudySpec
from finetune_trainer.errors import SpecError, may_pass
from finetune_trainer.records.claim import parts_in
from finetune_trainer.records.log import read_history
from finetune_trainer.search.problem import Problem, problem_of
from finetune_trainer.search.proposals import inheritable
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.locations import beside

MOST = 500
"""Trials that are taken over, the best of all."""


def inherit(spec: StudySpec, base: Path) -> list[tuple[Params, float]]:
    """(params, value) of trials that the study's spaces have, best first; relative paths are below `base`.

    Raises SpecError for a source that cannot be read, or is of another task or metric; OSError for one that
    cannot be read now.
    """
    problem = Problem.of(spec)
    found: list[tuple[Params, float]] = []
    for index, source in enumerate(spec.search.warm_start):
        field = f"spec.search.warmStart[{index}].uri"
        location = beside(source.uri, spec.storage.uri if spec.storage else None)
        found += _trials(problem, spec, _opened(location, base, field), field)
    return inheritable(problem, found, MOST)


def _opened(uri: str, base: Path, field: str) -> Storage:
    location = uri.rstrip("/").removesuffix("/results")
    if "://" not in location:
        path = base / location
        if not path.is_dir():
            raise SpecError(field, f"must be the folder of a study (got {uri}: there is none)")
        location = str(path)
    try:
        return Storage.open(location)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and may_pass(error):
            raise
        raise SpecError(field, f"must be the folder of a study (got {uri}: {error})") from error


def _trials(
    problem: Problem, spec: StudySpec, storage: Storage, field: str
) -> list[tuple[Params, float]]:
    try:
        parts = parts_in(storage)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and may_pass(error):
            raise
        raise SpecError(
            field, f"must be the folder of a study, with records ({storage.uri()} has none)"
        ) from error
    _check_same(spec, parts, field)
    try:
        other = StudySpec.model_validate({**parts, "budget": {"maxTrials": 1}})
        state = StudyState.replayed(problem_of(other, storage), read_history(storage).events)
    except (ValidationError, ValueError) as error:
        raise SpecError(
            field, f"must have records that this version can read ({error})"[:500]
        ) from error
    if state.ended is None:
        raise SpecError(
            field, f"must be a study that has ended (the search at {storage.uri()} has not)"
        )
    defaults = state.problem.defaults
    known = [(trial.params, trial.best) for trial in state.best_known() if trial.best is not None]
    fulfil = [each for each in known if not problem.violation(each[1].metrics)]
    return [({**defaults, **params}, best.value) for params, best in fulfil or known]


def _check_same(spec: StudySpec, parts: Mapping[str, Any], field: str) -> None:
    if parts.get("task") != spec.task:
        raise SpecError(field, f"must be of task {spec.task} (got {parts.get('task')})")
    metric = parts.get("objective", {}).get("metric")
    if metric != spec.objective.metric:
        raise SpecError(field, f"must be of metric {spec.objective.metric} (got {metric})")
