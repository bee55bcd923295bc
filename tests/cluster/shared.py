"""One API server for all tests of a run that do not change what is cluster-wide, nor stop it.

Whoever needs it first starts it, and the run ends it. A test has a namespace of its own in it. CRD and policies
are cluster-wide: they are put there once, with the server, and belong to nobody else.
"""

import os
from pathlib import Path

from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.locks import exclusive
from tests.cluster.onenode.processes import Service
from tests.leftovers import RUN

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT / "crds" / "finetunestudies.yaml"
STUDIES = "finetune.dev/v1alpha1/finetunestudies"
CLASS_CRD = ROOT / "crds" / "finetuneclasses.yaml"
CLASSES = "finetune.dev/v1alpha1/finetuneclasses"
CLASS_POLICIES = ROOT / "charts" / "finetune-operator" / "files" / "class-policies.yaml"
CONTROLLERS = (
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "serviceaccount-controller",
)


def shared_server() -> ApiServer:
    """The run's API server with the CRD, started if it does not run. Raises ToolMissing where it cannot be built."""
    folder = _folder()
    with exclusive(folder.with_suffix(".lock")):
        server, served = ApiServer(folder), folder / "served"
        if not served.exists():
            server.start()
            # Before the garbage collector looks which kinds there are, which it does every 30 s.
            server.serve(CRD, STUDIES)
            server.serve(CLASS_CRD, CLASSES)
            serve_class_policies(server)
            served.touch()
        with_controllers = ApiServer(folder, controllers=CONTROLLERS)
        with_controllers.start()
    return with_controllers


def serve_class_policies(server: ApiServer) -> None:
    """Apply the policies of classes, under the names `tests-classes` and `tests-default-class`."""
    text = CLASS_POLICIES.read_text().replace("FULLNAME", "tests")
    server.kubectl("apply", "-f", "-", stdin=text)


def stop_shared_server() -> None:
    """End it, where anybody has started it."""
    for name in ("kube-controller-manager", "kube-apiserver", "etcd"):
        Service(name, (), _folder()).stop()


def _folder() -> Path:
    return Path(os.environ[RUN]) / "apiserver"
