"""Where a study trains, and how its training uses the hardware."""

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, GetJsonSchemaHandler
from pydantic.functional_validators import BeforeValidator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from finetune_api.quantities import QUANTITY_PATTERN, is_quantity
from finetune_api.schema import Model, Name, Rule
from finetune_api.spaces import (
    ATOMIC,
)


class Compute(Model):
    """How trials use the hardware: affects speed and memory, not what is learnt."""

    precision: Literal["FP32", "TF32", "BF16", "FP16"] = "FP32"
    """FP32 throughout; or matrix products in TF32 (on a CPU the same as FP32), in BF16, or in FP16 with loss
    scaling (not on a CPU). Weights and optimizer state are always FP32."""

    compile: bool = False
    """Compile the model with `torch.compile`: this takes minutes for the first trial of a worker; later steps are
    faster. The trainer's image needs a C++ compiler; this project's image has none."""

    gradient_checkpointing: bool = False
    """Compute the layers' activations a second time in the backward pass instead of keeping them: about a
    third slower, with far less memory."""


def _quantity(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str) or not is_quantity(value):
        raise PydanticCustomError(
            "quantity", "must be a Kubernetes quantity such as 2, 500m or 16Gi"
        )
    return value


class _QuantitySchema:
    """The JSON schema of a quantity, as Kubernetes' own types publish it."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": QUANTITY_PATTERN,
            "minimum": 0,
            "maxLength": 32,
        }


Quantity: TypeAlias = Annotated[Any, BeforeValidator(_quantity), _QuantitySchema]


class Toleration(Model):
    """A toleration of the study's pods, as in `pod.spec.tolerations`."""

    key: str | None = Field(None, max_length=317)
    """Key of the taints that are tolerated. Default: any."""

    operator: Literal["Exists", "Equal"] | None = None
    """Equal: the taint must have `value`. Exists: it may have any. Default Equal."""

    value: str | None = Field(None, max_length=63)
    """Value of the taints that are tolerated."""

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taints that are tolerated. Default: all."""

    toleration_seconds: int | None = Field(None, ge=0, le=9223372036854775807)
    """NoExecute: seconds for which a pod stays. Default: for ever."""


class ClusterSpec(Model):
    """The Ray cluster of the study. On a laptop only the number of slots counts."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.minWorkers) || self.minWorkers <= self.workers",
            message="minWorkers must be at most workers",
            holds=lambda self: self.min_workers is None or self.min_workers <= self.workers,
            field=".minWorkers",
        ),
    )

    workers: int = Field(1, ge=1, le=64)
    """Pods that train."""

    min_workers: int | None = Field(None, ge=0, le=64)
    """Pods that stay when there is no work for them; the others come and go with the work. Only where KubeRay
    runs the cluster. Default: all of them stay."""

    resources_per_worker: dict[str, Quantity] = Field({}, max_length=16)
    """Resources of each worker pod. Default: the operator's. A trial uses one GPU, or a share of one."""

    trials_per_worker: int = Field(1, ge=1, le=16)
    """Trials that share one worker at the same time."""

    queue_name: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Queue that decides when the pods may run: a LocalQueue of Kueue in the study's namespace, or a queue of
    Volcano, depending on how the operator is set up. Default: none; pods run as soon as there is room."""

    priority_class_name: Name | None = None
    """PriorityClass of the pods; Kueue and Volcano use it as well."""

    node_selector: dict[str, Annotated[str, Field(max_length=63)]] = Field({}, max_length=32)
    tolerations: list[Toleration] = Field([], max_length=32, json_schema_extra=ATOMIC)
    pod_template: dict[str, Any] | None = Field(
        None, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )
    """A PodTemplateSpec merged over the operator's; its container is named `trainer`. Anyone who may create
    a study with a podTemplate can create pods."""

    start_deadline_seconds: int | None = Field(None, ge=60, le=604_800)
    """Seconds after which a pod that has a node, and with it its GPUs, and does not run there (an image, a volume, an
    init container) ends its attempt. The study is then Stalled until it is edited, suspended and resumed, or has a new
    value of the annotation `finetune.dev/retry`. Default: an hour. Pods that wait for a node hold nothing and may wait
    for ever."""

    @property
    def slots(self) -> int:
        """Trials that can train at the same time."""
        return self.workers * self.trials_per_worker

    @property
    def scales(self) -> bool:
        """Whether workers come and go with the work, where KubeRay runs the cluster."""
        return self.min_workers is not None and self.min_workers < self.workers
