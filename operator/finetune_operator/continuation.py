"""When a study that has ended goes on: if the limit that ended it is loosened, or its annotation asks for a retry.

Nothing else begins paid work again. What an edit cannot change is said (`Continuation.told`).
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_api.classes import ClassSpec
from finetune_api.expressions import ExpressionError
from finetune_api.limits import limits_of
from finetune_api.plan import make_plan
from finetune_api.search import Budget
from finetune_api.status import LastEnd, Limits, StudyStatus
from finetune_api.study import FineTuneStudy, StudySpec
from finetune_operator import names
from finetune_operator.belief import judged_by
from finetune_operator.observe import JobView, Observed

TARGET = "target"
_SPENT = ("max_duration_seconds", "max_gpu_hours", "max_price")
_PATHS = {
    TARGET: "spec.objective.target",
    **{
        name: f"spec.budget.{Budget.model_fields[name].alias}"
        for name in Limits.model_fields
        if name != TARGET
    },
}
"""Field of the limits → where it is in a study."""

_FIELDS = {path: name for name, path in _PATHS.items()}
_NAMED = re.compile(r"(spec\.budget\.\w+)(?: = ([0-9.e+]+))?")
"""How a driver names the limit that ended the search, and its value."""


@dataclass(frozen=True)
class Continuation:
    """What becomes of a study that has ended."""

    why: str = ""
    """Why it goes on now; empty if it does not."""

    told: str = ""
    """What its user should know: that an edit has no effect, and what would have one."""


def continuation(study: FineTuneStudy) -> Continuation:
    """Whether `study`, which has ended, goes on now.

    A study that ended under an earlier version has no limits to compare with. Only a new edit of it counts, and the
    limits of its end are those that its message, plan and best value tell.
    """
    why = _why(study)
    if why and study.spec.suspend:
        return Continuation(told=f"{why}: the study goes on as soon as spec.suspend is false")
    return Continuation(why) if why else Continuation(told=_told(study))


def is_new_retry(study: FineTuneStudy) -> bool:
    """Whether somebody asks for a retry that has not been followed yet."""
    return names.asked_retry(study) not in (None, study.status.retry)


def last_end(
    study: FineTuneStudy,
    observed: Observed,
    job: JobView | None,
    attempt: int,
    given: ClassSpec | None = None,
) -> LastEnd:
    """What to remember of the end that the study comes to now, with `job` as its last attempt and `given` as its class.

    If the study was edited after that attempt was made, the driver may have decided before it heard of the edit. What
    is remembered are the study's own limits: a class that allows more later lets no study go on.
    """
    limits = _limits(study.spec)
    edited = job is not None and job.made_for.partition("/")[0] != str(study.metadata.generation)
    told = judged_by(study, observed) if edited else None
    if told is not None and given is not None:
        told = _without_class(told, limits, given)
    return LastEnd(attempt=attempt, limits=told or limits)


def _without_class(told: Limits, own: Limits, given: ClassSpec) -> Limits:
    """The limits that a driver was told, with the study's own in place of those that its class made them."""
    most = {
        "max_trials": given.limits.trials,
        "max_parallel_trials": given.limits.parallel_trials,
        "max_duration_seconds": given.limits.duration_seconds,
        "max_gpu_hours": given.limits.gpu_hours,
        "price_per_gpu_hour": given.price_per_gpu_hour,
    }
    made = [
        name for name, limit in most.items() if limit is not None and getattr(told, name) == limit
    ]
    return told.model_copy(update={name: getattr(own, name) for name in made})


def ended_by(status: StudyStatus) -> tuple[str, ...]:
    """The limits of which at least one has to be loosened for the study to go on; empty if none could help."""
    reason, message = _end(status)
    named = [_FIELDS[path] for path, _ in _NAMED.findall(message) if path in _FIELDS][:1]
    match reason:
        case "SearchFinished":
            return ("max_trials",)
        case "NoSuccessfulTrial":
            return tuple(named) or ("max_trials",)
        case "BudgetSpent":
            return tuple(named) or _SPENT
        case "NoImprovement":
            return ("max_trials_without_improvement",)
        case "TargetReached":
            return (TARGET,)
        case "TooManyFailedTrials":  # or the first trials failed alike, at which no limit helps
            return tuple(name for name in named if name == "max_failed_trials")
        case _:
            return ()


def _why(study: FineTuneStudy) -> str:
    if is_new_retry(study):
        return f"the annotation {names.RETRY} has a new value"
    now = _limits(study.spec)
    for name in ended_by(study.status):
        if _is_looser(name, study):
            return f"{_PATHS[name]} is {_shown(getattr(now, name))} now"
    return ""


def _told(study: FineTuneStudy) -> str:
    """What to say of edits that have no effect; empty if there are none, or if it is not known any more."""
    status = study.status
    by, (reason, message) = ended_by(status), _end(status)
    known, now = _known(status), _limits(study.spec)
    changed = [n for n in _PATHS if known is not None and getattr(known, n) != getattr(now, n)]
    paths = [_PATHS[name] for name in changed]
    if study.spec.suspend:
        paths.append("spec.suspend")
    if not paths and not (_edited(study) and (known is None or status.is_true("Failed"))):
        return ""
    effect = f"{' and '.join(paths)} {'have' if paths[1:] else 'has'} no effect: " if paths else ""
    said = f"{effect}the study has ended ({reason}: {message[:200]}). "
    if known is not None and "max_trials" in {*by} & {*changed} and _more_trials(known, now):
        return f"{said}No combination of the search space is left to try"
    retry = f"give its annotation {names.RETRY} a new value"
    if not by:
        return f"{said}To let it try again, {retry}"
    return f"{said}To let it go on, loosen {' or '.join(_PATHS[n] for n in by)}, or {retry}"


def _more_trials(then: Limits, now: Limits) -> bool:
    return (now.max_trials or math.inf) > (then.max_trials or math.inf)


def _end(status: StudyStatus) -> tuple[str, str]:
    """Reason and message of the end."""
    kind = status.condition("Failed" if status.is_true("Failed") else "Complete")
    return (kind.reason, kind.message) if kind is not None else ("", status.message)


def _edited(study: FineTuneStudy) -> bool:
    return study.status.observed_generation != study.metadata.generation


def _known(status: StudyStatus) -> Limits | None:
    return status.last_end.limits if status.last_end is not None else None


def _limits(spec: StudySpec) -> Limits:
    return limits_of(spec.budget, spec.objective.target)


def _is_looser(name: str, study: FineTuneStudy) -> bool:
    """Whether the limit is looser than the one that the study ended with."""
    known, now = _known(study.status), _limits(study.spec)
    if known is None:
        then = _recalled(name, study) if _edited(study) else None
        rounded = None if then is None else then + 1e-5 * abs(then)  # messages have six digits
        return rounded is not None and _room(name, study, now) > rounded
    if known == now:
        return False
    return _room(name, study, now) > _room(name, study, known)


def _room(name: str, study: FineTuneStudy, limits: Limits) -> float:
    """How much a limit allows: the more, the looser it is."""
    value = getattr(limits, name)
    match name:
        case "target":
            return math.inf if value is None else _score(study, value)
        case "max_trials":
            return _planned(study, limits)
        case "max_price" if value is not None:
            return float(value / (limits.price_per_gpu_hour or math.inf))
        case _:
            return math.inf if value is None else float(value)


def _score(study: FineTuneStudy, value: float) -> float:
    return value if study.spec.objective.direction == "Maximize" else -value


def _planned(study: FineTuneStudy, limits: Limits) -> float:
    """Trials that the study proposes at most under these limits: a walked grid has no more, whatever they allow."""
    budget = study.spec.budget.model_copy(update={"max_trials": limits.max_trials})
    spec = study.spec.model_copy(update={"budget": budget})
    auto = spec.search.algorithm == "Auto"
    try:
        trials = make_plan(spec, choice=study.status.search if auto else None).trials
    except (ExpressionError, ValidationError, OverflowError):
        trials = limits.max_trials
    return math.inf if trials is None else trials


def _recalled(name: str, study: FineTuneStudy) -> float | None:
    """The room that the limit left when the study ended, as far as a status without its limits tells."""
    status, (_, message) = study.status, _end(study.status)
    values: dict[str, Any] = {path: value for path, value in _NAMED.findall(message) if value}
    found = values.get(_PATHS[name])
    match name:
        case "target":
            return None if status.best is None else _score(study, status.best.value)
        case "max_trials":
            planned = status.plan.trials if status.plan is not None else None
            return planned if planned is not None else status.trials.planned
        case "max_trials_without_improvement":
            return next((float(number) for number in re.findall(r"^\d+", message)), None)
        case "max_price" if found is not None:
            return float(found) / (study.spec.budget.price_per_gpu_hour or math.inf)
        case _:
            return None if found is None else float(found)


def _shown(value: float | None) -> str:
    return "no limit" if value is None else f"{value:g}"
