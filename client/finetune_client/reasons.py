"""Why a study waits, or has failed: in the words of its conditions and of its Warning Events."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.status import ConditionType, StudyStatus
from finetune_client.view import StudyView

_MOST_EVENTS = 5
_WAITING: tuple[ConditionType, ...] = ("Failed", "Stalled", "Suspended", "Reconciling")
_NEVER = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Event:
    """One Event of Kubernetes about the study."""

    time: datetime
    """When it was seen last."""

    type: str
    """Normal or Warning."""

    reason: str
    message: str
    count: int

    @classmethod
    def of(cls, body: Any) -> "Event":
        """The Event as the API server serves it, in whichever of its forms."""
        series = body.get("series") or {}
        seen = (series.get("lastObservedTime"), body.get("lastTimestamp"), body.get("eventTime"))
        created = body["metadata"].get("creationTimestamp")
        return cls(
            time=datetime.fromisoformat(next(filter(None, (*seen, created)), _NEVER)),
            type=str(body.get("type") or "Normal"),
            reason=str(body.get("reason") or ""),
            message=str(body.get("message") or ""),
            count=int(series.get("count") or body.get("count") or 1),
        )


def why(view: StudyView, events: Sequence[Event] = ()) -> list[str]:
    """Why the study waits or has failed, the most telling first; empty if it trains or is complete."""
    status = view.status
    if not status.conditions:
        return ["the operator has not seen the study yet; without an operator, nothing happens"]
    said = _conditions(status)
    if not view.is_current:
        said.append("the operator has not seen the last edit yet")
    told = {line.partition(": ")[2] for line in said}
    for event in _warnings(status, events):
        if event.message not in told:
            told.add(event.message)
            said.append(f"{event.reason}: {event.message}")
    return said


def _conditions(status: StudyStatus) -> list[str]:
    if status.is_true("Complete"):
        return []
    true = [c for kind in _WAITING if (c := status.condition(kind)) and c.status == "True"]
    now = status.condition("Reconciling")
    if not true and now is not None and now.reason != "Running":
        true = [now]  # what troubles a study that trains
    return list(dict.fromkeys(f"{c.reason}: {c.message}" for c in true))


def _warnings(status: StudyStatus, events: Sequence[Event]) -> list[Event]:
    """The newest warnings; of a study that trains, those since it does."""
    running = status.condition("Running")
    if status.is_true("Complete"):
        return []
    trains = running is not None and running.status == "True"
    found = [
        event
        for event in events
        if event.type == "Warning"
        and not (trains and running is not None and event.time < running.last_transition_time)
    ]
    return sorted(found, key=lambda event: event.time, reverse=True)[:_MOST_EVENTS]
