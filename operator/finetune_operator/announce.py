"""The Events that a study posts: one for each transition that users would want to see in `kubectl describe`."""

import re
from typing import get_args

from finetune_api.status import State, StudyStatus
from finetune_operator.decision import StudyEvent
from finetune_operator.trouble import TroubleReason

_ANNOUNCED: dict[State, str] = {
    "Queued": "Queued",
    "Running": "SearchStarted",
    "Refitting": "RefitStarted",
    "Suspended": "Suspended",
    "Complete": "Completed",
    "Failed": "Failed",
}
_WARNINGS = (
    *get_args(TroubleReason),
    "AttemptFailed",
    "NoStorage",
    "StartDeadlineExceeded",
    "StorageUnavailable",
    "Forbidden",
)


def transitions(old: StudyStatus, new: StudyStatus) -> tuple[StudyEvent, ...]:
    """The Events for the change from `old` to `new`."""
    events = []
    reason = next((c.reason for c in new.conditions if c.reason in _WARNINGS), None)
    known = {c.reason for c in old.conditions} if _gist(new.message) == _gist(old.message) else ()
    if reason is not None and reason not in known:
        events.append(StudyEvent("Warning", reason, new.message))
    if old.finished and not new.finished:
        events.append(StudyEvent("Normal", "Reopened", new.message))
    if new.attempts > old.attempts:
        events.append(StudyEvent("Normal", "AttemptStarted", f"attempt {new.attempts} begins"))
    if new.state is not None and new.state != old.state and new.state in _ANNOUNCED:
        kind = "Warning" if new.state == "Failed" else "Normal"
        ended = f"attempt {new.attempts}, {new.trials.summary} trials ended so far"
        events.append(StudyEvent(kind, _ANNOUNCED[new.state], new.message or ended))
    return tuple(events)


def _gist(message: str) -> str:
    """The message without its numbers: "3 nodes short of memory" is not news after "4 nodes"."""
    return re.sub(r"\d+", "", message)
