"""The chart on a real API server: its rights are enough for the operator, and its CRD outlives it."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chart.helm import NAMESPACE, RELEASE, environment, hooks, render
from tests.chart.release import MODES, TEAM, VALUES, groups, install, study, uninstall
from tests.cluster.loopback import free_port, page
from tests.cluster.onenode.apiserver import ApiServer

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:finetune-finetune-operator"
GROUPS = groups(NAMESPACE)
OPTIONAL = {
    "replicas": 3,
    "metrics.dashboard.enabled": True,
    "test": {"enabled": True, "namespace": TEAM, "study": {"task": "SingleLabel"}},
}


def test_rights_are_enough_for_a_study(
    server: ApiServer, values: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "operator.log"
    ports = {"metrics": free_port(), "health": free_port()}
    with running(server, values, ports, log) as operator:
        server.kubectl("apply", f"--namespace={TEAM}", "-f", "-", stdin=json.dumps(study("rights")))
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
        metrics = page(ports["metrics"], "metrics")
        assert 'finetune_study_trials{name="rights",namespace="nlp"' in metrics
        assert 'finetune_api_requests_total{code="201",verb="create"}' in metrics
        assert 'finetune_watch_restarts_total{kind="Job"} 0.0' in metrics
        assert "finetune_leader 1.0" in metrics
    server.kubectl("delete", "jobs,configmaps,services,secrets,serviceaccounts", *OURS)
    server.kubectl("delete", "roles,rolebindings,networkpolicies,events", *OURS)
    server.kubectl("delete", *REFERENCE)
    # An API server that has just been told of a kind refuses its owner references for a while, whatever the rights.
    new = "cannot find RESTMapping"
    lines = log.read_text().splitlines()
    forbidden = [line for line in lines if "orbidden" in line and new not in line]
    assert forbidden == []


def test_operator_cannot_read_secrets(server: ApiServer, values: dict[str, Any]) -> None:
    for verb in ("get", "list", "watch", "patch", "update", "delete"):
        assert not may(server, verb, "secrets")
    assert may(server, "create", "secrets")


def test_operator_may_renew_its_own_lease_only(server: ApiServer, values: dict[str, Any]) -> None:
    own, others = "finetune-finetune-operator", "kube-scheduler"
    for verb in ("get", "update"):
        assert may(server, verb, "leases", NAMESPACE, own)
        assert not may(server, verb, "leases", NAMESPACE, others)
        assert not may(server, verb, "leases", "kube-system", own)
    for verb in ("delete", "patch", "list", "watch"):
        assert not may(server, verb, "leases", NAMESPACE, own)


def test_namespaced_operator_has_no_rights_elsewhere(
    server: ApiServer, values: dict[str, Any]
) -> None:
    namespaced = "watch.namespaces" in values
    assert may(server, "create", "jobs", "default") is not namespaced
    assert may(server, "list", "customresourcedefinitions", "") is not namespaced


@pytest.mark.parametrize("mode", MODES)
def test_api_server_takes_every_object_that_needs_no_foreign_kind(
    server: ApiServer, mode: str
) -> None:
    values = {**MODES[mode], **OPTIONAL, "policy.enabled": mode == "cluster-wide"}
    install(server, values)
    made = render(values)
    for manifest in made:
        if manifest not in hooks(made):
            where = manifest["metadata"].get("namespace", "")
            server.kubectl("get", manifest["kind"], manifest["metadata"]["name"], "-n", where)
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    server.kubectl("label", "namespace", NAMESPACE, restricted, "--overwrite")
    for manifest in sorted(hooks(made), key=lambda m: m["kind"] == "Pod"):
        how = ["--dry-run=server"] if manifest["kind"] == "Pod" else []
        server.kubectl("apply", *how, "-f", "-", stdin=json.dumps(manifest))
    for manifest in hooks(made):
        place = ("-n", manifest["metadata"]["namespace"], "--ignore-not-found")
        server.kubectl("delete", manifest["kind"], manifest["metadata"]["name"], *place)
    uninstall(server)


def test_crd_and_studies_survive_uninstall_and_are_adopted_again(server: ApiServer) -> None:
    install(server, VALUES)
    server.kubectl("apply", f"--namespace={TEAM}", "-f", "-", stdin=json.dumps(study("survivor")))
    uninstall(server)
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
    uninstall(server)


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
    "service/rights-trainer",
    "serviceaccount/rights-trainer",
}


@contextmanager
def running(
    server: ApiServer, values: dict[str, Any], ports: dict[str, int], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The operator with the rights and the settings that the chart gives it."""
    env = {
        **os.environ,
        **environment(render(values)),
        "FINETUNE_METRICS_ACCESS": "Open",  # tests/chart/test_metrics_access.py is about whom they are for
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
    deadline = time.monotonic() + 240
    while not done():
        assert operator.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def children(server: ApiServer) -> set[str]:
    kinds = "configmaps,jobs,networkpolicies,roles,rolebindings,secrets,services,serviceaccounts"
    names = server.kubectl("get", kinds, *OURS, "-o=name").split()
    return {re.sub("-[0-9a-f]{16}$", "", name) for name in names}  # the Secret's own


def state(server: ApiServer) -> str:
    return server.kubectl("get", *REFERENCE, "-o=jsonpath={.status.state}")


def may(server: ApiServer, verb: str, resource: str, namespace: str = TEAM, name: str = "") -> bool:
    groups = {"jobs": "batch", "secrets": "", "leases": "coordination.k8s.io"}
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
                "name": name,
                "group": groups.get(resource, "apiextensions.k8s.io"),
            },
        },
    }
    command = ("create", "-f", "-", "-o=jsonpath={.status.allowed}")
    return server.kubectl(*command, stdin=json.dumps(review)) == "true"
