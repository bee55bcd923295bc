"""What the platform team decides, read from the operator's environment."""

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from finetune_api.classes import ClassSpec
from finetune_api.cluster import Quantity
from finetune_api.schema import Model
from finetune_api.stores import Storage


class Settings(Model):
    """The operator's settings; each field is an environment variable (see `read`)."""

    trainer_image: str = "finetune-trainer:latest"
    image_pull_policy: str = "IfNotPresent"
    namespaces: tuple[str, ...] = ()
    """Namespaces to watch; empty watches all."""

    default_storage: Storage | None = None
    default_resources: dict[str, Quantity] = Field({})
    pod_template: dict[str, Any] = Field({})
    """Merged over every study's pods, below what the study itself says about them."""

    engine: Literal["Auto", "Job", "RayJob"] = "Job"
    """What runs a study's Ray cluster: a Kubernetes Job, or KubeRay's RayJob. Auto takes RayJob where it is served."""

    head_resources: dict[str, Quantity] = Field({"cpu": 1, "memory": "4Gi"})
    """Resources of the head of a RayJob: the driver, the records and the preparation of the data."""

    queueing: Literal["Kueue", "Volcano"] = "Kueue"
    """The system whose queues studies name."""

    run_as_user: int | None = 65532
    """User and group id of study pods; None leaves it to the cluster (OpenShift)."""

    max_failed_attempts: int = Field(5, ge=1)
    """Attempts in a row without a result after which a study fails."""

    progress_per_second: float = Field(50.0, gt=0)
    """Statuses with nothing new but progress, over all studies, per second. More of them wait, to spare the API server."""

    lease: str = Field("", pattern=r"^(|[^/]+/[^/]+)$")
    """Namespace/name of the Lease whose holder acts; empty: this is the only operator."""

    identity: str = ""
    """Identity of this operator among those that share the Lease; empty: generated."""

    metrics_port: int = Field(8080, ge=0, le=65535)
    """0: any free port."""

    metrics_access: Literal["Authenticated", "Open", "Off"] = "Authenticated"
    """Who may read the metrics. Authenticated: over TLS, whom the API server lets; Open: everybody; Off: nobody."""

    metrics_certificate: str = ""
    """Folder with tls.crt and tls.key for them; empty: a certificate that the process makes."""

    health_port: int = Field(8081, ge=0, le=65535)
    """0: none, for operators that are not probed."""

    auto_engine: Literal["Job", "RayJob"] = "Job"
    """Not of the environment: what `Auto` stands for at this moment."""

    given: ClassSpec | None = None
    """Not of the environment: the class of the study that is looked at."""


_FOUND = {"auto_engine", "given"}
_JSON = {
    *("default_storage", "default_resources", "head_resources", "pod_template", "run_as_user"),
    *("max_failed_attempts", "progress_per_second", "metrics_port", "health_port"),
}


def read(env: Mapping[str, str] = os.environ) -> Settings:
    """Settings from `FINETUNE_<FIELD>` variables. Raises ValueError naming the variable that is wrong."""
    values: dict[str, Any] = {}
    for name in Settings.model_fields.keys() - _FOUND:
        variable = f"FINETUNE_{name.upper()}"
        text = env.get(variable, "")
        if not text:
            continue
        try:
            if name in _JSON:
                values[name] = json.loads(text)
            elif name == "namespaces":
                values[name] = tuple(part.strip() for part in text.split(",") if part.strip())
            else:
                values[name] = text
        except ValueError as error:
            raise ValueError(f"{variable} must be JSON or a number (got {text!r})") from error
    return Settings.model_validate(values)
