"""Carries out decisions: the thin shell between `decide` and Kubernetes."""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.manifest import ManifestError, parse_study
from finetune_api.study import API_VERSION, KIND, FineTuneStudy
from finetune_operator import metrics
from finetune_operator.decide import Decision, Deletion, StudyEvent, decide
from finetune_operator.kube import Exists, Gone, Kube, Refused
from finetune_operator.names import MANAGER
from finetune_operator.observe import ConfigView, JobView, Key, PodView, Store
from finetune_operator.settings import Settings

log = logging.getLogger("finetune.reconciler")

_VIEWS: dict[str, type[JobView | PodView | ConfigView]] = {"Job": JobView, "ConfigMap": ConfigView}


class Reconciler:
    """Reconciles one study at a time; the queue sees to that."""

    def __init__(self, kube: Kube, store: Store, settings: Settings) -> None:
        self._kube = kube
        self._store = store
        self._settings = settings
        self._bodies: dict[Key, Mapping[str, Any]] = {}
        self._metrics = metrics.StudyMetrics()

    def put(self, key: Key, body: Mapping[str, Any]) -> None:
        """Remember the study's latest body."""
        known = self._bodies.get(key)
        if known is None or _version(body) >= _version(known) or _uid(body) != _uid(known):
            self._bodies[key] = _slim(body)

    def remove(self, key: Key) -> None:
        """Forget a study that is gone."""
        self._bodies.pop(key, None)
        self._metrics.remove(key)

    async def reconcile(self, key: Key) -> float | None:
        """Bring the study closer to what it asks for; seconds until the next look, if one is due."""
        body = self._bodies.get(key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return None  # its children go by their owner references
        with metrics.RECONCILE_SECONDS.time():
            try:
                study = parse_study(body)
            except (ManifestError, ValidationError) as error:
                # The API server let it pass, so this operator is older than the CRD.
                log.error(
                    "study cannot be read", extra={"study": "/".join(key), "error": str(error)}
                )
                return None
            return await self._carry_out(key, study, await self._decide(key, study))

    async def _decide(self, key: Key, study: FineTuneStudy) -> Decision:
        now = datetime.now(UTC).replace(microsecond=0)
        observed = self._store.observed(key)
        decision = decide(study, observed, self._settings, now)
        if decision.explain is None:
            return decision
        found = await self._kube.events_of(key[0], "Job", decision.explain.uid)
        message = (
            str(found[-1].get("message", "")) if found else "no pods yet, and no Event says why"
        )
        return decide(study, observed, self._settings, now, explanation=message)

    async def _carry_out(self, key: Key, study: FineTuneStudy, decision: Decision) -> float | None:
        for deletion in decision.delete:
            await self._delete(key, deletion)
        try:
            await self._make(key, decision)
        except Refused as error:
            decision = _refused(study, decision, error)
        if decision.delete_study:
            await self._kube.delete(KIND, *key, study.metadata.uid or "")
            return None
        await self._write_status(key, study, decision)
        await asyncio.gather(*(self._post(study, event) for event in decision.events))
        return decision.again_after

    async def _delete(self, key: Key, deletion: Deletion) -> None:
        await self._kube.delete(deletion.kind, key[0], deletion.name, deletion.uid, deletion.force)
        if deletion.kind == "Job":
            self._store.expect_deletion(key, deletion.name)

    async def _make(self, key: Key, decision: Decision) -> None:
        """Apply and create; what does not depend on each other at the same time, the Job last."""
        last = [manifest for manifest in decision.apply if manifest["kind"] == "RoleBinding"]
        first = [manifest for manifest in decision.apply if manifest["kind"] != "RoleBinding"]
        before_job = [manifest for manifest in decision.create if manifest["kind"] != "Job"]
        jobs = [manifest for manifest in decision.create if manifest["kind"] == "Job"]
        await asyncio.gather(
            *(self._apply(key, manifest) for manifest in first),
            *(self._create(key, manifest) for manifest in before_job),
        )
        for manifest in last:  # the API server looks its Role up
            await self._apply(key, manifest)
        for manifest in jobs:
            await self._create(key, manifest)

    async def _apply(self, key: Key, manifest: dict[str, Any]) -> None:
        self._remember(key, manifest["kind"], await self._kube.apply(manifest))

    async def _create(self, key: Key, manifest: dict[str, Any]) -> None:
        try:
            self._remember(key, manifest["kind"], await self._kube.create(manifest))
        except Exists:
            # Made before a restart: its event brings it into the store.
            log.info(
                "exists already",
                extra={"study": "/".join(key), "object": manifest["metadata"]["name"]},
            )

    def _remember(self, key: Key, kind: str, body: dict[str, Any]) -> None:
        view = _VIEWS.get(kind)
        if view is not None:  # the watch would tell us, but perhaps after the next decision
            self._store.put(key[0], view, body)

    async def _write_status(self, key: Key, study: FineTuneStudy, decision: Decision) -> None:
        self._metrics.show(key, decision.status)
        if decision.status == study.status:
            return
        manifest = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": key[1], "namespace": key[0], "uid": study.metadata.uid},
            "status": decision.status.to_json(),
        }
        try:
            self.put(key, await self._kube.apply(manifest, "status"))
        except Gone:
            log.info("study is gone", extra={"study": "/".join(key)})

    async def _post(self, study: FineTuneStudy, event: StudyEvent) -> None:
        meta = study.metadata
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        digest = hashlib.sha256(
            f"{meta.uid}{event.reason}{event.message}{now}".encode()
        ).hexdigest()[:16]
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta.name}.{digest}", "namespace": meta.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": meta.name,
                "namespace": meta.namespace,
                "uid": meta.uid,
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._kube.create(body)
        except (Exists, Refused) as error:  # an Event is a courtesy; the status has the facts
            log.warning("Event not posted", extra={"study": meta.name, "error": str(error)})


def _refused(study: FineTuneStudy, decision: Decision, error: Refused) -> Decision:
    """The API server will not take what the study asks for: the study says so and waits."""
    message = f"the API server refused the study's objects: {error.message}"[:1024]
    conditions = [
        condition.model_copy(
            update={"reason": "InvalidPodTemplate", "message": message, "status": "True"}
        )
        if condition.type in ("Failed", "Stalled")
        else condition
        for condition in decision.status.conditions
    ]
    status = decision.status.model_copy(
        update={
            "state": "Failed",
            "message": message,
            "conditions": conditions,
            "completion_time": datetime.now(UTC),
            "attempts": study.status.attempts,
        }
    )
    return Decision(status, events=(StudyEvent("Warning", "Failed", message),))


def _version(body: Mapping[str, Any]) -> int:
    version = body["metadata"].get("resourceVersion", "")
    return int(version) if version.isdigit() else 0


def _uid(body: Mapping[str, Any]) -> str:
    return str(body["metadata"].get("uid", ""))


def _slim(body: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without what only takes memory."""
    meta = {
        key: value
        for key, value in body["metadata"].items()
        if key not in ("managedFields", "annotations")
    }
    return {
        **{key: body[key] for key in ("apiVersion", "kind", "spec") if key in body},
        "metadata": meta,
        "status": dict(body.get("status") or {}),
    }
