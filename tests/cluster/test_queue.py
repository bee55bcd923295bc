"""A study in a queue: held, let run, evicted, let run again; the queue's fields are never fought over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kuberay import controller, serve
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.cluster.queue import LABEL, Queue

OPERATOR = "operator"


@pytest.fixture
def operator(server: ApiServer, tmp_path: Path) -> Iterator[OperatorProcess]:
    """Under a name of its own: the queue sees who writes."""
    kubeconfig = server.kubeconfig_for(OPERATOR, ["system:masters"])
    process = OperatorProcess(server, tmp_path / "operator.log", kubeconfig)
    process.start()
    yield process
    process.stop()


@pytest.fixture
def queue(server: ApiServer) -> Iterator[Queue]:
    made = Queue(server)
    made.start()
    yield made
    made.stop()


def queued(studies: Studies) -> bool:
    studies.remove_pods()
    condition = studies.condition("tickets", "Reconciling")
    return studies.state("tickets") == "Queued" and condition.get("reason") == "Queued"


def test_a_study_waits_runs_is_evicted_and_goes_on(
    queue: Queue, operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets", cluster={"queueName": "team-a", "nodeSelector": {"gpu": "h200"}})
    until("Queued", lambda: queued(studies))
    assert studies.get("job", "tickets-1")["metadata"]["labels"][LABEL] == "team-a"
    assert studies.get("fts", "tickets")["status"]["message"] == (
        "attempt 1: waiting for queue team-a to let it run"
    )
    assert not studies.all("pods")
    operator.kill()  # the next one neither lets it run nor begins another attempt
    operator.start()

    queue.admit(studies, "tickets-1", pool="spot")
    (pod,) = until("the pod", lambda: studies.all("pods"))
    assert pod["spec"]["nodeSelector"] == {"gpu": "h200", "pool": "spot"}
    until("Starting", lambda: studies.state("tickets") == "Starting")
    studies.run_pod("tickets-1", 0)
    running = {"planned": 4, "completed": 1, "running": 1, "summary": "1/4"}
    studies.report("tickets", "tickets-1", "Searching", findings={"trials": running})
    until("Running", lambda: studies.state("tickets") == "Running")

    queue.evict(studies, "tickets-1")
    until("Queued", lambda: queued(studies))
    until("no pods", lambda: not studies.all("pods"), meanwhile=studies.remove_pods)
    until("rest", lambda: studies.get("fts", "tickets")["status"]["trials"].get("paused") == 1)
    status = studies.get("fts", "tickets")["status"]
    assert (status["trials"]["completed"], status["trials"].get("running", 0)) == (1, 0)
    assert (status["attempts"], status.get("failedAttempts", 0)) == (1, 0)

    queue.forget_start(studies, "tickets-1")
    queue.admit(studies, "tickets-1", pool="reserved")
    (pod,) = until("the pod", lambda: studies.all("pods"))
    assert pod["spec"]["nodeSelector"]["pool"] == "reserved"
    studies.run_pod("tickets-1", 0)
    studies.report("tickets", "tickets-1", "Searching")
    until("Running", lambda: studies.state("tickets") == "Running")
    studies.report("tickets", "tickets-1", "Finished", reason="SearchFinished")
    studies.end_pod("tickets-1", 0, "Succeeded", 0)
    until("Complete", lambda: studies.state("tickets") == "Complete")
    status = studies.get("fts", "tickets")["status"]
    assert (status["attempts"], status.get("failedAttempts", 0)) == (1, 0)
    assert [user for operation, user in queue.writes if operation == "CREATE"] == [OPERATOR]
    assert {user for operation, user in queue.writes if operation == "UPDATE"} == {"admin"}


def test_a_study_can_be_suspended_while_it_waits(
    queue: Queue, operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets", cluster={"queueName": "team-a"})
    until("Queued", lambda: queued(studies))
    studies.kubectl("patch", "fts", "tickets", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    until("Suspended", lambda: studies.state("tickets") == "Suspended")
    assert not studies.all("jobs")
    studies.kubectl("patch", "fts", "tickets", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    until("the second attempt", lambda: studies.get("job", "tickets-2"))
    until("Queued", lambda: queued(studies))


@pytest.fixture
def kuberay(server: ApiServer, tmp_path: Path) -> Iterator[None]:
    """KubeRay as it is released, which knows what a suspended RayJob is."""
    serve(server)
    service = controller(server.kubeconfig, tmp_path)
    service.start()
    yield
    service.stop()


def test_a_study_under_kuberay_waits_runs_and_is_evicted(
    server: ApiServer, kuberay: None, tmp_path: Path, studies: Studies
) -> None:
    kubeconfig = server.kubeconfig_for(OPERATOR, ["system:masters"])
    process = OperatorProcess(
        server, tmp_path / "operator.log", kubeconfig, FINETUNE_ENGINE="RayJob"
    )
    queue = Queue(server, "RayJob")
    queue.start()
    process.start()
    try:
        _let_run_and_evicted(queue, studies)
    finally:
        process.stop()
        queue.stop()


def _let_run_and_evicted(queue: Queue, studies: Studies) -> None:
    def pools() -> set[str]:
        """Where the pods may run; empty until head and worker are there."""
        pods = studies.all("pods")
        places = {pod["spec"]["nodeSelector"]["pool"] for pod in pods}
        return places if len(pods) == 2 else set()

    selector = {"gpu": "h200"}
    studies.apply("tickets", cluster={"queueName": "team-a", "nodeSelector": selector})
    until("Queued", lambda: queued(studies))
    until("KubeRay to know", lambda: _deployment(studies) == "Suspended")
    assert studies.get("rayjob", "tickets-1")["metadata"]["labels"][LABEL] == "team-a"
    assert not studies.all("pods")
    for pool in ("spot", "reserved"):
        queue.admit(studies, "tickets-1", pool=pool)
        assert until("head and worker", pools) == {pool}
        until("Starting", lambda: studies.state("tickets") == "Starting")
        (worker,) = (pod for pod in studies.all("pods") if "gpu" in pod["spec"]["nodeSelector"])
        assert worker["metadata"]["labels"]["ray.io/node-type"] == "worker"
        queue.evict(studies, "tickets-1")
        until("Queued", lambda: queued(studies))
        until("no pods", lambda: not studies.all("pods"), meanwhile=studies.remove_pods)
        until("KubeRay to know", lambda: _deployment(studies) == "Suspended")
    status = studies.get("fts", "tickets")["status"]
    assert (status["attempts"], status.get("failedAttempts", 0)) == (1, 0)
    assert [user for operation, user in queue.writes if operation == "CREATE"] == [OPERATOR]
    assert OPERATOR not in {user for operation, user in queue.writes if operation == "UPDATE"}


def _deployment(studies: Studies) -> str:
    """How far KubeRay is."""
    return str(studies.get("rayjob", "tickets-1").get("status", {}).get("jobDeploymentStatus", ""))
