"""A namespace with one study, an operator's reconciler, and the API server between them."""

import asyncio

from finetune_api.study import GROUP
from finetune_operator import names
from finetune_operator.children import Manifest
from finetune_operator.observe import CHILDREN, Key, RayJobView, View
from finetune_operator.pace import Pace
from finetune_operator.reconciler import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.store import Store
from tests.api.wrong_manifests import VALID, changed
from tests.operator.fake_api import FakeApi
from tests.operator.studies import SETTINGS, UID, progress

KEY: Key = ("default", "tickets")
LONG_AGO = "2020-01-01T00:00:00Z"
CORE = "/api/v1/namespaces/default"
STUDIES = f"/apis/{GROUP}/v1alpha1/namespaces/default/finetunestudies"
STUDY = f"{STUDIES}/tickets"
JOBS = "/apis/batch/v1/namespaces/default/jobs"
RAY_JOBS = "/apis/ray.io/v1/namespaces/default/rayjobs"
PODS = f"{CORE}/pods"
CONFIGS = f"{CORE}/configmaps"
PLACES: dict[str, str] = {"Job": JOBS, "Pod": PODS, "ConfigMap": CONFIGS, "RayJob": RAY_JOBS}
RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
CHILD_PATHS = {
    "ServiceAccount": f"{CORE}/serviceaccounts/tickets-trainer",
    "spec": f"{CONFIGS}/tickets-spec",
    "progress": f"{CONFIGS}/tickets-progress",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/tickets-trainer",
    "Service": f"{CORE}/services/tickets-trainer",
    "Role": f"{RBAC}/roles/tickets-trainer",
    "RoleBinding": f"{RBAC}/rolebindings/tickets-trainer",
}
MADE_AT = {child: path.rsplit("/", 1)[0] for child, path in CHILD_PATHS.items()}
"""Where each child is created."""

BEFORE_JOB = {**CHILD_PATHS, "Job": f"{JOBS}/tickets-1"}
"""Everything that an attempt needs under a name that somebody may have taken."""


class Cluster:
    """A namespace with one study, an operator's reconciler, and the API server between them.

    What the watches tell, the operator hears when the test says so.
    """

    def __init__(self, api: FakeApi, settings: Settings = SETTINGS) -> None:
        self.api = api
        self.leads = True
        self.ray_jobs = False
        self.store = Store()
        self.pace = Pace(1000, asyncio.get_running_loop().time)
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Begin anew with these settings."""
        kube = self.api.kube(lambda: self.leads)
        self.reconciler = Reconciler(kube, self.store, settings, self.pace, lambda: self.ray_jobs)

    def put_study(self, changes: Manifest | None = None, status: Manifest | None = None) -> None:
        """Make the study, or change it."""
        body = changed(VALID, {"metadata.uid": UID, "metadata.generation": 1, **(changes or {})})
        old = (self.api.get(STUDY) or {}).get("status", {})
        self.api.put(STUDY, {**body, "status": old if status is None else status})

    def put_job(self, attempt: int = 1, kind: str = "Job", owner: str = UID, **more: object) -> str:
        """Make the object of an attempt, or change it; its UID."""
        meta: Manifest = {
            "name": f"tickets-{attempt}",
            "namespace": "default",
            "creationTimestamp": LONG_AGO,
            "labels": {names.STUDY_LABEL: "tickets", names.ATTEMPT_LABEL: str(attempt)},
            "ownerReferences": [{"controller": True, "uid": owner}],
        }
        stored = self.api.put(f"{PLACES[kind]}/tickets-{attempt}", {"metadata": meta, **more})
        return str(stored["metadata"]["uid"])

    def put_pod(self, job_uid: str, phase: str = "Running", **meta: object) -> None:
        """Make pod 0 of an attempt, or change it."""
        labels = {
            names.STUDY_LABEL: "tickets",
            names.UID_LABEL: UID,
            "batch.kubernetes.io/controller-uid": job_uid,
        }
        annotations = {"batch.kubernetes.io/job-completion-index": "0"}
        owner = {"kind": "Job", "name": "tickets-1", "uid": job_uid, "controller": True}
        known: Manifest = {"name": "tickets-1-0", "namespace": "default", "labels": labels}
        known["ownerReferences"] = [owner]
        body = {"metadata": {**known, "annotations": annotations, **meta}}
        self.api.put(f"{PODS}/tickets-1-0", {**body, "status": {"phase": phase}})

    def put_progress(self, job_uid: str, phase: str = "Searching", **more: object) -> None:
        """Write what the driver says."""
        found = self.api.get(f"{CONFIGS}/tickets-progress")
        assert found is not None
        said = progress(phase, job_uid=job_uid, **more).model_dump_json()
        self.api.put(
            f"{CONFIGS}/tickets-progress", {**found, "data": {"progress": said, "term": "1"}}
        )

    def hear(self) -> None:
        """Let the operator know everything that the API server knows."""
        study = self.api.get(STUDY)
        if study is not None:
            self.reconciler.put(KEY, study)
        kinds: list[type[View]] = [*CHILDREN, RayJobView]
        for kind in kinds:
            there = set()
            for body in self.api.all(PLACES.get(kind.kind) or CHILD_PATHS[kind.kind]):
                if names.STUDY_LABEL not in body["metadata"].get("labels", {}):
                    continue  # the watches ask for those that have it
                self.store.put("default", kind, body)
                there.add((KEY, body["metadata"]["name"]))
            for key, name in self.store.names(kind, None) - there:
                self.store.lost(key, kind, name, str(self.api.version))

    async def look(self) -> float | None:
        """Reconcile the study on what was heard; only what is asked from here on counts."""
        self.api.requests.clear()
        return await self.reconciler.reconcile(KEY)

    async def hear_and_look(self) -> float | None:
        """Both."""
        self.hear()
        return await self.look()

    async def begin(self) -> str:
        """Let the operator begin the first attempt; the UID of its Job."""
        self.put_study()
        await self.hear_and_look()
        found = self.api.get(f"{JOBS}/tickets-1")
        assert found is not None
        return str(found["metadata"]["uid"])

    async def run(self) -> str:
        """Let a study get as far as its search; the UID of its Job."""
        uid = await self.begin()
        self.put_pod(uid)
        self.put_progress(uid)
        await self.hear_and_look()
        assert self.status["state"] == "Running"
        return uid

    @property
    def status(self) -> Manifest:
        """The study's status as it is stored."""
        found = self.api.get(STUDY)
        assert found is not None
        status: Manifest = found.get("status", {})
        return status

    def reason(self, condition: str = "Reconciling") -> str:
        """The reason of one of the study's conditions, if it is true."""
        found = [c for c in self.status["conditions"] if c["type"] == condition]
        return found[0]["reason"] if found and found[0]["status"] == "True" else ""

    def statuses(self) -> list[Manifest]:
        """Every status that was written, or should have been."""
        return [request.body["status"] for request in self.api.asked("PATCH", "tickets/status")]

    def made(self) -> list[str]:
        """Names of the Jobs and RayJobs that there are."""
        return sorted(
            body["metadata"]["name"] for at in (JOBS, RAY_JOBS) for body in self.api.all(at)
        )
