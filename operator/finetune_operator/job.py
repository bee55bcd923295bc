"""The engine that needs nothing installed: one Indexed Job a study's attempt, pod 0 its Ray head.

The Job is created from this template and never changed afterwards, so an upgraded operator does not
fight the immutable fields of Jobs that its predecessor made.
"""

import secrets
from typing import Any

from finetune_api.study import ClusterSpec, FineTuneStudy, StudySpec
from finetune_operator import names
from finetune_operator.children import Manifest, resolved
from finetune_operator.merge import overlay
from finetune_operator.settings import Settings

EXIT_USER_ERROR = 42
BASE = "/mnt/storage"

_BACKOFF_LIMIT = 100
"""Pod failures of one attempt, disruptions not counted, after which the Job gives up."""

_KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
_VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"

_UNREACHABLE_SECONDS = 60
_GRACE_SECONDS = 30


def manifests(study: FineTuneStudy, attempt: int, settings: Settings) -> list[Manifest]:
    """The objects of one attempt, to be created in this order: Service, Secret, Job."""
    return [_service(study, attempt), _secret(study, attempt), _job(study, attempt, settings)]


def _service(study: FineTuneStudy, attempt: int) -> Manifest:
    """Gives the pods names, before they are ready too."""
    job = names.attempt_name(study.metadata.name, attempt)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(study, names.private_name(study, attempt)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.UID_LABEL: study.metadata.uid, "batch.kubernetes.io/job-name": job},
        },
    }


def _secret(study: FineTuneStudy, attempt: int) -> Manifest:
    """The token without which nobody can use the study's Ray cluster."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(study, names.private_name(study, attempt)),
        "stringData": {"token": secrets.token_hex(32)},
        "immutable": True,
    }


def _job(study: FineTuneStudy, attempt: int, settings: Settings) -> Manifest:
    spec = resolved(study, settings)
    name = names.attempt_name(study.metadata.name, attempt)
    metadata = names.metadata(study, name)
    metadata["labels"][names.ATTEMPT_LABEL] = str(attempt)
    queue = spec.cluster.queue_name
    if queue is not None and settings.queueing == "Kueue":
        metadata["labels"][_KUEUE_QUEUE] = queue
    workers = spec.cluster.workers
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": workers,
            "parallelism": workers,
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            # Per-index limits would end the whole Job, or leave it Running for ever (see docs/architecture.md).
            "backoffLimitPerIndex": 1_000_000,
            "backoffLimit": _BACKOFF_LIMIT,
            "template": _pod_template(study, spec, attempt, settings),
        },
    }


def _failure_rules() -> list[dict[str, Any]]:
    return [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": names.CONTAINER,
                "operator": "In",
                "values": [EXIT_USER_ERROR],
            },
        },
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
    ]


def _pod_template(
    study: FineTuneStudy, spec: StudySpec, attempt: int, settings: Settings
) -> Manifest:
    labels = {"metadata": {"labels": names.labels(study)}}
    template: Any = {
        **labels,
        "spec": {
            "subdomain": names.private_name(study, attempt),
            "restartPolicy": "Never",
            "serviceAccountName": names.account(study.metadata.name),
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": _GRACE_SECONDS,
            "securityContext": _pod_security(settings),
            "nodeSelector": spec.cluster.node_selector,
            "tolerations": _tolerations(spec.cluster),
            "volumes": _volumes(study, spec, attempt),
            "containers": [_container(study, spec, attempt, settings)],
        },
    }
    # Last our own labels again: by them the pods are watched, and taken for this study's.
    given = (_scheduling(spec.cluster, settings), settings.pod_template, spec.cluster.pod_template)
    for over in (*given, labels):
        template = overlay(template, over or {})
    return dict(overlay(template, _told_image(template)))


def _scheduling(cluster: ClusterSpec, settings: Settings) -> Manifest:
    """Priority, and the queue where its scheduler reads it from the pods; Kueue reads it from the Job."""
    template: Manifest = {"spec": {}}
    if cluster.priority_class_name is not None:
        template["spec"]["priorityClassName"] = cluster.priority_class_name
    if cluster.queue_name is not None and settings.queueing == "Volcano":
        template["spec"]["schedulerName"] = "volcano"
        template["metadata"] = {"annotations": {_VOLCANO_QUEUE: cluster.queue_name}}
    return template


def _told_image(template: Any) -> Manifest:
    """What to lay over `template` so that the records know with which image a trial was trained."""
    match template:
        case {"spec": {"containers": [*containers]}}:
            for container in containers:
                match container:
                    case {"name": "trainer", "image": str(image)}:
                        env = [{"name": "FINETUNE_IMAGE", "value": image}]
                        return {"spec": {"containers": [{"name": names.CONTAINER, "env": env}]}}
    return {}


def _pod_security(settings: Settings) -> dict[str, Any]:
    user = settings.run_as_user
    ids = {} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **ids}


def _tolerations(cluster: ClusterSpec) -> list[dict[str, Any]]:
    lost = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": _UNREACHABLE_SECONDS,
        }
        for state in ("not-ready", "unreachable")
    ]
    return [*(toleration.to_json() for toleration in cluster.tolerations), *lost]


def _container(
    study: FineTuneStudy, spec: StudySpec, attempt: int, settings: Settings
) -> dict[str, Any]:
    resources = spec.cluster.resources_per_worker
    container: dict[str, Any] = {
        "name": names.CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python3", "-m", "finetune_trainer.supervisor"],
        "env": _environment(study, spec, attempt),
        "resources": {"requests": resources, "limits": resources} if resources else {},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "study", "mountPath": "/etc/finetune/study", "readOnly": True},
            {"name": "ray", "mountPath": "/etc/finetune/ray", "readOnly": True},
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
        # Without it the study runs all the same, and its status says what the trackers miss.
        found.append({"name": spec.tracking.secret_name, "optional": True})
    return found


def storage_location(study: FineTuneStudy, spec: StudySpec) -> str:
    """The study's own folder: no other study, of whatever name, ever has the same."""
    storage = spec.storage
    if storage is None:
        raise ValueError("spec.storage must be given")  # decide() does not come here without
    root = BASE if storage.uri is None else storage.uri.rstrip("/")
    return f"{root}/{study.metadata.namespace}/{study.metadata.name}/{study.metadata.uid}"


def _environment(study: FineTuneStudy, spec: StudySpec, attempt: int) -> list[dict[str, Any]]:
    job = names.attempt_name(study.metadata.name, attempt)
    service = names.private_name(study, attempt)
    values = {
        "FINETUNE_STUDY_FILE": "/etc/finetune/study/study.json",
        "FINETUNE_STORAGE": storage_location(study, spec),
        "FINETUNE_HEAD": f"{job}-0.{service}.{study.metadata.namespace}.svc",
        "FINETUNE_PROGRESS": names.progress_config(study.metadata.name),
        "FINETUNE_STUDY_UID": study.metadata.uid,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/etc/finetune/ray/token",
        "RAY_TMPDIR": "/tmp/ray",
        "TMPDIR": "/tmp",
        "HOME": "/tmp",
        "USER": "finetune",
        "HF_HOME": "/tmp/huggingface",
        "PYTHONUNBUFFERED": "1",
    }
    if spec.storage is not None and spec.storage.persistent_volume_claim is not None:
        values["FINETUNE_BASE"] = BASE
    fields = {
        "FINETUNE_NAMESPACE": "metadata.namespace",
        "FINETUNE_JOB_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
    }
    return [
        *({"name": key, "value": value} for key, value in values.items()),
        *(
            {"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for key, path in fields.items()
        ),
    ]


def _volumes(study: FineTuneStudy, spec: StudySpec, attempt: int) -> list[dict[str, Any]]:
    token = names.private_name(study, attempt)
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "study", "configMap": {"name": names.spec_config(study.metadata.name)}},
        {"name": "ray", "secret": {"secretName": token, "defaultMode": 0o440}},
    ]
    storage = spec.storage
    if storage is not None and storage.persistent_volume_claim is not None:
        claim = {"claimName": storage.persistent_volume_claim.claim_name}
        volumes.append({"name": "storage", "persistentVolumeClaim": claim})
    return volumes
