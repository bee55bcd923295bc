"""The operator against a real API server, garbage collector and Job controller; kubelet is played."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.cluster.conftest import namespace_of
from tests.cluster.lives import FINISHED, finish, run
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until

pytestmark = pytest.mark.quick


_ENDED = ("--for=jsonpath={.status.completionTime}", "--timeout=60s")
"""Arguments of `kubectl wait` for the end of a study, whichever it is (docs/operations.md)."""


@pytest.fixture(scope="module")
def operator(
    server: ApiServer, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """One for the namespaces of all tests here."""
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    watched = [namespace_of(item) for item in request.session.items if item.path == request.path]
    process = OperatorProcess(server, log, FINETUNE_NAMESPACES=",".join(watched))
    process.start()
    yield process
    process.stop()


def test_study_runs_to_complete_and_its_children_go_with_it(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    until("the pod", lambda: studies.all("pods"))
    studies.run_pod("tickets-1", 0)
    studies.report("tickets", "tickets-1", "Searching")
    until("Running", lambda: studies.state("tickets") == "Running")
    finish(studies, "tickets", "tickets-1", **FINISHED)
    until("Complete", lambda: studies.condition("tickets", "Complete").get("status") == "True")
    assert studies.get("fts", "tickets")["status"]["trials"]["summary"] == "4/4"
    studies.kubectl("wait", "fts/tickets", *_ENDED)
    header, row = studies.kubectl("get", "fts").splitlines()
    assert header.split() == ["NAME", "STATE", "REASON", "TRIALS", "BEST", "WORKERS", "AGE"]
    assert row.split()[:5] == ["tickets", "Complete", "SearchFinished", "4/4", "0.5"]

    def states() -> list[tuple[str, int]]:
        key = f"{studies.namespace}/tickets"
        about = [line for line in operator.said() if line.get("study") == key]
        return [(line["state"], line["attempt"]) for line in about if "state" in line]

    # It is logged after it was written.
    until("the log", lambda: states()[-2:] == [("Running", 1), ("Complete", 1)])
    winner = studies.get("configmap", "tickets-winner")
    assert winner["immutable"]
    assert (winner["data"]["trial"], winner["data"]["image"]) == ("2", "x")
    studies.kubectl("delete", "fts", "tickets")

    def gone(kind: str) -> bool:
        names = [child["metadata"]["name"] for child in studies.all(kind)]
        return not [name for name in names if name.startswith("tickets")]

    for kind in (
        "jobs",
        "configmaps",
        "secrets",
        "services",
        "roles",
        "rolebindings",
        "networkpolicies",
    ):
        until(
            f"the {kind} to go",
            partial(gone, kind),
            60,
        )


def test_driver_that_ends_early_never_completes_a_study(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    until("the pod", lambda: studies.all("pods"))
    studies.report("tickets", "tickets-1", "Drained", reason="SuspendRequested")
    studies.end_pod("tickets-1", 0, "Succeeded", 0)
    until(
        "the next attempt",
        lambda: studies.get("job", "tickets-2"),
        60,
        meanwhile=studies.remove_pods,
    )
    assert studies.condition("tickets", "Complete").get("status") != "True"


def test_user_error_fails_the_study(operator: OperatorProcess, studies: Studies) -> None:
    studies.apply("tickets")
    until("the pod", lambda: studies.all("pods"))
    words = "spec.dataset.labelColumn: must name a column of the train rows"
    studies.report("tickets", "tickets-1", "Failed", reason="DataError", message=words)
    studies.end_pod("tickets-1", 0, "Failed", 42)
    until("Failed", lambda: studies.condition("tickets", "Failed").get("status") == "True")
    assert studies.condition("tickets", "Failed")["reason"] == "DataError"
    assert studies.condition("tickets", "Failed")["message"] == words
    assert studies.condition("tickets", "Stalled")["status"] == "True"
    studies.kubectl("wait", "fts/tickets", *_ENDED)


def test_suspended_study_resumes_as_a_new_attempt(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    until("the pod", lambda: studies.all("pods"))
    studies.run_pod("tickets-1", 0)
    studies.report("tickets", "tickets-1", "Searching")
    studies.kubectl("patch", "fts", "tickets", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    until(
        "Suspended",
        lambda: studies.state("tickets") == "Suspended",
        meanwhile=studies.remove_pods,
    )
    assert not studies.all("jobs")
    studies.kubectl("patch", "fts", "tickets", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    until("the second attempt", lambda: studies.get("job", "tickets-2"))
    assert studies.get("fts", "tickets")["status"]["trials"]["completed"] == 4


@pytest.mark.parametrize("at_once", [False, True], ids=["suspended", "before anybody looked"])
def test_study_that_is_suspended_may_be_given_more_memory(
    at_once: bool, operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    run(studies, "tickets")

    def edit(**spec: Any) -> None:
        studies.done("PATCH", "fts", "tickets", {"spec": spec})

    more = {"resourcesPerWorker": {"memory": "8Gi"}}
    assert studies.request("PATCH", "fts", "tickets", {"spec": {"cluster": more}})[0] == 422
    edit(suspend=True)
    if not at_once:
        until(
            "Suspended",
            lambda: studies.state("tickets") == "Suspended",
            meanwhile=studies.remove_pods,
        )
    edit(cluster=more, suspend=False, budget={"maxTrials": 77})
    until(
        "its second attempt", lambda: studies.get("job", "tickets-2"), meanwhile=studies.remove_pods
    )
    assert not studies.get("job", "tickets-1")
    pod = studies.get("job", "tickets-2")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["memory"] == "8Gi"
    assert studies.get("fts", "tickets")["status"]["trials"]["completed"] == 4
    assert studies.get("fts", "tickets")["status"].get("failedAttempts", 0) == 0


def test_recreated_study_never_adopts_what_its_namesake_left(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    until("the pod", lambda: studies.all("pods"))
    old = studies.get("job", "tickets-1")["metadata"]["uid"]
    studies.kubectl("delete", "fts", "tickets")
    studies.apply("tickets")
    new = until(
        "its own Job", lambda: studies.get("job", "tickets-1"), 60, meanwhile=studies.remove_pods
    )
    until(
        "its own Job",
        lambda: studies.get("job", "tickets-1").get("metadata", {}).get("uid") not in (old, None),
        60,
    )
    new = studies.get("job", "tickets-1")
    uid = studies.get("fts", "tickets")["metadata"]["uid"]
    assert new["metadata"]["ownerReferences"][0]["uid"] == uid


def test_study_that_runs_with_fewer_pods_than_it_asked_for_says_why(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.kubectl("create", "quota", "few", "--hard=pods=1")
    # As its controller would begin; the API server counts on.
    counted = {"status": {"hard": {"pods": "1"}, "used": {"pods": "0"}}}
    patch = ("--subresource=status", "--type=merge", "-p", json.dumps(counted))
    studies.kubectl("patch", "quota", "few", *patch)

    def message() -> str:
        return str(studies.get("fts", "tickets")["status"]["message"])

    try:
        studies.apply("tickets", **{"cluster.workers": 2})
        run(studies, "tickets")
        until("the quota to be told", lambda: message().startswith("1 of 2 pods: "))
        assert "exceeded quota: few" in message()
        assert studies.state("tickets") == "Running"
    finally:
        studies.kubectl("delete", "quota", "few")
    until("the other pod", lambda: not message().startswith("1 of 2 pods: "))
    assert studies.state("tickets") == "Running"


@pytest.mark.slow
def test_pod_that_never_runs_gives_its_node_back_until_the_study_is_told_to_go_on(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets", cluster={"startDeadlineSeconds": 60})
    (pod,) = until("the pod", lambda: studies.all("pods"))
    name = pod["metadata"]["name"]
    node = {"apiVersion": "v1", "kind": "Node", "name": "slow"}
    binding = {"metadata": {"name": name}, "target": node}
    studies.done("POST", "pod", name, binding, subresource="binding")
    until(
        "Stalled",
        lambda: studies.condition("tickets", "Stalled").get("reason") == "StartDeadlineExceeded",
        meanwhile=studies.remove_pods,
    )
    until("its Job to go", lambda: not studies.all("jobs"), meanwhile=studies.remove_pods)
    told = ("get", "events", "--field-selector=reason=StartDeadlineExceeded")
    until("its Event", lambda: "tickets" in studies.kubectl(*told))
    studies.kubectl("annotate", "fts", "tickets", "finetune.dev/retry=now")
    until(
        "its second attempt", lambda: studies.get("job", "tickets-2"), meanwhile=studies.remove_pods
    )
    until("the retry", lambda: studies.get("fts", "tickets")["status"].get("retry") == "now")


@pytest.mark.slow
def test_pod_that_its_node_never_ends_is_followed_by_another(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    (pod,) = until("the pod", lambda: studies.all("pods"))
    name = pod["metadata"]["name"]
    node = {"apiVersion": "v1", "kind": "Node", "name": "lost"}
    binding = {"metadata": {"name": name}, "target": node}
    studies.done("POST", "pod", name, binding, subresource="binding")
    studies.run_pod("tickets-1", 0)
    studies.report("tickets", "tickets-1", "Searching")
    until("Running", lambda: studies.state("tickets") == "Running")
    studies.done("DELETE", "pod", name, {"gracePeriodSeconds": 1})
    assert studies.get("pod", name)["metadata"]["deletionTimestamp"], "its node has to end it"

    def others() -> list[dict[str, Any]]:
        return [other for other in studies.all("pods") if other["metadata"]["name"] != name]

    until("another pod", others)
    until("the old one to go", lambda: not studies.get("pod", name))
    events = studies.kubectl("get", "events", "--field-selector=reason=NodeLost")
    assert "its node has not ended it" in events
    assert studies.get("job", "tickets-1")["status"].get("failed", 0) == 0
    status = studies.get("fts", "tickets")["status"]
    assert (status["attempts"], status.get("failedAttempts", 0)) == (1, 0)


def test_budget_edit_reaches_the_mounted_spec(operator: OperatorProcess, studies: Studies) -> None:
    studies.apply("tickets")
    until("the Job", lambda: studies.get("job", "tickets-1"))
    studies.kubectl(
        "patch", "fts", "tickets", "--type=merge", "-p", '{"spec":{"budget":{"maxTrials":77}}}'
    )
    until(
        "the new budget",
        lambda: '"maxTrials": 77' in studies.get("configmap", "tickets-spec")["data"]["study.json"],
    )


def test_finished_study_goes_when_its_time_is_over(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets", ttlSecondsAfterFinished=2)
    until("the pod", lambda: studies.all("pods"))
    finish(studies, "tickets", "tickets-1", **FINISHED)
    until("the study to go", lambda: not studies.get("fts", "tickets"))


def test_pod_template_that_the_api_server_refuses_fails_the_study(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets", cluster={"podTemplate": {"spec": {"nonsense": 1}}})
    until("Failed", lambda: studies.state("tickets") == "Failed")
    assert studies.condition("tickets", "Failed")["reason"] == "InvalidPodTemplate"
    assert "nonsense" in studies.condition("tickets", "Failed")["message"]
