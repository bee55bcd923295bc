"""The node runs pods as a real cluster would: restricted, with names, logs, and our libraries."""

import json
from collections.abc import Iterator

import pytest

from tests.cluster.onenode import images, volumes
from tests.cluster.onenode.access import access
from tests.cluster.onenode.apiserver import ApiServer
from tests.needs import ToolMissing, not_run

pytestmark = pytest.mark.node

NAMESPACE = "onenode-test"
PROBE = """
import os, ssl, urllib.request
import ray, torch, transformers
trust = ssl.create_default_context(cafile="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
answer = urllib.request.urlopen("https://kubernetes.default.svc/version", context=trust)
open("/studies/written", "w").write("by the pod")
print(os.getuid(), answer.status, torch.ones(2).sum().item())
open("/forbidden", "w")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    cluster = access().cluster
    if cluster is None:
        pytest.skip("E2E_KUBECONFIG names a cluster whose node is not ours to test")
    started = cluster.server()
    yield started
    started.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    started.kubectl("delete", "persistentvolume", "--ignore-not-found", *volumes.names(NAMESPACE))


def pod(image: str, claims: volumes.Volumes) -> dict[str, object]:
    mounts = {claims.libraries_claim: images.LIBRARIES, claims.studies_claim: "/studies"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 123456,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "probe",
                    "image": image,
                    "command": ["python3", "-c", PROBE],
                    "env": [{"name": name, "value": "/tmp"} for name in ("HOME", "USER")],
                    "resources": {"requests": {"cpu": "100m"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [
                        {"name": "tmp", "mountPath": "/tmp"},
                        *({"name": name, "mountPath": path} for name, path in mounts.items()),
                    ],
                }
            ],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                *({"name": name, "persistentVolumeClaim": {"claimName": name}} for name in mounts),
            ],
        },
    }


def test_a_restricted_pod_reaches_the_api_and_our_libraries(server: ApiServer) -> None:
    cluster = access().cluster
    assert cluster is not None
    try:
        image = images.provide(cluster.runtime(), "trainer")["trainer"]
    except ToolMissing as missing:
        not_run(missing)
    claims = volumes.provide(server, NAMESPACE)
    server.kubectl("apply", "--filename=-", stdin=json.dumps(pod(image, claims)))
    ended = "--for=jsonpath={.status.phase}=Failed"
    server.kubectl("wait", f"--namespace={NAMESPACE}", ended, "pod/probe", "--timeout=120s")

    log = server.kubectl("logs", f"--namespace={NAMESPACE}", "probe")

    assert "123456 200 2.0" in log
    assert "Read-only file system: '/forbidden'" in log
    assert (claims.studies_folder / "written").read_text() == "by the pod"
