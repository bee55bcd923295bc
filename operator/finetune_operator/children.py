"""The children of a study that do not change from attempt to attempt."""

import json
from typing import Any

from finetune_api import pods
from finetune_api.class_rules import with_class
from finetune_api.study import API_VERSION, KIND, FineTuneStudy, StudySpec
from finetune_operator import names
from finetune_operator.merge import overlay
from finetune_operator.names import digest
from finetune_operator.settings import Settings

Manifest = dict[str, Any]

_FROM_KUBERAY: Manifest = {
    "from": [{"namespaceSelector": {}}],  # KubeRay may be installed anywhere
    "ports": [{"port": 8265, "protocol": "TCP"}],
}


def resolved(study: FineTuneStudy, settings: Settings) -> StudySpec:
    """The spec as its class makes it, with the operator's defaults for storage and resources filled in.

    A study that has begun keeps the storage that its records are in.
    """
    spec = study.spec
    if spec.storage is None:
        spec = spec.model_copy(update={"storage": study.status.storage})
    if settings.given is not None:
        spec = with_class(spec, settings.given)
    cluster = spec.cluster
    resources = {**settings.default_resources, **cluster.resources_per_worker}
    return spec.model_copy(
        update={
            "storage": spec.storage or settings.default_storage,
            "cluster": cluster.model_copy(update={"resources_per_worker": resources}),
        }
    )


def children(study: FineTuneStudy, settings: Settings) -> list[Manifest]:
    """Account, rights, network policy, the two ConfigMaps and the Service, in an order in which they can be applied."""
    return [
        _service_account(study),
        spec_config_map(study, settings),
        _progress_config_map(study),
        _network_policy(study, settings),
        *([_service(study)] if settings.engine == "Job" else []),  # KubeRay makes its own
        _role(study),
        _role_binding(study, settings),
    ]


def spec_digest(study: FineTuneStudy) -> str:
    """16 hexadecimal digits that change with what the user wrote.

    The operator's defaults are not included: new ones do not reach running studies.
    """
    return digest(json.dumps(study.spec.to_short_json(), sort_keys=True))


def spec_config_map(study: FineTuneStudy, settings: Settings) -> Manifest:
    """What the driver runs; edits of the budget reach it through this ConfigMap."""
    document = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": study.metadata.name,
            "namespace": study.metadata.namespace,
            "uid": study.metadata.uid,
        },
        # Pods of an attempt keep the image that it began with, which may not know new fields.
        "spec": resolved(study, settings).to_short_json(),
    }
    text = json.dumps(document, sort_keys=True)
    annotations = {names.SPEC_HASH: spec_digest(study), names.DATA_HASH: digest(text)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(
            study, names.spec_config(study.metadata.name), annotations=annotations
        ),
        "data": {pods.STUDY_KEY: text},
    }


def _progress_config_map(study: FineTuneStudy) -> Manifest:
    # Metadata only: the data belong to the driver.
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(study, names.progress_config(study.metadata.name)),
    }


def _service_account(study: FineTuneStudy) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": names.metadata(study, names.account(study.metadata.name)),
    }


def _service(study: FineTuneStudy) -> Manifest:
    """Gives the pods of a Job names, even before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(study, names.account(study.metadata.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.UID_LABEL: study.metadata.uid},
        },
    }


def _role(study: FineTuneStudy) -> Manifest:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": names.metadata(study, names.account(study.metadata.name)),
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": [names.progress_config(study.metadata.name)],
                "verbs": ["get", "patch"],
            }
        ],
    }


def _role_binding(study: FineTuneStudy, settings: Settings) -> Manifest:
    name = names.account(study.metadata.name)
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": names.metadata(study, name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "name": account, "namespace": study.metadata.namespace}
            for account in dict.fromkeys((name, *_named_account(study, settings)))
        ],
    }


def _named_account(study: FineTuneStudy, settings: Settings) -> list[str]:
    """The account that a pod template names, for example one known to a cloud: its pods report progress as well."""
    match overlay(settings.pod_template, study.spec.cluster.pod_template or {}):
        case {"spec": {"serviceAccountName": str(account)}} if account:
            return [account]
    return []


def _network_policy(study: FineTuneStudy, settings: Settings) -> Manifest:
    """Only the study's own pods may connect to its pods, and KubeRay to Ray's dashboard, with the token.

    They may connect to whatever they like, unless their class blocks networks.
    """
    blocked = settings.given.blocked_networks if settings.given is not None else []
    own = {"matchLabels": {names.UID_LABEL: study.metadata.uid}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.metadata(study, names.account(study.metadata.name)),
        "spec": {
            "podSelector": own,
            "policyTypes": ["Ingress", *(["Egress"] if blocked else [])],
            "ingress": [
                {"from": [{"podSelector": own}]},
                *([_FROM_KUBERAY] if settings.engine == "RayJob" else []),
            ],
            **({"egress": _egress(blocked)} if blocked else {}),
        },
    }


def _egress(blocked: list[str]) -> list[Manifest]:
    """To every pod of the cluster, its DNS among them, and to all addresses but those blocked."""
    everything: list[Manifest] = []
    for network, is_v6 in (("0.0.0.0/0", False), ("::/0", True)):
        without = [each for each in blocked if (":" in each) is is_v6]
        if network not in without:
            block = {"cidr": network, **({"except": without} if without else {})}
            everything.append({"ipBlock": block})
    return [{"to": [{"namespaceSelector": {}}]}, *([{"to": everything}] if everything else [])]
