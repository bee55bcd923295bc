"""Why a pod does not run, or runs no longer, in the cluster's own words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

TroubleReason: TypeAlias = Literal[
    "Unschedulable", "ImagePullFailed", "OutOfMemory", "Evicted", "NodeLost", "PodsPending"
]


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a pod."""

    reason: TroubleReason
    message: str


NODE_LOST = "NodeLost"
"""Reason with which this operator itself gives up a pod."""

_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_ON_ITS_WAY = (None, "ContainerCreating", "PodInitializing")
_DISRUPTIONS: dict[str, TroubleReason] = {
    "PreemptionByScheduler": "Evicted",
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
    NODE_LOST: "NodeLost",
}
"""Reason of the condition DisruptionTarget → what it means for the study."""


def trouble_of(status: Mapping[str, Any]) -> Trouble | None:
    """The trouble that a pod's status shows; None if it shows none."""
    return next(_troubles(status), None)


def _troubles(status: Mapping[str, Any]) -> Iterator[Trouble]:
    conditions = {c.get("type"): c for c in status.get("conditions") or []}
    disrupted = conditions.get("DisruptionTarget", {})
    if disrupted.get("status") == "True":
        reason, message = disrupted.get("reason", ""), disrupted.get("message", "")
        yield Trouble(_DISRUPTIONS.get(reason, "Evicted"), f"{reason}: {message}")
    if status.get("reason") == "Evicted":
        yield Trouble("Evicted", f"Evicted: {status.get('message', '')}")
    ready, inside = conditions.get("Ready", {}), conditions.get("ContainersReady", {})
    unready = (ready.get("status"), inside.get("status")) == ("False", "True")
    if unready and not ready.get("reason"):
        # Kubernetes marks the pods of a silent node like this; a kubelet would give a reason.
        yield Trouble("NodeLost", "its node does not answer")
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        words = f"{scheduled.get('reason', '')}: {scheduled.get('message', '')}"
        yield Trouble("Unschedulable", words)
    containers = [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]
    for container in containers:
        state, name = container.get("state") or {}, container.get("name", "")
        ended = state.get("terminated") or {}
        if ended.get("reason") == "OOMKilled":
            words = f"container {name} was killed for lack of memory (OOMKilled)"
            yield Trouble("OutOfMemory", words)
        elif ended.get("exitCode") and status.get("phase") == "Running":  # it is not restarted
            code = ended["exitCode"]
            words = f"container {name} has ended with exit code {code}; the pod goes on without it"
            yield Trouble("PodsPending", words)
        yield from _waiting(container, state.get("waiting") or {})


def _waiting(container: Mapping[str, Any], waiting: Mapping[str, Any]) -> Iterator[Trouble]:
    reason, message = waiting.get("reason"), waiting.get("message", "")
    if reason in _IMAGE_REASONS:
        # The kubelet alternates between two reasons, one quoting the other: say what they share.
        detail = message.rpartition("ErrImagePull: ")[2]
        words = f"image {container.get('image', '')} cannot be pulled: {detail}"
        yield Trouble("ImagePullFailed", words)
    elif reason not in _ON_ITS_WAY:
        yield Trouble("PodsPending", f"{reason}: {message}")
