"""The engine for clusters with KubeRay: one RayJob per attempt, a head without GPUs, workers that come and go.

KubeRay creates the Ray cluster and its token, submits the driver to it over HTTP (no submitter pod), and looks
after its pods. Retries are ours, not KubeRay's: each is the next attempt, with its own cluster, and resumes
from the records. Like a Job, a RayJob is created once and never changed afterwards.

Based on KubeRay 1.6 and 1.7: `ValidateRayJobSpec` and the RayJob controller in its source.
"""

from finetune_api import pods
from finetune_api.study import FineTuneStudy, StudySpec
from finetune_operator import names
from finetune_operator.children import Manifest, resolved
from finetune_operator.pods import (
    RESTRICTED,
    pod_template,
    trainer_of,
    with_environment,
)
from finetune_operator.settings import Settings

RAY_VERSION = "2.60.0"
"""Version of Ray in the trainer's image, which KubeRay needs to know. (A test compares it with requirements.lock.)"""

ENTRYPOINT = f"python3 -m {pods.DRIVER}"
DRAIN_FILE = "/tmp/finetune-drain"

_IDLE_SECONDS = 60
"""A worker that no trial uses for this long is given back."""

_STOP_SECONDS = "25"
"""How long the driver may take to save when KubeRay stops it."""


def manifests(study: FineTuneStudy, attempt: int, settings: Settings) -> list[Manifest]:
    """The RayJob of one attempt."""
    spec = resolved(study, settings)
    head = (_ray_pod(study, attempt), _head(settings))
    template = pod_template(study, spec, settings, attempt, *head, trains=False)
    cluster = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # No trial runs on the head.
            "rayStartParams": {"num-cpus": "0"},
            "template": template,
        },
        "workerGroupSpecs": [_workers(study, spec, attempt, settings)],
        **_autoscaling(spec, template),
    }
    metadata = names.attempt_metadata(study, spec, attempt, settings)
    if spec.cluster.scales and spec.cluster.queue_name is not None:
        # Kueue counts the resources of an autoscaled cluster only with this annotation.
        metadata["annotations"]["kueue.x-k8s.io/elastic-job"] = "true"
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": ENTRYPOINT,
            "submissionMode": "HTTPMode",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 0,
            "rayClusterSpec": cluster,
        },
    }
    return [job]


def _autoscaling(spec: StudySpec, head: Manifest) -> Manifest:
    """Ray's autoscaler, which KubeRay adds to the `head` beside the trainer, with the same image, environment and mounts."""
    if not spec.cluster.scales:
        return {}
    environment = with_environment({"HOME": "/tmp", "TMPDIR": "/tmp", "USER": "finetune"})
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": _IDLE_SECONDS,
            "securityContext": RESTRICTED,
            "env": environment["spec"]["containers"][0]["env"],
            "volumeMounts": trainer_of(head).get("volumeMounts", []),
        },
    }


def _workers(study: FineTuneStudy, spec: StudySpec, attempt: int, settings: Settings) -> Manifest:
    most = spec.cluster.workers
    fewest = spec.cluster.min_workers if spec.cluster.scales else most
    # KubeRay gives Ray the limits; without any, Ray would count the node's processors.
    parameters = {} if "cpu" in spec.cluster.resources_per_worker else {"num-cpus": "1"}
    own = (
        _ray_pod(study, attempt),
        # Only the driver, on the head, talks to the API server.
        {"spec": {"automountServiceAccountToken": False}},
    )
    return {
        "groupName": "workers",
        "replicas": fewest,  # more come when the driver has prepared the data and asks Ray for slots
        "minReplicas": fewest,
        "maxReplicas": most,
        "rayStartParams": parameters,
        "template": pod_template(study, spec, settings, attempt, *own),
    }


def _head(settings: Settings) -> Manifest:
    resources = settings.head_resources
    values = {
        # Without a GPU in its limits, the head would see all GPUs of its node.
        "NVIDIA_VISIBLE_DEVICES": "void",
        "RAY_JOB_STOP_WAIT_TIME_S": _STOP_SECONDS,
    }
    return with_environment(values, resources={"requests": resources, "limits": resources})


def _ray_pod(study: FineTuneStudy, attempt: int) -> Manifest:
    """What every pod of a RayCluster has: its attempt, and a hook that lets the slots on it save."""
    values = {
        pods.JOB_UID: names.run_id(study.metadata.uid or "", attempt),
        pods.DRAIN_FILE: DRAIN_FILE,
        # Ray's folder is /tmp/ray, where KubeRay's autoscaler expects it.
        "RAY_TMPDIR": "/tmp",
    }
    hook = {"exec": {"command": ["python3", "-m", pods.DRAIN]}}
    return with_environment(values, lifecycle={"preStop": hook})
