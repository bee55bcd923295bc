"""What the operator has seen of a study's children: slim copies, kept up to date by watch events."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeAlias

from finetune_operator import names

Key: TypeAlias = tuple[str, str]
"""Namespace and name of a study."""


@dataclass(frozen=True)
class JobView:
    """A Job of a study."""

    name: str
    uid: str
    study_uid: str
    attempt: int
    deleting: bool
    succeeded: bool
    failed: str | None
    """Message of the failure, if it failed."""

    active: int
    created: datetime | None

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "JobView":
        """The view of a Job as the API serves it."""
        meta, status = body["metadata"], body.get("status") or {}
        true = {c["type"]: c for c in status.get("conditions") or [] if c.get("status") == "True"}
        failure = true.get("Failed") or true.get("FailureTarget")
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            study_uid=_owner(meta),
            attempt=_number(meta.get("labels", {}).get(names.ATTEMPT_LABEL)),
            deleting="deletionTimestamp" in meta,
            # The result counts as soon as pod 0 has succeeded; Complete waits for the other pods to end.
            succeeded="SuccessCriteriaMet" in true or "Complete" in true,
            failed=f"{failure.get('reason', '')}: {failure.get('message', '')}"
            if failure
            else None,
            active=int(status.get("active") or 0),
            created=parse_time(meta.get("creationTimestamp")),
        )


@dataclass(frozen=True)
class PodView:
    """A pod of a study."""

    name: str
    uid: str
    study_uid: str
    job_uid: str
    index: int
    ended: bool
    running: bool
    deadline: datetime | None
    """When a pod that is being deleted should be gone."""

    problem: str
    """Why it does not run, in the cluster's words; empty if there is nothing to say."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "PodView":
        """The view of a pod as the API serves it."""
        meta, status = body["metadata"], body.get("status") or {}
        labels = meta.get("labels") or {}
        annotations = meta.get("annotations") or {}
        phase = status.get("phase", "")
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            study_uid=labels.get(names.UID_LABEL, ""),
            job_uid=labels.get("batch.kubernetes.io/controller-uid", ""),
            index=_number(annotations.get("batch.kubernetes.io/job-completion-index")),
            ended=phase in ("Succeeded", "Failed"),
            running=phase == "Running",
            deadline=parse_time(meta.get("deletionTimestamp")),
            problem=_problem(status),
        )


@dataclass(frozen=True)
class ConfigView:
    """A ConfigMap of a study: its hash if it is the spec, its document if it is the progress."""

    name: str
    study_uid: str
    spec_hash: str
    progress: str
    term: str

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "ConfigView":
        """The view of a ConfigMap as the API serves it."""
        meta, data = body["metadata"], body.get("data") or {}
        return cls(
            name=meta["name"],
            study_uid=_owner(meta),
            spec_hash=(meta.get("annotations") or {}).get(names.SPEC_HASH, ""),
            progress=str(data.get("progress", "")),
            term=str(data.get("term", "")),
        )


@dataclass(frozen=True)
class Observed:
    """All children of one study."""

    jobs: tuple[JobView, ...] = ()
    pods: tuple[PodView, ...] = ()
    configs: Mapping[str, ConfigView] = field(default_factory=dict)


View = JobView | PodView | ConfigView


class Store:
    """The latest view of every child, by study."""

    def __init__(self) -> None:
        self._views: dict[Key, dict[tuple[type[View], str], View]] = defaultdict(dict)
        self._versions: dict[tuple[Key, type[View], str], int] = {}

    def put(self, namespace: str, kind: type[View], body: Mapping[str, Any]) -> Key | None:
        """Take in an object; the key of its study, None if it is no study's or older than what is known."""
        key, slot = self._place(namespace, kind, body)
        if key is None:
            return None
        version = _number(body["metadata"].get("resourceVersion"))
        if version < self._versions.get((key, *slot), 0):
            return None
        self._versions[(key, *slot)] = version
        self._views[key][slot] = kind.of(body)
        return key

    def remove(self, namespace: str, kind: type[View], body: Mapping[str, Any]) -> Key | None:
        """Forget an object that is gone, unless one of the same name has replaced it."""
        key, slot = self._place(namespace, kind, body)
        if key is None:
            return None
        version = _number(body["metadata"].get("resourceVersion"))
        if version >= self._versions.get((key, *slot), 0):
            self._versions.pop((key, *slot), None)
            self._views[key].pop(slot, None)
            if not self._views[key]:
                del self._views[key]
        return key

    def expect_deletion(self, key: Key, job: str) -> None:
        """A Job was told to go: do not take it for a live one until its event arrives."""
        view = self._views.get(key, {}).get((JobView, job))
        if isinstance(view, JobView):
            self._views[key][JobView, job] = replace(view, deleting=True)

    def _place(
        self, namespace: str, kind: type[View], body: Mapping[str, Any]
    ) -> tuple[Key | None, tuple[type[View], str]]:
        study = (body["metadata"].get("labels") or {}).get(names.STUDY_LABEL)
        return ((namespace, study) if study else None), (kind, body["metadata"]["name"])

    def observed(self, key: Key) -> Observed:
        """What is known of the study's children."""
        views = list(self._views.get(key, {}).values())
        configs = {view.name: view for view in views if isinstance(view, ConfigView)}
        jobs = tuple(sorted(_of(views, JobView), key=lambda job: job.attempt))
        return Observed(jobs, tuple(sorted(_of(views, PodView), key=lambda pod: pod.name)), configs)


def _of(views: list[View], kind: type[Any]) -> Iterator[Any]:
    return (view for view in views if isinstance(view, kind))


def parse_time(text: Any) -> datetime | None:
    """A Kubernetes timestamp."""
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def _number(text: Any) -> int:
    return int(text) if isinstance(text, str | int) and str(text).isdigit() else 0


def _owner(meta: Mapping[str, Any]) -> str:
    owners = meta.get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def _problem(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"{condition.get('reason', '')}: {condition.get('message', '')}"
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return ""
