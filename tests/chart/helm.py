"""The real `helm` on the chart of this checkout."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.onenode.build import program

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "finetune-operator"
RELEASE = "finetune"
NAMESPACE = "finetune-system"

CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
"""Kinds that the chart may render and that have no namespace."""


def helm(*arguments: str) -> str:
    """What helm prints. Raises ToolMissing if there is no helm, CalledProcessError if it fails."""
    command = [shutil.which("helm") or str(program("helm")), *arguments]
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout


def options(values: dict[str, Any]) -> list[str]:
    """Values as command-line options; a null among them removes a default, as in a values file."""
    return [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]


def render(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The manifests that the chart makes of `values`. Raises CalledProcessError if it refuses them."""
    text = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *options(values or {}))
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def refusal(values: dict[str, Any]) -> str:
    """What helm says about values that it must refuse. Raises AssertionError if it takes them."""
    try:
        render(values)
    except subprocess.CalledProcessError as error:
        return str(error.stderr)
    raise AssertionError(f"helm must refuse {values}")


def of_kind(manifests: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    """The manifests of these kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pod_of(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Spec of the operator's pod."""
    (deployment,) = of_kind(manifests, "Deployment")
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


def environment(manifests: list[dict[str, Any]]) -> dict[str, str]:
    """Environment of the operator's container, without what its pod's fields tell it."""
    (container,) = pod_of(manifests)["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def hooks(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What only `helm test` makes."""
    return [m for m in manifests if "helm.sh/hook" in m["metadata"].get("annotations", {})]
