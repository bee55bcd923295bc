"""The operator against a real API server, garbage collector and Job controller; kubelet is played."""

import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import CRD
from tests.cluster.lives import run
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until

KILLS = 20


@pytest.fixture
def operator(server: ApiServer, tmp_path: Path) -> Iterator[OperatorProcess]:
    process = OperatorProcess(server, tmp_path / "operator.log")
    process.start()
    yield process
    process.stop()


def _finish(studies: Studies, name: str, job: str) -> None:
    counts = {"planned": 4, "completed": 4, "summary": "4/4"}
    best = {"trial": 2, "value": 0.5, "epoch": 1, "params": {"epochs": 1}}
    findings = {"trials": counts, "best": best}
    words = {"reason": "SearchFinished", "message": "all 4 trials ended", "findings": findings}
    studies.report(name, job, "Finished", **words)
    studies.end_pod(job, 0, "Succeeded", 0)


def test_study_runs_to_complete_and_its_children_go_with_it(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    until("the pod", lambda: studies.all("pods"))
    studies.run_pod("tickets-1", 0)
    studies.report("tickets", "tickets-1", "Searching")
    until("Running", lambda: studies.state("tickets") == "Running")
    _finish(studies, "tickets", "tickets-1")
    until("Complete", lambda: studies.condition("tickets", "Complete").get("status") == "True")
    assert studies.get("fts", "tickets")["status"]["trials"]["summary"] == "4/4"
    about = [
        line for line in operator.said() if line.get("study") == f"{studies.namespace}/tickets"
    ]
    states = [(line["state"], line["attempt"]) for line in about if "state" in line]
    assert states[-2:] == [("Running", 1), ("Complete", 1)]
    winner = studies.get("configmap", "tickets-winner")
    assert winner["immutable"]
    assert (winner["data"]["trial"], winner["data"]["image"]) == ("2", "x")
    studies.kubectl("delete", "fts", "tickets")
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
            lambda kind=kind: (
                not [o for o in studies.all(kind) if o["metadata"]["name"].startswith("tickets")]
            ),
            90,  # the garbage collector learns of new kinds every 30 s
        )


def test_operator_killed_at_random_moments_does_the_same_thing(
    operator: OperatorProcess, studies: Studies
) -> None:
    rng = random.Random(7)
    for number in range(KILLS):
        studies.apply(f"study-{number}")
        time.sleep(rng.uniform(0, 0.6))
        operator.kill()
        operator.start()
        if number % 4 == 3:
            time.sleep(rng.uniform(0, 4))  # now and then it lives long enough to work
    names = [f"study-{number}" for number in range(KILLS)]
    until("all Jobs", lambda: len(studies.all("jobs")) >= KILLS, 60)
    for name in names:
        until(
            f"a pod of {name}",
            lambda name=name: studies.get("job", f"{name}-1").get("status", {}).get("active"),
        )
        operator.kill() if rng.random() < 0.3 else None
        _finish(studies, name, f"{name}-1")
        if operator.process is None or operator.process.poll() is not None:
            operator.start()
    for name in names:
        until(f"{name} to complete", lambda name=name: studies.state(name) == "Complete", 60)
    jobs = sorted(job["metadata"]["name"] for job in studies.all("jobs"))
    assert jobs == sorted(f"{name}-1" for name in names)
    for study in studies.all("fts"):
        assert study["status"]["attempts"] == 1
        assert study["status"]["observedGeneration"] == 1
    owners = {study["metadata"]["uid"] for study in studies.all("fts")}
    for kind in ("configmaps", "secrets", "services"):
        for child in studies.all(kind):
            assert {
                owner["uid"] for owner in child["metadata"].get("ownerReferences", [])
            } <= owners


def test_driver_that_ends_early_never_completes_a_study(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    until("the pod", lambda: studies.all("pods"))
    studies.report("tickets", "tickets-1", "Drained", reason="SuspendRequested")
    studies.end_pod("tickets-1", 0, "Succeeded", 0)
    until(
        "the next attempt", lambda: (studies.remove_pods(), studies.get("job", "tickets-2"))[1], 60
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


def test_suspended_study_resumes_as_a_new_attempt(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    until("the pod", lambda: studies.all("pods"))
    studies.run_pod("tickets-1", 0)
    studies.report("tickets", "tickets-1", "Searching")
    studies.kubectl("patch", "fts", "tickets", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    until("Suspended", lambda: (studies.remove_pods(), studies.state("tickets") == "Suspended")[1])
    assert not studies.all("jobs")
    studies.kubectl("patch", "fts", "tickets", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    until("the second attempt", lambda: studies.get("job", "tickets-2"))
    assert studies.get("fts", "tickets")["status"]["trials"]["completed"] == 4


def test_recreated_study_never_adopts_what_its_namesake_left(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    until("the pod", lambda: studies.all("pods"))
    old = studies.get("job", "tickets-1")["metadata"]["uid"]
    studies.kubectl("delete", "fts", "tickets")
    studies.apply("tickets")
    new = until(
        "its own Job", lambda: (studies.remove_pods(), studies.get("job", "tickets-1"))[1], 60
    )
    until("its own Job", lambda: studies.get("job", "tickets-1")["metadata"]["uid"] != old, 60)
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
    _finish(studies, "tickets", "tickets-1")
    until("the study to go", lambda: not studies.get("fts", "tickets"))


def test_pod_template_that_the_api_server_refuses_fails_the_study(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets", cluster={"podTemplate": {"spec": {"nonsense": 1}}})
    until("Failed", lambda: studies.state("tickets") == "Failed")
    assert studies.condition("tickets", "Failed")["reason"] == "InvalidPodTemplate"
    assert "nonsense" in studies.condition("tickets", "Failed")["message"]


def test_study_that_only_a_newer_operator_can_read_stands_still(
    operator: OperatorProcess, studies: Studies, server: ApiServer
) -> None:
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/search/properties/algorithm/enum/-"
    newer = [{"op": "add", "path": path, "value": "Oracle"}]
    crd = "crd/finetunestudies.finetune.dev"
    server.kubectl("patch", crd, "--type=json", "-p", json.dumps(newer))
    until("the newer schema", lambda: _accepted(studies, "tickets", search={"algorithm": "Oracle"}))
    until("Stalled", lambda: studies.condition("tickets", "Stalled").get("status") == "True")
    assert studies.condition("tickets", "Stalled")["reason"] == "InvalidSpec"
    assert "spec.search.algorithm" in studies.condition("tickets", "Stalled")["message"]
    studies.kubectl("delete", "fts", "tickets")
    server.serve(CRD, "finetune.dev/v1alpha1/finetunestudies")


def _accepted(studies: Studies, name: str, **changes: Any) -> bool:
    try:
        studies.apply(name, **changes)
    except subprocess.CalledProcessError:
        return False
    return True
