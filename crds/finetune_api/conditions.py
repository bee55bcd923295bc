"""Conditions, and the status that follows from a progress document: one function for cluster and laptop."""

from collections.abc import Mapping
from datetime import datetime

from finetune_api.status import (
    Condition,
    ConditionType,
    State,
    StudyProgress,
    StudyStatus,
    shown,
)
from finetune_api.study import FineTuneStudy


def with_condition(
    conditions: list[Condition],
    kind: ConditionType,
    value: bool,
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """`conditions` with the one of type `kind` set; its transition time changes only when its status does."""
    status = "True" if value else "False"
    old = next((c for c in conditions if c.type == kind), None)
    since = old.last_transition_time if old is not None and old.status == status else now
    new = Condition(
        type=kind,
        status="True" if value else "False",
        reason=reason,
        message=message[:1024],
        last_transition_time=since,
        observed_generation=generation,
    )
    others = [c for c in conditions if c.type != kind]
    return sorted([*others, new], key=lambda c: c.type)


def with_facts(
    conditions: list[Condition],
    facts: Mapping[ConditionType, bool],
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """`conditions` with those of `facts`, all for `reason`.

    What is True says `message`; what is False says why it is, in words of its own.
    """
    for kind, value in facts.items():
        words = message if value else _why_false(kind, facts, reason, message)
        conditions = with_condition(conditions, kind, value, reason, words, generation, now)
    return conditions


def _why_false(
    kind: ConditionType, facts: Mapping[ConditionType, bool], reason: str, message: str
) -> str:
    complete, failed = facts.get("Complete", False), facts.get("Failed", False)
    if complete or failed:
        end = "the study is complete" if complete else f"the study has failed: {message}"
        return message if kind == "Reconciling" else end
    suspended = facts.get("Suspended", False)
    match kind:
        case "Complete":
            return "the study has not ended yet"
        case "Failed":
            return "the study has not failed"
        case "Suspended":
            asked = reason == "SuspendRequested"
            return "pods have not ended yet" if asked else "the study is not suspended"
        case "Stalled":
            held = "it is suspended, and goes on once spec.suspend is false"
            return held if suspended else "the study goes on, or the operator keeps trying"
        case "Running":
            return "the study is suspended: no pod trains" if suspended else message
        case "Reconciling":
            return message


_STATES: dict[str, State] = {
    "Preparing": "Starting",
    "Searching": "Running",
    "Refitting": "Refitting",
    "Drained": "Suspended",
    "Finished": "Complete",
    "Failed": "Failed",
}


def status_of(study: FineTuneStudy, progress: StudyProgress, started: datetime) -> StudyStatus:
    """The status of a study whose driver ended with `progress`."""
    generation = study.metadata.generation
    facts: dict[ConditionType, bool] = {
        "Complete": progress.phase == "Finished",
        "Failed": progress.phase == "Failed",
        "Stalled": progress.phase == "Failed",
        "Suspended": progress.phase == "Drained",
        "Reconciling": False,
        "Running": False,
    }
    conditions = with_facts([], facts, progress.reason, progress.message, generation, progress.time)
    over = progress.phase in ("Finished", "Failed")
    return StudyStatus(
        **progress.findings.__dict__,
        observed_generation=generation,
        state=_STATES[progress.phase],
        conditions=conditions,
        start_time=started,
        completion_time=progress.time if over else None,
        attempts=progress.term,
        best_shown=shown(progress.findings.best),
        message=progress.message,
    )
