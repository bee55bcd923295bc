"""What the operator sees of a study's children: slim views of what the API serves."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeAlias

from finetune_api import pods as keys
from finetune_api.labels import is_head
from finetune_api.quantities import gpus_in
from finetune_api.status import MAX_PROGRESS_BYTES
from finetune_operator import names
from finetune_operator.kuberay import fate_of, told
from finetune_operator.names import digest
from finetune_operator.platform import Platform
from finetune_operator.trouble import Trouble, trouble_of

Key: TypeAlias = tuple[str, str]
"""Namespace and name of a study."""


@dataclass(frozen=True)
class JobView:
    """The engine's object of one attempt: a Job or, as `RayJobView`, one of KubeRay's RayJobs."""

    kind: ClassVar[str] = "Job"
    ends_drained: ClassVar[bool] = False
    """Whether the attempt is over when its driver is told to end; a Job makes another pod instead."""

    head_trains: ClassVar[bool] = True
    """Whether the pod of the driver is one of the workers."""

    name: str
    uid: str
    study_uid: str
    attempt: int
    deleting: bool
    succeeded: bool
    failed: str | None
    """Message of the failure, if it failed."""

    active: int
    held: bool
    """Whether its queue keeps its pods from running. (The operator itself never suspends a Job.)"""

    begun: datetime | None
    """When it was created, or last released by its queue."""

    run_id: str
    """The id by which its pods and its driver identify it."""

    refused: str = ""
    """Why the engine will never run it, if so."""

    trouble: str = ""
    """Why it has no pods, if the engine says so itself."""

    pods: int = 0
    """How many pods it should have; 0 if their number changes."""

    made_for: str = ""
    """What it was made for (see `names.made_for`); empty if an earlier version of the operator made it."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "JobView":
        """The view of a Job as the API serves it."""
        meta, status = body["metadata"], body.get("status") or {}
        spec = body.get("spec") or {}
        true = {c["type"]: c for c in status.get("conditions") or [] if c.get("status") == "True"}
        failure = true.get("Failed") or true.get("FailureTarget")
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            study_uid=owner(meta),
            attempt=number(meta.get("labels", {}).get(names.ATTEMPT_LABEL)),
            deleting="deletionTimestamp" in meta,
            # The result counts as soon as pod 0 has succeeded; Complete waits for the other pods to end.
            succeeded="SuccessCriteriaMet" in true or "Complete" in true,
            failed=f"{failure.get('reason', '')}: {failure.get('message', '')}"
            if failure
            else None,
            active=int(status.get("active") or 0),
            held=spec.get("suspend") is True,
            begun=parse_time(status.get("startTime") or meta.get("creationTimestamp")),
            run_id=meta["uid"],
            pods=number(spec.get("parallelism")),
            made_for=_made_for(meta),
        )


@dataclass(frozen=True)
class RayJobView(JobView):
    """A RayJob of a study."""

    kind: ClassVar[str] = "RayJob"
    ends_drained: ClassVar[bool] = True
    head_trains: ClassVar[bool] = False

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "RayJobView":
        """The view of a RayJob as the API serves it: spec and status are in the form of its KubeRay version."""
        meta, status = body["metadata"], body.get("status")
        study, attempt = owner(meta), number(meta.get("labels", {}).get(names.ATTEMPT_LABEL))
        fate = fate_of(status)
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            study_uid=study,
            attempt=attempt,
            deleting="deletionTimestamp" in meta,
            succeeded=fate.succeeded,
            failed=fate.failed,
            active=int(fate.has_pods),
            held=told(body.get("spec"), "suspend") is True,
            begun=parse_time(told(status, "startTime") or meta.get("creationTimestamp")),
            run_id=names.run_id(study, attempt),
            refused=fate.refused,
            trouble=fate.trouble,
            made_for=_made_for(meta),
        )


@dataclass(frozen=True)
class PodView:
    """A pod of a study."""

    kind: ClassVar[str] = "Pod"

    name: str
    uid: str
    study_uid: str
    run_id: str
    """Of its attempt (see JobView)."""

    controller: str
    """UID of what made it."""

    controller_name: str
    """Name of the Job or RayCluster that made it; empty if something else did, or nothing."""

    place: str
    """Which of its attempt's pods it is; its replacement has the same place."""

    head: bool
    """Whether the driver runs in it."""

    ended: bool
    running: bool
    deadline: datetime | None
    """When a pod that is being deleted should be gone."""

    image: str
    """The image that its trainer runs, with digest; empty until it runs."""

    created: datetime | None
    trouble: Trouble | None
    held: datetime | None = None
    """Since when it has a node without running there; None once it runs or has ended, and while it waits for a node."""

    gpus: int = 0
    """GPUs of its node that nobody else can have; 0 while it has no node, and once it has ended."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "PodView":
        """The view of a pod as the API serves it."""
        meta, status = body["metadata"], body.get("status") or {}
        labels = meta.get("labels") or {}
        annotations = meta.get("annotations") or {}
        phase = status.get("phase", "")
        study = labels.get(names.UID_LABEL, "")
        job = labels.get("batch.kubernetes.io/controller-uid")
        index = annotations.get("batch.kubernetes.io/job-completion-index")
        head = is_head(labels, annotations)
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            study_uid=study,
            run_id=job or names.run_id(study, number(labels.get(names.ATTEMPT_LABEL))),
            controller=owner(meta),
            controller_name=_engines_name(meta),
            # KubeRay's workers have no numbers, so none replaces a particular one
            place=index if index is not None else "head" if head else meta["name"],
            head=head,
            ended=phase in ("Succeeded", "Failed"),
            running=phase == "Running",
            deadline=parse_time(meta.get("deletionTimestamp")),
            image=_image(status),
            created=parse_time(meta.get("creationTimestamp")),
            trouble=trouble_of(status),
            held=_scheduled(status) if phase in ("", "Pending") else None,
            gpus=0 if phase in ("Succeeded", "Failed") else _gpus(body.get("spec") or {}),
        )


@dataclass(frozen=True)
class ConfigView:
    """A ConfigMap of a study: its hash if it is the spec, its document if it is the progress."""

    kind: ClassVar[str] = "ConfigMap"

    name: str
    study_uid: str
    spec_hash: str
    intact: bool
    """Whether the spec is as the operator wrote it."""

    progress: str
    """The driver's document as it stands there; empty if it is longer than allowed."""

    term: int
    limits: str = ""
    """The limits with which a driver ended the search, as they stand there; empty if it has not, or does not say."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "ConfigView":
        """The view of a ConfigMap as the API serves it."""
        meta, data = body["metadata"], body.get("data") or {}
        annotations = meta.get("annotations") or {}
        written = annotations.get(names.DATA_HASH)
        return cls(
            name=meta["name"],
            study_uid=owner(meta),
            spec_hash=annotations.get(names.SPEC_HASH, ""),
            intact=written is None or written == digest(str(data.get(keys.STUDY_KEY))),
            progress=_bounded(data.get(keys.PROGRESS_KEY, "")),
            term=number(data.get(keys.TERM_KEY)),
            limits=_bounded(data.get(keys.LIMITS_KEY, "")),
        )


@dataclass(frozen=True)
class ChildView:
    """A child that nobody has a reason to change; one subclass per kind."""

    kind: ClassVar[str]

    name: str
    study_uid: str
    essence: str
    """A hash of what the operator wrote; see `essence`."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "ChildView":
        """The view of a child as the API serves it."""
        meta = body["metadata"]
        return cls(meta["name"], owner(meta), essence(cls.kind, body))


class AccountView(ChildView):
    """A ServiceAccount."""

    kind = "ServiceAccount"


class RoleView(ChildView):
    """A Role."""

    kind = "Role"


class BindingView(ChildView):
    """A RoleBinding."""

    kind = "RoleBinding"


class PolicyView(ChildView):
    """A NetworkPolicy."""

    kind = "NetworkPolicy"


class ServiceView(ChildView):
    """The Service of a study's pods."""

    kind = "Service"


KEPT: tuple[type[ChildView], ...] = (AccountView, RoleView, BindingView, PolicyView, ServiceView)
"""Kinds that are kept as the operator made them."""

_ESSENCE: Mapping[str, tuple[str, ...]] = {
    "ServiceAccount": (),
    "Role": ("rules",),
    "RoleBinding": ("roleRef", "subjects"),
    "NetworkPolicy": ("spec",),
    "Service": ("spec.clusterIP", "spec.publishNotReadyAddresses", "spec.selector"),
}
"""For each kind, the parts that the operator writes and the API server does not add to."""


def essence(kind: str, manifest: Mapping[str, Any]) -> str:
    """A hash of what the operator writes for that kind: equal for its manifest and for what the API serves."""
    meta = manifest["metadata"]
    labels = meta.get("labels") or {}
    own = [owner(meta), *(labels.get(name) for name in (names.STUDY_LABEL, names.UID_LABEL))]
    parts = [_part(manifest, path) for path in _ESSENCE[kind]]
    return digest(json.dumps([own, parts], sort_keys=True))


def _part(manifest: Mapping[str, Any], path: str) -> Any:
    part: Any = manifest
    for name in path.split("."):
        part = (part or {}).get(name)
    return part


@dataclass(frozen=True)
class Observed:
    """All children of one study."""

    jobs: tuple[JobView, ...] = ()
    pods: tuple[PodView, ...] = ()
    configs: Mapping[str, ConfigView] = field(default_factory=dict)
    kept: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Kind and name → essence, of the kinds in `KEPT`."""

    platform: Platform | None = None
    """The classes of the cluster; None if the operator cannot read them."""

    def has(self, manifest: Mapping[str, Any]) -> bool:
        """Whether this child is there as it was made. (What a driver writes into its progress does not count.)"""
        kind, meta = manifest["kind"], manifest["metadata"]
        if kind != "ConfigMap":
            return self.kept.get((kind, meta["name"])) == essence(kind, manifest)
        view = self.configs.get(meta["name"])
        wanted = (meta.get("annotations") or {}).get(names.SPEC_HASH, "")
        return (
            view is not None
            and view.intact
            and (view.study_uid, view.spec_hash) == (owner(meta), wanted)
        )


View = JobView | PodView | ConfigView | ChildView

CHILDREN: tuple[type[View], ...] = (JobView, PodView, ConfigView, *KEPT)
"""Every kind of child but RayJobs, which are not served everywhere."""


def parse_time(text: Any) -> datetime | None:
    """A Kubernetes timestamp; None for what is not one."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=UTC)


def number(text: Any) -> int:
    """The number in the text of a label, an annotation or a ConfigMap; 0 if it is not one."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", str(text)) else 0


def _bounded(text: Any) -> str:
    # Pods write it, as long as they like: text that is too long is not even kept.
    text = str(text)
    return text if len(text.encode(errors="replace")) <= MAX_PROGRESS_BYTES else ""


def owner(meta: Mapping[str, Any]) -> str:
    """UID of the controller that these metadata name; empty if none."""
    return str(_controller(meta).get("uid", ""))


def _made_for(meta: Mapping[str, Any]) -> str:
    return str((meta.get("annotations") or {}).get(names.MADE_FOR, ""))


def _engines_name(meta: Mapping[str, Any]) -> str:
    controller = _controller(meta)
    return str(controller["name"]) if controller.get("kind") in ("Job", "RayCluster") else ""


def _controller(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    owners = meta.get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), {})


def _scheduled(status: Mapping[str, Any]) -> datetime | None:
    conditions = {c.get("type"): c for c in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    found = scheduled.get("lastTransitionTime") if scheduled.get("status") == "True" else None
    return parse_time(found)


def _gpus(spec: Mapping[str, Any]) -> int:
    """GPUs of a pod that has a node, as the scheduler counts them: its containers run together, others before them."""
    if not spec.get("nodeName"):
        return 0
    together = sum(_limit(each) for each in spec.get("containers") or [])
    return max([together, *(_limit(each) for each in spec.get("initContainers") or [])])


def _limit(container: Mapping[str, Any]) -> int:
    limits = (container.get("resources") or {}).get("limits") or {}
    return int(gpus_in(limits))


def _image(status: Mapping[str, Any]) -> str:
    containers = status.get("containerStatuses") or []
    own = (c.get("imageID", "") for c in containers if c.get("name") == names.CONTAINER)
    return str(next(own, ""))
