"""KubeRay as it is released: its CustomResourceDefinitions and its controller."""

from pathlib import Path

from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import program, source
from tests.cluster.onenode.processes import Service

KINDS = ("rayclusters", "rayjobs", "rayservices", "raycronjobs")


def crd(kind: str) -> Path:
    """The CustomResourceDefinition of one of KINDS."""
    module = source("kuberay", "github.com/ray-project/kuberay/ray-operator")
    return module / "config/crd/bases" / f"ray.io_{kind}.yaml"


def serve(server: ApiServer) -> None:
    """Have the API server know KubeRay's kinds."""
    for kind in KINDS:
        server.serve(crd(kind), f"ray.io/v1/{kind}")


def controller(kubeconfig: Path, folder: Path) -> Service:
    """KubeRay's controller beside the cluster: it reaches the pods' dashboards through the API server."""
    command = [
        str(program("ray-operator")),
        f"--kubeconfig={kubeconfig}",
        "--enable-leader-election=false",
        "--use-kubernetes-proxy",
        "--metrics-addr=127.0.0.1:0",
        "--health-probe-bind-address=127.0.0.1:0",
    ]
    return Service("ray-operator", command, folder)
