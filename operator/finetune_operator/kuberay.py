"""What a RayJob's status means for the attempt: a table of everything that KubeRay can report.

KubeRay reports `jobStatus` (Ray's own), `jobDeploymentStatus` (how far KubeRay is), and `reason` and
`message` of a failure. docs/operations.md shows the table to users.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

JOB_STATUSES = ("", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")
DEPLOYMENT_STATUSES = (
    "",
    "Initializing",
    "Waiting",
    "Running",
    "Complete",
    "Failed",
    "ValidationFailed",
    "Suspending",
    "Suspended",
    "Retrying",
)
REASONS = (
    "",
    "SubmissionFailed",
    "DeadlineExceeded",
    "PreRunningDeadlineExceeded",
    "AppFailed",
    "JobDeploymentStatusTransitionGracePeriodExceeded",
    "JobStatusCheckTimeoutExceeded",
    "ValidationFailed",
)

_WITH_PODS = ("Waiting", "Running", "Suspending", "Retrying")


@dataclass(frozen=True)
class Fate:
    """How an attempt stands, as far as KubeRay can tell."""

    succeeded: bool = False
    failed: str | None = None
    """Why the attempt is over; another follows."""

    refused: str = ""
    """Why KubeRay will never run it: none follows."""

    has_pods: bool = False
    trouble: str = ""
    """Why there are no pods yet."""


def fate_of(status: Any) -> Fate:
    """What `status` of a RayJob means; values that only a later KubeRay writes count as an attempt on its way."""
    deployment, job = _word(status, "jobDeploymentStatus"), _word(status, "jobStatus")
    reason, message = _word(status, "reason"), _word(status, "message")
    words = ": ".join(part for part in (reason, message) if part)
    match deployment, job:
        case "ValidationFailed", _:
            return Fate(refused=message or reason or deployment)
        case "Complete", "SUCCEEDED":
            return Fate(succeeded=True)
        case "Complete", _:
            return Fate(failed=words or f"its Ray job ended with status {job or 'unknown'}")
        case "Failed", _:
            return Fate(failed=words or "KubeRay gives no reason")
        case _:
            return Fate(has_pods=deployment in _WITH_PODS, trouble=_trouble(status))


def _trouble(status: Any) -> str:
    """What prevents the Ray cluster from having its pods."""
    cluster = told(status, "rayClusterStatus")
    conditions = told(cluster, "conditions")
    for condition in conditions if isinstance(conditions, list) else ():
        kind, value = _word(condition, "type"), _word(condition, "status")
        if (kind, value) == ("ReplicaFailure", "True"):
            return f"{_word(condition, 'reason')}: {_word(condition, 'message')}"
    return _word(cluster, "reason")


def _word(value: Any, name: str) -> str:
    word = told(value, name)
    return word if isinstance(word, str) else ""


def told(value: Any, name: str) -> Any:
    """The value of `name` in an object; None if it has none, or if `value` is not an object."""
    return value.get(name) if isinstance(value, Mapping) else None
