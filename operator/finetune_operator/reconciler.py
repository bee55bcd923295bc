"""Carries out decisions: the thin shell between `decide` and Kubernetes."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.manifest import ManifestError, parse_study
from finetune_api.status import Findings, StudyStatus
from finetune_api.study import API_VERSION, KIND, FineTuneStudy, ObjectMeta
from finetune_operator import engines, metrics, traces
from finetune_operator.decide import (
    LOST_SECONDS,
    NAMESPACE_ENDS,
    UNEXPLAINED,
    decide,
    forbidden,
    hindered,
    refused,
    unreadable,
    unremembered,
)
from finetune_operator.decision import Decision, Deletion, StudyEvent
from finetune_operator.engines import KINDS
from finetune_operator.events import event_manifest
from finetune_operator.kube import (
    Conflict,
    Exists,
    Forbidden,
    Gone,
    Kube,
    KubeError,
    Malformed,
    Refused,
)
from finetune_operator.names import RETRY, attempt_name, progress_config
from finetune_operator.observe import (
    CHILDREN,
    ConfigView,
    JobView,
    Key,
    Observed,
    RayJobView,
    number,
    owner,
)
from finetune_operator.pace import Pace
from finetune_operator.platform import Platform, class_of, settings_with
from finetune_operator.settings import Settings
from finetune_operator.store import Store, Versions, version_of
from finetune_operator.trouble import NODE_LOST

log = logging.getLogger("finetune.reconciler")

_VIEWS = {view.kind: view for view in (*CHILDREN, RayJobView)}
_NODE_LOST = f"its node has not ended it {LOST_SECONDS} s after its deadline"
_UNSERVED = "KubeRay's kind RayJob is not served by this cluster: install KubeRay 1.6 or newer, or set the chart's value study.engine to Job"


class Reconciler:
    """Reconciles one study at a time; the queue sees to that.

    Args:
        kube: requests to the API server.
        store: what is known about the studies' children.
        settings: of the whole operator.
        pace: learns when a study is looked at, and when its status is written.
        ray_jobs: whether the kind RayJob is served now.
        platform: the classes as a study in that namespace sees them; None if the operator cannot read them.
    """

    def __init__(
        self,
        kube: Kube,
        store: Store,
        settings: Settings,
        pace: Pace,
        ray_jobs: Callable[[], bool],
        platform: Callable[[str], Platform | None] = lambda _: None,
    ) -> None:
        self._kube = kube
        self._store = store
        self._pace = pace
        self._settings = settings
        self._bodies: dict[Key, Mapping[str, Any]] = {}
        self._versions = Versions()
        self._echoes: dict[Key, int] = {}
        """The version of each study after a write that changed nothing but progress."""

        self._ray_jobs = ray_jobs
        self._platform = platform
        self._metrics = metrics.StudyMetrics()

    def put(self, key: Key, body: Mapping[str, Any]) -> bool:
        """Remember the study's latest body; False if there is nothing to do, because only the progress that was written
        here is new."""
        if self._versions.seen(key, body):
            self._bodies[key] = _slim(body)
        return self._echoes.get(key) != version_of(body)

    def remove(self, key: Key, version: int) -> bool:
        """Forget a study that is gone as of that version; False if another of its name has come since."""
        if not self._versions.gone(key, version):
            return False
        self._forget(key)
        return True

    def unfinished(self) -> list[Key]:
        """Every study that has not ended, for which a class may mean something new."""
        return [key for key, body in self._bodies.items() if not _has_ended(body)]

    def class_of(self, key: Key) -> str:
        """The class of a study's last attempt; empty without one, or without the study."""
        body = self._bodies.get(key)
        return str(body["status"].get("className") or "") if body is not None else ""

    def studies(self) -> list[Key]:
        """Every study that is known."""
        return list(self._bodies)

    def _forget(self, key: Key) -> None:
        self._bodies.pop(key, None)
        self._pace.forget(key)
        self._echoes.pop(key, None)
        self._metrics.remove(key)

    def show_none(self) -> None:
        """Drop the metrics of all studies: another operator serves them now."""
        self._metrics.clear()

    async def reconcile(self, key: Key) -> float | None:
        """Bring the study closer to what it asks for; returns the seconds until the next look, if one is due."""
        self._pace.looked(key)
        with metrics.RECONCILE_SECONDS.time(), traces.look(*key) as span:
            study = await self._study(key)
            if study is None:
                return None
            decision = self._decide(key, study)
            if decision.confirm:
                study = await self._read_again(key)
                if study is None:
                    return None
                decision = self._decide(key, study, confirmed=True)
            elif decision.explain is not None:
                why = await self._explain(key, decision.explain)
                decision = self._decide(key, study, explanation=why)
            status = decision.status
            span.set_attributes(
                {"finetune.attempt": status.attempts, "finetune.state": status.state or ""}
            )
            return await self._carry_out(key, study, decision)

    async def _study(self, key: Key) -> FineTuneStudy | None:
        """The study as last seen; None if there is nothing to do for it."""
        body = self._bodies.get(key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return None  # its children are deleted through their owner references
        try:
            return parse_study(body)
        except ManifestError as error:
            # The API server accepted it, so this operator is older than the CRD.
            log.error("study cannot be read", extra={"study": "/".join(key), "error": str(error)})
            await self._say_unreadable(key, body, str(error))
            return None

    async def _say_unreadable(self, key: Key, body: Mapping[str, Any], why: str) -> None:
        try:
            status = StudyStatus.model_validate(body.get("status") or {}, by_alias=True)
        except ValidationError:
            return  # what a newer operator wrote stays as it is
        meta = ObjectMeta.model_validate(body["metadata"], by_alias=True)
        await self._write_status(
            key, meta, status, unreadable(status, meta.generation, _now(), why)
        )

    def _decide(
        self, key: Key, study: FineTuneStudy, explanation: str = "", confirmed: bool = False
    ) -> Decision:
        observed = self._observed(key)
        return decide(study, observed, self._settings_now(), _now(), explanation, confirmed)

    def _observed(self, key: Key) -> Observed:
        return replace(self._store.observed(key), platform=self._platform(key[0]))

    def _settings_now(self) -> Settings:
        """The settings with what the engine `Auto` is for an attempt that begins now."""
        engine = "RayJob" if self._settings.engine != "Job" and self._ray_jobs() else "Job"
        return self._settings.model_copy(update={"auto_engine": engine})

    async def _is_own_fault(self, study: FineTuneStudy) -> bool:
        """Whether an attempt that has not the form the API demands has it without the study's own pod template.

        Everything else may be mended by the platform team. Where a dry run cannot be judged, nobody is to blame.
        """
        if study.spec.cluster.pod_template is None:
            return False
        cluster = study.spec.cluster.model_copy(update={"pod_template": None})
        spec = study.spec.model_copy(update={"cluster": cluster})
        plain = study.model_copy(update={"spec": spec})
        settings = settings_with(
            self._settings_now(), class_of(study, self._platform(study.metadata.namespace or ""))
        )
        attempt = engines.manifests(plain, study.status.attempts + 1, settings)[-1]
        try:
            await self._kube.create(attempt, dry_run=True)
        except KubeError as error:
            about = f"{study.metadata.namespace}/{study.metadata.name}"
            log.warning("a dry run was refused", extra={"study": about, "error": str(error)})
            return False
        return True

    async def _explain(self, key: Key, job: JobView) -> str:
        found = await self._kube.events_of(key[0], job.kind, job.uid)
        return str(found[-1].get("message", "")) if found else UNEXPLAINED

    async def _read_again(self, key: Key) -> FineTuneStudy | None:
        """The study as it is now, with its progress and its last attempt, which the watches may not have reported yet."""
        body, progress = await asyncio.gather(
            self._kube.read(KIND, *key),
            self._kube.read("ConfigMap", key[0], progress_config(key[1])),
        )
        if progress is not None:
            self._store.put(key[0], ConfigView, progress)
        if body is None:
            self._forget(key)
            return None
        self.put(key, body)
        attempt = number((body.get("status") or {}).get("attempts"))
        for kind in KINDS if self._settings.engine != "Job" else ("Job",):
            found = await self._kube.read(kind, key[0], attempt_name(key[1], attempt))
            if found is not None:
                self._remember(key, kind, found)
        return await self._study(key)

    async def _carry_out(self, key: Key, study: FineTuneStudy, decision: Decision) -> float | None:
        for deletion in decision.delete:
            await self._delete(key, deletion)
        if decision.delete_study:
            await self._kube.delete(KIND, *key, study.metadata.uid or "")
            return None
        trouble: KubeError | None = None
        begins = any(manifest["kind"] in KINDS for manifest in decision.create)
        try:
            await self._make(key, decision)
        except (Refused, Forbidden) as error:
            seen, now, why = self._observed(key), _now(), error.message
            if not begins:
                trouble, decision = error, hindered(study, seen, decision, now, why)
            elif isinstance(error, Malformed) and await self._is_own_fault(study):
                decision = refused(study, seen, now, why)
            else:
                trouble, decision = error, forbidden(study, seen, now, why)
        try:
            await self._write_status(key, study.metadata, study.status, decision.status)
        except Refused:
            reopens = study.status.finished and not decision.status.finished
            if not reopens or study.status.last_end is not None:
                raise
            decision = unremembered(study, self._store.observed(key), _now())
            await self._write_status(key, study.metadata, study.status, decision.status)
        stored = self._bodies.get(key, {}).get("status", {})
        if stored.get("retry") != decision.status.retry:  # it would be said at every look
            decision = replace(decision, events=tuple(_but_no_effect(decision.events)))
        manifests = [event_manifest(study, event, _now()) for event in decision.events]
        refusals: list[str] = []
        await _together(*(self._post(manifest, refusals) for manifest in manifests))
        ends = next((why for why in refusals if NAMESPACE_ENDS in why), "")
        if ends:  # nothing else can: the Job controller's Events are refused as well
            for deletion in self._decide(key, study, explanation=ends).delete:
                await self._delete(key, deletion)
        if trouble is not None:
            raise trouble  # it is in the status; the queue tries again
        return decision.again_after

    async def _delete(self, key: Key, deletion: Deletion) -> None:
        if deletion.force:
            await self._fail_pod(key, deletion)
        await self._kube.delete(deletion.kind, key[0], deletion.name, deletion.uid, deletion.force)
        if deletion.kind in KINDS:
            self._store.expect_deletion(key, deletion.uid)

    async def _fail_pod(self, key: Key, deletion: Deletion) -> None:
        """Mark a pod as failed before its forced deletion: its Job keeps it until it has failed."""
        name = deletion.name
        try:
            await self._kube.fail_pod(key[0], name, deletion.uid, NODE_LOST, _NODE_LOST)
        except (Forbidden, Refused) as error:
            # The role may be that of an older chart; nothing else of the study should wait for it.
            about = {"study": "/".join(key), "object": name, "error": str(error)}
            log.warning("cannot mark a pod of a lost node as failed", extra=about)

    async def _make(self, key: Key, decision: Decision) -> None:
        """Apply and create: independent objects at the same time, the Job last."""
        last = [manifest for manifest in decision.apply if manifest["kind"] == "RoleBinding"]
        first = [manifest for manifest in decision.apply if manifest["kind"] != "RoleBinding"]
        before_job = [manifest for manifest in decision.create if manifest["kind"] not in KINDS]
        jobs = [manifest for manifest in decision.create if manifest["kind"] in KINDS]
        await _together(
            *(self._apply(key, manifest) for manifest in first),
            *(self._create(key, manifest) for manifest in before_job),
        )
        for manifest in last:  # the API server looks up its Role
            await self._apply(key, manifest)
        for manifest in jobs:
            await self._create(key, manifest)

    async def _apply(self, key: Key, manifest: dict[str, Any]) -> None:
        """Make a child, or make it as it should be. Raises Forbidden if its name belongs to somebody else's object."""
        kind, meta = manifest["kind"], manifest["metadata"]
        if not self._store.has(key, _VIEWS[kind], meta["name"]):
            try:
                self._remember(key, kind, await self._kube.create(manifest))
                return
            except Exists:
                pass  # created before a restart, the answer was lost, or it has lost its label
        live = await self._recognise(key, kind, meta)
        self._remember(key, kind, await self._kube.update(live, manifest))

    async def _create(self, key: Key, manifest: dict[str, Any]) -> None:
        """Make what never changes. Raises Forbidden if its name belongs to somebody else's object."""
        kind, meta = manifest["kind"], manifest["metadata"]
        try:
            self._remember(key, kind, await self._kube.create(manifest))
        except Exists as error:
            # Created before a restart, or the answer was lost.
            log.info("exists already", extra={"study": "/".join(key), "object": meta["name"]})
            if kind == "Secret":  # nobody may read whose it is; the next try has another name
                raise Conflict(error.status, error.message) from None
            await self._recognise(key, kind, meta)
        except Gone:
            # With engine Auto the watch of RayJobs learns this as well, and the next try makes a Job.
            auto = self._settings.engine == "Auto"
            if kind != "RayJob" or auto or await self._kube.serves(kind):
                raise
            raise Forbidden(404, _UNSERVED) from None

    async def _recognise(self, key: Key, kind: str, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Remember and return the object that has the name of one to make. Raises Forbidden if it is not this study's."""
        found = await self._kube.read(kind, key[0], meta["name"])
        if found is None:
            if _VIEWS.get(kind) is not None:
                self._store.lost(key, _VIEWS[kind], meta["name"], "")
            raise Conflict(409, f"{kind} {meta['name']} existed, and is gone")
        self._remember(key, kind, found)
        if owner(found["metadata"]) != owner(meta):
            raise Forbidden(
                409, f"{kind} {meta['name']} exists and does not belong to this study: delete it"
            )
        return found

    def _remember(self, key: Key, kind: str, body: dict[str, Any]) -> None:
        view = _VIEWS.get(kind)
        if view is not None:  # the watch would report it, but perhaps after the next decision
            self._store.put(key[0], view, body)

    async def _write_status(
        self, key: Key, meta: ObjectMeta, old: StudyStatus, status: StudyStatus
    ) -> None:
        if key in self._bodies:
            self._metrics.show(meta, old, status, _now())
        if status == old:
            return
        self._pace.told(key)
        try:
            answer = await self._apply_what_is_taken(meta, old, status)
            self.put(key, answer)
            if _only_progress(old, status):
                self._echoes[key] = version_of(answer)
        except Gone:
            self._forget(key)
            log.info("study is gone", extra={"study": "/".join(key)})
            return
        if status.state != old.state:
            about = {"study": "/".join(key), "attempt": status.attempts, "state": status.state}
            reconciling = status.condition("Reconciling")
            about["reason"] = reconciling.reason if reconciling is not None else ""
            log.info("study is %s: %s", status.state, status.message, extra=about)

    async def _apply_what_is_taken(
        self, meta: ObjectMeta, old: StudyStatus, status: StudyStatus
    ) -> dict[str, Any]:
        """Write the status; if the API server refuses it, keep the old values of what the refusal may be about.

        Plan and findings fit our schema, but perhaps not the API server's, which may be that of an older release.
        """

        def with_old(*names: str) -> StudyStatus:
            return status.model_copy(update={name: getattr(old, name) for name in names})

        if old.finished and not status.finished:
            # Without the memory of its end the study would go on again and again.
            return await self._apply_status(meta, status)

        def of_first_crd(wanted: StudyStatus) -> StudyStatus:
            return _of_first_crd(old, wanted)

        for wanted in (status, of_first_crd(status), of_first_crd(with_old("plan"))):
            try:
                return await self._apply_status(meta, wanted)
            except Refused as error:
                study = f"{meta.namespace}/{meta.name}"
                log.warning("status refused", extra={"study": study, "error": str(error)})
        return await self._apply_status(
            meta, of_first_crd(with_old("plan", *Findings.model_fields))
        )

    async def _apply_status(self, meta: ObjectMeta, status: StudyStatus) -> dict[str, Any]:
        """Write the status if the study has not changed since this was decided. Raises Conflict if it has."""
        metadata = {
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        }
        manifest = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": metadata,
            "status": status.to_json(),
        }
        return await self._kube.apply(manifest, "status")

    async def _post(self, event: dict[str, Any], refusals: list[str]) -> None:
        try:
            await self._kube.create(event)
        except (Exists, Conflict, Refused, Forbidden) as error:
            # An Event is a courtesy; the status has the facts.
            refusals.append(error.message)
            about = event["involvedObject"]
            study = f"{about['namespace']}/{about['name']}"
            log.warning("Event not posted", extra={"study": study, "error": str(error)})


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _only_progress(old: StudyStatus, new: StudyStatus) -> bool:
    """Whether the two differ at most in the driver's findings and in wording."""
    told = {"conditions", "message", "plan", "best_shown", *Findings.model_fields}
    return _facts(old) == _facts(new) and old == new.model_copy(
        update={name: getattr(old, name) for name in told}
    )


def _of_first_crd(old: StudyStatus, status: StudyStatus) -> StudyStatus:
    """The status without what CRDs before 0.1.0 do not know, beside plan and findings.

    A CRD knows what the stored status `old` has. Whatever else was refused then, a study must not forget its last end,
    or the retry that it has followed.
    """
    running = old.condition("Running") is not None
    conditions = [each for each in status.conditions if running or each.type != "Running"]
    later = (
        "best_shown",
        "workers",
        "retry",
        "class_name",
        "class_generation",
        "storage",
        "last_end",
        "winner",
    )
    unknown = {name: None for name in later if getattr(old, name) is None}
    return status.model_copy(update={"conditions": conditions, **unknown})


def _has_ended(body: Mapping[str, Any]) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or []
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


def _but_no_effect(events: Iterable[StudyEvent]) -> Iterator[StudyEvent]:
    return (event for event in events if event.reason != "NoEffect")


def _facts(status: StudyStatus) -> list[tuple[object, ...]]:
    return [(c.type, c.status, c.reason, c.observed_generation) for c in status.conditions]


async def _together(*requests: Coroutine[Any, Any, None]) -> None:
    """Run all to their end, then raise the first error: none may still run when another task retries."""
    for result in await asyncio.gather(*requests, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _slim(body: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without what only takes up memory."""
    meta = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    annotations = meta.pop("annotations", None) or {}
    if RETRY in annotations:
        meta["annotations"] = {RETRY: annotations[RETRY]}
    return {
        **{key: body[key] for key in ("apiVersion", "kind", "spec") if key in body},
        "metadata": meta,
        "status": dict(body.get("status") or {}),
    }
