"""The chart on a real API server: its rights are enough for the operator, and its CRD outlives it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest import load_yaml
from tests.chart.helm import CHART, NAMESPACE, RELEASE, ROOT, environment, helm, options, render
from tests.cluster.onenode.access import skip_unless_ci
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import ToolMissing

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:finetune-finetune-operator"
GROUPS = ("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}")
TEAM = "nlp"
VALUES = {"study.storage": {"claimName": "studies"}}
MODES = {"cluster-wide": VALUES, "namespaced": {**VALUES, "watch.namespaces": [TEAM]}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    # With this plugin, owner references that block deletion need a right of their own.
    plugin = "--enable-admission-plugins=OwnerReferencesPermissionEnforcement"
    try:
        started = ApiServer(tmp_path_factory.mktemp("apiserver"), arguments=[plugin])
    except ToolMissing as missing:
        skip_unless_ci(missing)
    with started:
        for namespace in (NAMESPACE, TEAM):
            started.kubectl("create", "namespace", namespace)
        yield started


@pytest.fixture(params=MODES)
def values(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Values of a release that is installed for the duration of the test."""
    chosen = MODES[request.param]
    install(server, chosen)
    yield chosen
    helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", f"--kubeconfig={server.kubeconfig}")


def test_rights_are_enough_for_a_study(
    server: ApiServer, values: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "operator.log"
    ports = {"metrics": free_port(), "health": free_port()}
    with running(server, values, ports, log) as operator:
        server.kubectl("apply", f"--namespace={TEAM}", "-f", "-", stdin=study("rights"))
        eventually(operator, log, lambda: children(server) == EXPECTED)
        server.kubectl("patch", *REFERENCE, "--type=merge", '-p={"spec":{"suspend":true}}')
        eventually(operator, log, lambda: state(server) == "Suspended")
        server.kubectl("patch", *REFERENCE, "--type=merge", '-p={"spec":{"suspend":false}}')
        eventually(operator, log, lambda: "job.batch/rights-2" in children(server))
        reasons = server.kubectl(
            "get", "events", f"--namespace={TEAM}", "-o=jsonpath={.items[*].reason}"
        )
        assert "AttemptStarted" in reasons
        assert page(ports["health"], "healthz")
        assert 'finetune_study_trials{name="rights",namespace="nlp"' in page(
            ports["metrics"], "metrics"
        )
    server.kubectl("delete", "jobs,configmaps,services,secrets,serviceaccounts", *OURS)
    server.kubectl("delete", "roles,rolebindings,networkpolicies,events", *OURS)
    server.kubectl("delete", *REFERENCE)
    forbidden = [line for line in log.read_text().splitlines() if "orbidden" in line]
    assert forbidden == []


def test_operator_cannot_read_secrets(server: ApiServer, values: dict[str, Any]) -> None:
    for verb in ("get", "list", "watch", "patch", "update", "delete"):
        assert not may(server, verb, "secrets")
    assert may(server, "create", "secrets")


def test_namespaced_operator_has_no_rights_elsewhere(
    server: ApiServer, values: dict[str, Any]
) -> None:
    namespaced = "watch.namespaces" in values
    assert may(server, "create", "jobs", "default") is not namespaced
    assert may(server, "list", "customresourcedefinitions", "") is not namespaced


def test_crd_and_studies_survive_uninstall_and_are_adopted_again(server: ApiServer) -> None:
    install(server, VALUES)
    server.kubectl("apply", f"--namespace={TEAM}", "-f", "-", stdin=study("survivor"))
    helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", f"--kubeconfig={server.kubeconfig}")
    assert "survivor" in server.kubectl("get", "fts", f"--namespace={TEAM}", "-o=name")
    left = server.kubectl(
        "get",
        "deployments,services,serviceaccounts,clusterroles,clusterrolebindings",
        "--all-namespaces",
        f"--selector=app.kubernetes.io/instance={RELEASE}",
        "-o=name",
    )
    assert left == ""
    install(server, VALUES)
    install(server, {**VALUES, "study.maxFailedAttempts": 7})  # an upgrade
    server.kubectl("delete", "fts", "survivor", f"--namespace={TEAM}")
    helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", f"--kubeconfig={server.kubeconfig}")


REFERENCE = ("fts", "rights", f"--namespace={TEAM}")
OURS = ("--selector=finetune.dev/study=rights", f"--namespace={TEAM}")
EXPECTED = {
    "configmap/rights-progress",
    "configmap/rights-spec",
    "job.batch/rights-1",
    "networkpolicy.networking.k8s.io/rights-trainer",
    "role.rbac.authorization.k8s.io/rights-trainer",
    "rolebinding.rbac.authorization.k8s.io/rights-trainer",
    "secret/rights-1",
    "service/rights-1",
    "serviceaccount/rights-trainer",
}


def install(server: ApiServer, values: dict[str, Any]) -> None:
    # No --wait: there is no node.
    command = ("upgrade", "--install", RELEASE, str(CHART), f"--namespace={NAMESPACE}")
    helm(*command, f"--kubeconfig={server.kubeconfig}", *options(values))


@contextmanager
def running(
    server: ApiServer, values: dict[str, Any], ports: dict[str, int], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The operator with the rights and the settings that the chart gives it."""
    env = {
        **os.environ,
        **environment(render(values)),
        "KUBECONFIG": str(server.kubeconfig_for(ACCOUNT, GROUPS)),
        **{f"FINETUNE_{name.upper()}_PORT": str(port) for name, port in ports.items()},
    }
    command = [sys.executable, "-m", "finetune_operator"]
    with log.open("w") as output:
        operator = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield operator
        finally:
            operator.terminate()
            operator.wait()


def eventually(operator: subprocess.Popen[bytes], log: Path, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert operator.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def children(server: ApiServer) -> set[str]:
    kinds = "configmaps,jobs,networkpolicies,roles,rolebindings,secrets,services,serviceaccounts"
    names = server.kubectl("get", kinds, *OURS, "-o=name").split()
    # Service and Secret carry the beginning of the study's uid.
    return {re.sub("-[0-9a-f]{8}$", "", name) for name in names}


def state(server: ApiServer) -> str:
    return server.kubectl("get", *REFERENCE, "-o=jsonpath={.status.state}")


def study(name: str) -> str:
    manifest = load_yaml((ROOT / "examples" / "library.yaml").read_text())
    manifest["metadata"] = {"name": name}
    manifest["spec"].pop("storage", None)
    return json.dumps(manifest)


def may(server: ApiServer, verb: str, resource: str, namespace: str = TEAM) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": ACCOUNT,
            "groups": list(GROUPS),
            "resourceAttributes": {
                "verb": verb,
                "resource": resource,
                "namespace": namespace,
                "group": {"jobs": "batch", "secrets": ""}.get(resource, "apiextensions.k8s.io"),
            },
        },
    }
    command = ("create", "-f", "-", "-o=jsonpath={.status.allowed}")
    return server.kubectl(*command, stdin=json.dumps(review)) == "true"


def page(port: int, path: str) -> str:
    # A proxy from the environment must not stand between us and this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
        return str(answer.read().decode())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
