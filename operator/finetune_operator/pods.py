"""The pods of a study, whichever engine makes them: their template, environment, volumes and storage."""

from collections.abc import Mapping
from typing import Any

from finetune_api import pods
from finetune_api.stores import study_folder
from finetune_api.study import FineTuneStudy, StudySpec
from finetune_operator import names
from finetune_operator.children import Manifest
from finetune_operator.merge import overlay
from finetune_operator.settings import Settings

BASE = "/mnt/storage"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""Security context of every container."""

TMP = {"name": "tmp", "mountPath": "/tmp"}

_VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"
_UNREACHABLE_SECONDS = 60
_GRACE_SECONDS = 30


def pod_template(
    study: FineTuneStudy,
    spec: StudySpec,
    settings: Settings,
    attempt: int,
    *own: Manifest,
    trains: bool = True,
) -> Manifest:
    """The template of all pods of an attempt, with the engine's `own` parts and the platform's and study's merged over it.

    `trains` says whether trials run in these pods, which are then placed as the study asks. Our labels are set again
    at the end: by them the pods are watched, and recognised as this study's.
    """
    labels = {
        "metadata": {"labels": {**names.labels(study), names.ATTEMPT_LABEL: str(attempt)}},
    }
    inherited = {"metadata": {"labels": names.inherited(study, settings)}}
    template: Any = {
        **labels,
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": names.account(study.metadata.name),
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": _GRACE_SECONDS,
            "securityContext": _pod_security(settings),
            "tolerations": _lost_nodes(),
            "volumes": _volumes(study, spec),
            "containers": [_container(study, spec, settings)],
        },
    }
    asked = (_worker_placement(spec) if trains else {}, _scheduling(spec, settings))
    for over in (
        *own,
        settings.pod_template,
        *asked,
        spec.cluster.pod_template,
        inherited,
        labels,
    ):
        template = overlay(template, over or {})
    return dict(overlay(template, _told_image(template)))


def with_environment(
    values: dict[str, str], fields: dict[str, str] | None = None, **container: Any
) -> Manifest:
    """A part of a template: environment variables by value and by field of the pod, and more of the container."""
    env = [
        *({"name": name, "value": value} for name, value in values.items()),
        *(
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in (fields or {}).items()
        ),
    ]
    return {"spec": {"containers": [{"name": names.CONTAINER, "env": env, **container}]}}


def storage_location(study: FineTuneStudy, spec: StudySpec) -> str:
    """The study's folder."""
    storage, metadata = spec.storage, study.metadata
    if storage is None:
        raise ValueError("spec.storage must be given")  # decide() refuses this earlier
    adopts = spec.on_existing != "Fresh"
    namespace, uid = str(metadata.namespace), str(metadata.uid)
    return study_folder(storage.uri or BASE, namespace, metadata.name, uid, adopts)


def _worker_placement(spec: StudySpec) -> Manifest:
    """Where pods that train may run, and with which resources."""
    cluster = spec.cluster
    resources = cluster.resources_per_worker
    limits = {"requests": resources, "limits": resources} if resources else {}
    return {
        "spec": {
            "nodeSelector": cluster.node_selector,
            "tolerations": [toleration.to_json() for toleration in cluster.tolerations],
            "containers": [{"name": names.CONTAINER, "resources": limits}],
        }
    }


def _scheduling(spec: StudySpec, settings: Settings) -> Manifest:
    """Priority, and the queue where its scheduler reads it from the pods; Kueue reads it from the engine's object."""
    cluster = spec.cluster
    template: Manifest = {"spec": {}}
    if cluster.priority_class_name is not None:
        template["spec"]["priorityClassName"] = cluster.priority_class_name
    if cluster.queue_name is not None and settings.queueing == "Volcano":
        template["spec"]["schedulerName"] = "volcano"
        template["metadata"] = {"annotations": {_VOLCANO_QUEUE: cluster.queue_name}}
    return template


def trainer_of(template: Any) -> Manifest:
    """The container that trains in a pod of `template`; empty if merging left none."""
    match template:
        case {"spec": {"containers": [*containers]}}:
            for container in containers:
                if isinstance(container, Mapping) and container.get("name") == names.CONTAINER:
                    return dict(container)
            return {}
        case _:
            return {}


def _told_image(template: Any) -> Manifest:
    """What to merge over `template` so that the records know which image a trial was trained with."""
    image = trainer_of(template).get("image")
    return with_environment({pods.IMAGE: image}) if isinstance(image, str) else {}


def _pod_security(settings: Settings) -> dict[str, Any]:
    user = settings.run_as_user
    ids = {} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **ids}


def _lost_nodes() -> list[dict[str, Any]]:
    """How long a pod stays bound to a node that does not answer."""
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": _UNREACHABLE_SECONDS,
        }
        for state in ("not-ready", "unreachable")
    ]


def _container(study: FineTuneStudy, spec: StudySpec, settings: Settings) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": names.CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "env": _environment(study, spec),
        "securityContext": RESTRICTED,
        "volumeMounts": [
            TMP,
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "study", "mountPath": "/etc/finetune/study", "readOnly": True},
        ],
    }
    storage = spec.storage
    if storage is not None and storage.persistent_volume_claim is not None:
        container["volumeMounts"].append({"name": "storage", "mountPath": BASE})
    credentials = _credentials(spec)
    if credentials:
        container["envFrom"] = [{"secretRef": secret} for secret in credentials]
    return container


def _credentials(spec: StudySpec) -> list[dict[str, Any]]:
    """The user's Secrets whose keys become environment variables."""
    found: list[dict[str, Any]] = []
    if spec.storage is not None and spec.storage.secret_name is not None:
        found.append({"name": spec.storage.secret_name})
    if spec.tracking is not None and spec.tracking.secret_name is not None:
        # Without it the study still runs, and its status says what the trackers miss.
        found.append({"name": spec.tracking.secret_name, "optional": True})
    return found


def _environment(study: FineTuneStudy, spec: StudySpec) -> list[dict[str, Any]]:
    values = {
        pods.STUDY_FILE: f"/etc/finetune/study/{pods.STUDY_KEY}",
        pods.STORAGE: storage_location(study, spec),
        pods.PROGRESS: names.progress_config(study.metadata.name),
        pods.STUDY_UID: str(study.metadata.uid),
        "TMPDIR": "/tmp",
        "HOME": "/tmp",
        "USER": "finetune",
        "HF_HOME": "/tmp/huggingface",
        "PYTHONUNBUFFERED": "1",
    }
    if spec.storage is not None and spec.storage.persistent_volume_claim is not None:
        values[pods.BASE] = BASE
    retry = names.asked_retry(study)
    if retry:
        values[pods.RETRY] = retry
    made = with_environment(values, {pods.NAMESPACE: "metadata.namespace"})
    env: list[dict[str, Any]] = made["spec"]["containers"][0]["env"]
    return env


def _volumes(study: FineTuneStudy, spec: StudySpec) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "study", "configMap": {"name": names.spec_config(study.metadata.name)}},
    ]
    storage = spec.storage
    if storage is not None and storage.persistent_volume_claim is not None:
        claim = {"claimName": storage.persistent_volume_claim.claim_name}
        volumes.append({"name": "storage", "persistentVolumeClaim": claim})
    return volumes
