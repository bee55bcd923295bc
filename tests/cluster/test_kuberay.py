"""The engine RayJob on a real API server: KubeRay itself takes what is rendered, and the study follows it.

KubeRay's own controller runs where its rules are the question; where its further life is, which needs a node,
the tests write what it would write.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kuberay import controller, serve
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.processes import Service
from tests.cluster.operator_process import OperatorProcess, Studies, until

_RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


@pytest.fixture(scope="module")
def served(server: ApiServer) -> ApiServer:
    """The API server with KubeRay's kinds."""
    serve(server)
    return server


@pytest.fixture
def operator(served: ApiServer, tmp_path: Path) -> Iterator[OperatorProcess]:
    process = OperatorProcess(served, tmp_path / "operator.log", FINETUNE_ENGINE="Auto")
    process.start()
    yield process
    process.stop()


@pytest.fixture
def kuberay(served: ApiServer, tmp_path: Path) -> Iterator[Service]:
    """KubeRay's controller, as it is released."""
    service = controller(served.kubeconfig, tmp_path)
    service.start()
    yield service
    service.stop()


@pytest.mark.parametrize(
    ("name", "cluster"),
    [
        ("plain", {"workers": 2}),
        (
            "scaled",
            {
                "workers": 3,
                "minWorkers": 1,
                "resourcesPerWorker": {"nvidia.com/gpu": 1, "cpu": 4, "memory": "16Gi"},
                "nodeSelector": {"gpu": "h200"},
            },
        ),
        ("a" * 40, {"workers": 1, "priorityClassName": "system-node-critical"}),
    ],
    ids=["plain", "scaled", "longest"],
)
def test_kuberay_makes_restricted_pods(
    name: str,
    cluster: dict[str, Any],
    operator: OperatorProcess,
    kuberay: Service,
    studies: Studies,
) -> None:
    studies.kubectl("label", "namespace", studies.namespace, _RESTRICTED)
    if "priorityClassName" in cluster:
        cluster = {**cluster, "priorityClassName": priority(studies)}
    studies.apply(name, cluster=cluster)

    def pods() -> list[dict[str, Any]]:
        job = studies.get("rayjob", f"{name}-1")
        said = job.get("status", {})
        assert said.get("jobDeploymentStatus") != "ValidationFailed", said
        found = studies.all("pods")
        workers = cluster.get("minWorkers", cluster["workers"])  # nobody asks Ray for more
        return found if len(found) == 1 + workers else []

    made = until("all pods", pods, 60)
    heads = [pod for pod in made if pod["metadata"]["labels"]["ray.io/node-type"] == "head"]
    assert len(heads) == 1
    for pod in made:
        assert pod["metadata"]["labels"]["finetune.dev/study"] == name
        (trainer,) = (c for c in pod["spec"]["containers"] if c["name"] == "trainer")
        names = {variable["name"] for variable in trainer["env"]}
        assert {"RAY_AUTH_TOKEN", "FINETUNE_STORAGE", "FINETUNE_JOB_UID"} <= names
        mounted = any(v["name"].startswith("kube-api-access") for v in pod["spec"]["volumes"])
        assert mounted == (pod in heads)
    containers = {container["name"] for container in heads[0]["spec"]["containers"]}
    assert ("autoscaler" in containers) == ("minWorkers" in cluster)
    until("Starting", lambda: studies.state(name) == "Starting")

    studies.kubectl("patch", "fts", name, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    until("no RayJob", lambda: not studies.all("rayjobs"), 60)
    until("no pods", lambda: not studies.all("pods"), 60, meanwhile=studies.remove_pods)
    until("Suspended", lambda: studies.state(name) == "Suspended")


def priority(studies: Studies) -> str:
    """A PriorityClass for the test."""
    manifest = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "batch"},
        "value": 5,
    }
    studies.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    return "batch"


def head(studies: Studies, attempt: int) -> str:
    """Make the head pod of an attempt, running, as KubeRay and kubelet would."""
    job = until("the RayJob", lambda: studies.get("rayjob", f"tickets-{attempt}"))
    template = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    name = f"tickets-{attempt}-head"
    labels = {**template["metadata"]["labels"], "ray.io/node-type": "head"}
    meta = {**template["metadata"], "name": name, "labels": labels}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
    studies.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    patch = json.dumps({"status": {"phase": "Running"}})
    studies.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)
    return name


def say(studies: Studies, attempt: int, **status: str) -> None:
    """Write the status of a RayJob as KubeRay would."""
    patch = json.dumps({"status": status})
    studies.kubectl(
        "patch", "rayjob", f"tickets-{attempt}", "--subresource=status", "--type=merge", "-p", patch
    )


def report(studies: Studies, attempt: int, phase: str, **more: Any) -> None:
    uid = studies.get("fts", "tickets")["metadata"]["uid"]
    studies.report("tickets", "", phase, jobUid=f"{uid}/{attempt}", **more)


def test_study_goes_on_in_another_cluster_and_completes(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    pod = head(studies, 1)
    say(studies, 1, jobDeploymentStatus="Running", jobStatus="RUNNING")
    report(studies, 1, "Searching")
    until("Running", lambda: studies.state("tickets") == "Running")

    say(studies, 1, jobDeploymentStatus="Failed", jobStatus="FAILED", reason="AppFailed")
    until("no RayJob", lambda: not studies.all("rayjobs"))
    until("Pending: its pod is still there", lambda: studies.state("tickets") == "Pending")
    operator.kill()
    operator.start()
    studies.kubectl("delete", "pod", pod, "--force", "--grace-period=0")

    head(studies, 2)
    say(studies, 2, jobDeploymentStatus="Running", jobStatus="RUNNING")
    report(studies, 2, "Searching")
    until("Running", lambda: studies.state("tickets") == "Running")
    report(studies, 2, "Finished", reason="SearchFinished")
    say(studies, 2, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    until("Complete", lambda: studies.state("tickets") == "Complete")
    assert studies.get("fts", "tickets")["status"]["attempts"] == 2
    assert not studies.all("jobs")


def test_what_kuberay_refuses_fails_the_study(operator: OperatorProcess, studies: Studies) -> None:
    studies.apply("tickets")
    until("the RayJob", lambda: studies.get("rayjob", "tickets-1"))
    say(
        studies,
        1,
        jobDeploymentStatus="ValidationFailed",
        reason="ValidationFailed",
        message="worker group without containers",
    )
    until("Failed", lambda: studies.state("tickets") == "Failed")
    failed = studies.condition("tickets", "Failed")
    assert failed["reason"] == "InvalidPodTemplate"
    assert "worker group without containers" in failed["message"]


def test_auto_takes_what_is_served_when_the_operator_starts(
    served: ApiServer, operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("first")
    until("a RayJob", lambda: studies.get("rayjob", "first-1"))
    operator.stop()
    served.kubectl("delete", "crd", "rayjobs.ray.io")
    until("RayJobs to be forgotten", lambda: not served_now(served), 60)
    operator.start()
    studies.apply("second")
    until("a Job", lambda: studies.get("job", "second-1"), 60)


def served_now(server: ApiServer) -> bool:
    return "rayjobs" in server.kubectl("api-resources", "--api-group=ray.io", "-o", "name")
