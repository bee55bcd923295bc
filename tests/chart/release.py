"""The chart as a release on a real API server."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_api.manifest import load_yaml
from tests.chart.helm import CHART, NAMESPACE, RELEASE, ROOT, helm, options
from tests.cluster.onenode.apiserver import ApiServer
from tests.needs import ToolMissing, not_run

TEAM = "nlp"
VALUES: dict[str, Any] = {"study.storage": {"claimName": "studies"}}
MODES: dict[str, dict[str, Any]] = {
    "cluster-wide": VALUES,
    "namespaced": {**VALUES, "watch.namespaces": [TEAM]},
}


@contextmanager
def api_server(folder: Path, *arguments: str) -> Iterator[ApiServer]:
    """An API server with the namespaces of the operator and of a team; `arguments` are kube-apiserver's."""
    try:
        started = ApiServer(folder, arguments=arguments)
    except ToolMissing as missing:
        not_run(missing)
    with started:
        for namespace in (NAMESPACE, TEAM):
            started.kubectl("create", "namespace", namespace)
        yield started


def install(server: ApiServer, values: dict[str, Any]) -> None:
    """Install or upgrade the release."""
    # No --wait: there is no node.
    command = ("upgrade", "--install", RELEASE, str(CHART), f"--namespace={NAMESPACE}")
    helm(*command, f"--kubeconfig={server.kubeconfig}", *options(values))


def uninstall(server: ApiServer) -> None:
    """Remove the release; the CRD stays."""
    helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", f"--kubeconfig={server.kubeconfig}")


def groups(namespace: str) -> tuple[str, str]:
    """Groups of the service accounts of a namespace."""
    return ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")


def manifest_list(manifests: Iterable[dict[str, Any]]) -> str:
    """The manifests as one document for kubectl."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})


def study(name: str) -> dict[str, Any]:
    """A study that is right and names no storage."""
    manifest = load_yaml((ROOT / "examples" / "library.yaml").read_text())
    manifest["metadata"] = {"name": name}
    manifest["spec"].pop("storage", None)
    return dict(manifest)
