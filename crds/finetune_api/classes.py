"""The FineTuneClass resource: what the platform team decides for studies, so that users need not write it."""

import re
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from finetune_api.cluster import Quantity, Toleration
from finetune_api.locations import Location
from finetune_api.schema import Model, Name, Rule
from finetune_api.spaces import ATOMIC
from finetune_api.stores import Storage
from finetune_api.study import ObjectMeta

CLASS_KIND = "FineTuneClass"
CLASS_PLURAL = "finetuneclasses"
CLASS_LABEL = "finetune.dev/class"
"""Label of a namespace: the class of its studies that name none."""

Names: TypeAlias = Annotated[list[Name], Field(max_length=64, json_schema_extra=ATOMIC)]
Locations: TypeAlias = Annotated[list[Location], Field(max_length=64, json_schema_extra=ATOMIC)]
LabelKey: TypeAlias = Annotated[
    str,
    Field(
        min_length=1,
        max_length=317,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
    ),
]
Cidr: TypeAlias = Annotated[
    str, Field(min_length=3, max_length=64, pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$")
]

_RESERVED = (
    r"^(([^/]*[.-])?(kubernetes\.io|k8s\.io|argoproj\.io|fluxcd\.io|finetune\.dev|ray\.io|volcano\.sh)/.*"
    r"|job-name|controller-uid)$"
)


def _reserved(spec: Any) -> list[tuple[str, str]]:
    """Which of the labels to inherit mean something to others."""
    return [
        (
            f".labels[{number}]",
            f"must not be a label that Kubernetes, a queue, a GitOps tool or this operator sets (got {label})",
        )
        for number, label in enumerate(spec.labels)
        if re.search(_RESERVED, label)
    ]


class Limits(Model):
    """The most that one study may ask for. What a study leaves out is at most this as well."""

    workers: int | None = Field(None, ge=1, le=64)
    """Pods that train (`cluster.workers`)."""

    gpus: int | None = Field(None, ge=0, le=4096)
    """GPUs of all workers together: limits whose name ends in `gpu`, and MIG slices of NVIDIA."""

    resources_per_worker: dict[str, Quantity] = Field({}, max_length=16)
    """Each resource of a worker."""

    trials: int | None = Field(None, ge=1, le=10000)
    """Trials (`budget.maxTrials`)."""

    parallel_trials: int | None = Field(None, ge=1, le=1024)
    """Trials that train at the same time (`budget.maxParallelTrials`)."""

    duration_seconds: int | None = Field(None, ge=1, le=31536000)
    """Seconds of searching (`budget.maxDurationSeconds`)."""

    gpu_hours: float | None = Field(None, gt=0, le=1000000)
    """GPU hours of training (`budget.maxGpuHours`)."""


class Allowed(Model):
    """What studies may name. A list that is unset allows everything, an empty one nothing."""

    pod_template: Literal["Allow", "Deny"] = "Deny"
    """Whether studies may have a `cluster.podTemplate`. It can undo most of what this class says: it can name any image,
    account and Secret of its namespace."""

    placement: Literal["Allow", "Deny"] = "Allow"
    """Whether studies may have a `cluster.nodeSelector` and `cluster.tolerations` of their own."""

    queue_names: Names | None = None
    """Values of `cluster.queueName`."""

    priority_class_names: Names | None = None
    """Values of `cluster.priorityClassName`."""

    claims: Names | None = None
    """PersistentVolumeClaims for `storage`."""

    stores: Locations | None = None
    """Values of `storage.uri`."""

    secret_names: Names | None = None
    """Secrets for `storage.secretName` and `tracking.secretName`."""

    hub_models: Names | None = None
    """Models of the hub, such as `answerdotai/ModernBERT-base`; `answerdotai/` stands for all of an organisation."""

    hub_datasets: Names | None = None
    """Data sets of the hub, likewise."""

    data_roots: Locations | None = None
    """Where data, models and earlier studies may be: a study in the namespace `ml` may read what is below
    `<root>/ml/`. The class's own storage and its `stores` are such roots too. Without the list they may be anywhere that
    the credentials of the pods reach."""

    shared_roots: Locations = Field([])
    """Where they may be for every namespace: below `<root>/`."""

    endpoints: Names = Field([])
    """Hosts, as `host` or `host:port`, that locations and trackers may name: in `endpoint_override`, in `http://` and
    `hdfs://`, in `tracking.mlflow`. `*` allows all. This is no wall: the keys of a Secret can name a host too;
    `blockedNetworks` is one, where NetworkPolicies are enforced."""


class ClassSpec(Model):
    """What studies of the class get, and what they may ask for."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"self.labels.all(l, !l.matches(r'{_RESERVED}'))",
            message="labels must not be those that Kubernetes, a queue, a GitOps tool or this operator sets",
            holds=lambda self: not _reserved(self),
            each=_reserved,
            field=".labels",
        ),
    )

    default: bool = False
    """Use this class for studies that name none, in namespaces that name none (label `finetune.dev/class`). Only one
    class may be the default."""

    image: str | None = Field(None, min_length=1, max_length=512)
    """Image of the trainer. Default: the operator's."""

    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """Default: the operator's."""

    image_pull_secrets: Names = Field([])
    """Secrets in the study's namespace to pull images with."""

    engine: Literal["Auto", "Job", "RayJob"] | None = None
    """What runs the Ray cluster. RayJob and Auto need the chart's value `study.engine` to be one of the two.
    Default: the operator's."""

    resources_per_worker: dict[str, Quantity] = Field({}, max_length=16)
    """Resources of a worker, unless a study asks for others (`cluster.resourcesPerWorker`)."""

    node_selector: dict[str, Annotated[str, Field(max_length=63)]] = Field({}, max_length=32)
    """Labels that nodes must have. A study can only add to them."""

    tolerations: list[Toleration] = Field([], max_length=32, json_schema_extra=ATOMIC)
    """Added to those of the study."""

    queue_name: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Queue of studies that name none."""

    priority_class_name: Name | None = None
    """PriorityClass of studies that name none."""

    storage: Storage | None = None
    """Storage of studies that name none. Each keeps its files below `<namespace>/<study>`."""

    environment: dict[str, Annotated[str, Field(max_length=1024)]] = Field({}, max_length=64)
    """Environment variables of the trainer, such as `HF_ENDPOINT`."""

    price_per_gpu_hour: float | None = Field(None, gt=0, le=1000000)
    """Price of a GPU hour, for studies that give none."""

    pod_template: dict[str, Any] | None = Field(
        None, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )
    """A PodTemplateSpec merged over the operator's, and below a study's own; its container is named `trainer`."""

    labels: list[LabelKey] = Field([], max_length=32, json_schema_extra=ATOMIC)
    """Labels of a study that its Job and pods get too, for tools that account for costs."""

    blocked_networks: list[Cidr] = Field([], max_length=32, json_schema_extra=ATOMIC)
    """Networks that pods of studies cannot connect to, such as `169.254.0.0/16`, where NetworkPolicies are enforced.
    Identities that clouds give to pods may need link-local addresses."""

    without_texts: bool | None = None
    """Reports of studies show no texts of test rows, whatever the studies say (`artifacts.texts`). Models, tokenizers and
    `results/attributions.jsonl` are what they are."""

    limits: Limits = Limits()
    allowed: Allowed = Allowed()


class FineTuneClass(Model):
    """What the platform team decides for the studies that use it: images, resources, storage, limits."""

    api_version: Literal["finetune.dev/v1alpha1"]
    kind: Literal["FineTuneClass"]
    metadata: ObjectMeta
    spec: ClassSpec = ClassSpec()
