"""Writes the golden manifests: `python -m tests.operator.regenerate`."""

import secrets
from pathlib import Path
from typing import Any
from unittest.mock import patch

from finetune_api.manifest import dump_yaml, parse_study
from finetune_operator import engines
from finetune_operator.children import children
from finetune_operator.settings import Settings
from tests.api.wrong_manifests import VALID, changed
from tests.operator.studies import SETTINGS, UID

GOLDEN = Path(__file__).parent / "golden"
_TOKEN = "0" * 64

CASES: dict[str, tuple[dict[str, Any], Settings]] = {
    "claim": ({}, SETTINGS),
    "kueue": ({"spec.cluster": {"queueName": "team-a", "priorityClassName": "batch"}}, SETTINGS),
    "volcano": (
        {"spec.cluster": {"queueName": "team-a", "podTemplate": {"spec": {"hostname": "x"}}}},
        SETTINGS.model_copy(update={"queueing": "Volcano"}),
    ),
    "gpus-and-object-store": (
        {
            "spec.storage": {"uri": "s3://bucket/studies", "secretName": "s3"},
            "spec.tracking": {
                "mlflow": {"trackingUri": "http://mlflow.ml:5000", "experiment": "tickets"},
                "secretName": "trackers",
            },
            "spec.cluster": {
                "workers": 4,
                "resourcesPerWorker": {"nvidia.com/mig-3g.40gb": 1, "cpu": 4, "memory": "16Gi"},
                "nodeSelector": {"gpu": "h200"},
                "tolerations": [
                    {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
                ],
                "podTemplate": {
                    "metadata": {"annotations": {"team": "nlp"}},
                    "spec": {
                        "affinity": {
                            "nodeAffinity": {
                                "preferredDuringSchedulingIgnoredDuringExecution": [
                                    {
                                        "weight": 1,
                                        "preference": {
                                            "matchExpressions": [
                                                {"key": "spot", "operator": "DoesNotExist"}
                                            ]
                                        },
                                    }
                                ]
                            }
                        },
                        "topologySpreadConstraints": [
                            {
                                "maxSkew": 1,
                                "topologyKey": "topology.kubernetes.io/zone",
                                "whenUnsatisfiable": "ScheduleAnyway",
                            }
                        ],
                        "containers": [
                            {
                                "name": "trainer",
                                "image": "trainer:ours",
                                "env": [{"name": "HF_TOKEN", "value": "x"}],
                            }
                        ],
                    },
                },
            },
        },
        SETTINGS.model_copy(update={"run_as_user": None}),
    ),
    "ray-job": ({}, SETTINGS.model_copy(update={"engine": "RayJob"})),
    "ray-job-autoscaled": (
        {
            "spec.cluster": {
                "workers": 4,
                "minWorkers": 0,
                "resourcesPerWorker": {"nvidia.com/gpu": 1, "cpu": 4, "memory": "16Gi"},
                "nodeSelector": {"gpu": "h200"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "queueName": "team-a",
            }
        },
        SETTINGS.model_copy(update={"engine": "RayJob", "run_as_user": None}),
    ),
}
"""Name of the golden file → changes to the valid study, and the operator's settings."""


def rendered(name: str) -> str:
    """All objects of the study's first attempt as YAML documents."""
    changes, settings = CASES[name]
    study = parse_study(changed(VALID, {**changes, "metadata.uid": UID}))
    with patch.object(secrets, "token_hex", lambda _: _TOKEN):  # the one random thing in them
        made = [*children(study, settings), *engines.manifests(study, 1, settings)]
    return "---\n".join(dump_yaml(manifest) for manifest in made)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.yaml").write_text(rendered(case))
