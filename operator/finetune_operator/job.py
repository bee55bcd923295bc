"""The engine that needs nothing installed: one Indexed Job per attempt; pod 0 is its Ray head.

The Job is created from this template and never changed afterwards, so an upgraded operator does not
fight the immutable fields of Jobs that its predecessor made.
"""

import secrets
from typing import Any

from finetune_api import pods
from finetune_api.study import FineTuneStudy
from finetune_operator import names
from finetune_operator.children import Manifest, resolved
from finetune_operator.pods import pod_template, with_environment
from finetune_operator.settings import Settings

_BACKOFF_LIMIT = 100
"""Pod failures of one attempt, apart from disruptions, after which the Job gives up."""


def manifests(study: FineTuneStudy, attempt: int, settings: Settings) -> list[Manifest]:
    """The objects of one attempt, to be created in this order: a Secret with a new token and name, and the Job."""
    token = names.token(study.metadata.name, attempt)
    return [_secret(study, token), _job(study, attempt, settings, token)]


def _secret(study: FineTuneStudy, name: str) -> Manifest:
    """The token without which nobody can use the attempt's Ray cluster."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(study, name),
        "stringData": {"token": secrets.token_hex(32)},
        "immutable": True,
    }


def _job(study: FineTuneStudy, attempt: int, settings: Settings, token: str) -> Manifest:
    spec = resolved(study, settings)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": names.attempt_metadata(study, spec, attempt, settings),
        "spec": {
            "completionMode": "Indexed",
            "completions": spec.cluster.workers,
            "parallelism": spec.cluster.workers,
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            # Per-index limits would end the whole Job, or leave it Running for ever (see docs/architecture.md).
            "backoffLimitPerIndex": 1_000_000,
            "backoffLimit": _BACKOFF_LIMIT,
            "template": pod_template(study, spec, settings, attempt, _own(study, attempt, token)),
        },
    }


def _failure_rules() -> list[dict[str, Any]]:
    return [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": names.CONTAINER,
                "operator": "In",
                "values": [pods.EXIT_USER_ERROR],
            },
        },
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
    ]


def _own(study: FineTuneStudy, attempt: int, secret: str) -> Manifest:
    """What only the pods of a Job have: our supervisor, the address of their head, the token in `secret`."""
    job = names.attempt_name(study.metadata.name, attempt)
    service = names.account(study.metadata.name)
    values = {
        pods.HEAD: f"{job}-0.{service}.{study.metadata.namespace}.svc",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/etc/finetune/ray/token",
        "RAY_TMPDIR": "/tmp/ray",
    }
    fields = {pods.JOB_UID: "metadata.labels['batch.kubernetes.io/controller-uid']"}
    part = with_environment(
        values,
        fields,
        command=["python3", "-m", pods.SUPERVISOR],
        volumeMounts=[{"name": "ray", "mountPath": "/etc/finetune/ray", "readOnly": True}],
    )
    token = {"name": "ray", "secret": {"secretName": secret, "defaultMode": 0o440}}
    part["spec"] |= {"subdomain": service, "volumes": [token]}
    return part
