"""A study that has ended goes on, against a real API server: Job controller and garbage collector do their part."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import lives
from tests.cluster.conftest import namespace_of
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until

pytestmark = pytest.mark.slow

RETRY = "finetune.dev/retry"


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
    assert process.process is not None
    assert process.process.poll() is None, "the operator has ended by itself"
    process.stop()


def next_attempt(studies: Studies, attempt: int) -> None:
    """Wait for it, and for the status that says so; it never stands beside another."""

    def begun() -> bool:
        studies.remove_pods()
        jobs = [one["metadata"]["name"] for one in studies.all("jobs")]
        assert len(jobs) < 2, jobs
        return jobs == [f"tickets-{attempt}"] and status(studies)["attempts"] == attempt

    until(f"attempt {attempt}", begun)


def events(studies: Studies, reason: str) -> list[str]:
    found = studies.all("events")
    return [str(event["message"]) for event in found if event["reason"] == reason]


def findings(trials: int, value: float) -> dict[str, Any]:
    counts = {"planned": trials, "completed": trials, "summary": f"{trials}/{trials}"}
    best = {"trial": trials - 1, "value": value, "epoch": 1, "params": {"epochs": 1}}
    return {"findings": {"trials": counts, "best": best}, "message": f"all {trials} trials ended"}


def asks(studies: Studies, value: str) -> None:
    studies.kubectl("annotate", "--overwrite", "fts", "tickets", f"{RETRY}={value}")


def status(studies: Studies) -> dict[str, Any]:
    return dict(studies.get("fts", "tickets")["status"])


def test_complete_study_goes_on_with_more_trials_and_has_another_winner(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets", budget={"maxTrials": 4})
    lives.run(studies, "tickets")
    lives.complete(studies, "tickets", **findings(4, 0.5))
    first = status(studies)
    assert first["winner"] == "tickets-winner"
    assert first["lastEnd"]["limits"]["maxTrials"] == 4

    lives.edit(studies, "tickets", budget={"maxTrials": 4, "maxDurationSeconds": 60})
    until("the edit to be told", lambda: events(studies, "NoEffect"))
    (told,) = events(studies, "NoEffect")
    assert told.startswith("spec.budget.maxDurationSeconds has no effect: ")
    assert "loosen spec.budget.maxTrials" in told
    assert studies.condition("tickets", "Reconciling")["message"] == told
    lives.edit(studies, "tickets", ttlSecondsAfterFinished=10**6, suspend=True)
    until("the next to be told", lambda: len(events(studies, "NoEffect")) == 2)
    lives.edit(studies, "tickets", suspend=False)
    assert [one["metadata"]["name"] for one in studies.all("jobs")] == ["tickets-1"]
    assert studies.state("tickets") == "Complete"

    lives.edit(studies, "tickets", budget={"maxTrials": 8})
    next_attempt(studies, 2)
    on = status(studies)
    assert (on["attempts"], on["best"], on["winner"]) == (2, first["best"], "tickets-winner")
    assert "completionTime" not in on
    assert studies.condition("tickets", "Complete")["status"] == "False"
    (reopened,) = until("the Event", lambda: events(studies, "Reopened"))
    assert reopened == "the study goes on after its end: spec.budget.maxTrials is 8 now"
    spec = json.loads(studies.get("configmap", "tickets-spec")["data"]["study.json"])["spec"]
    assert spec["budget"]["maxTrials"] == 8
    lives.run(studies, "tickets", 2)
    lives.complete(studies, "tickets", 2, **findings(8, 0.75))
    done = status(studies)
    assert done["winner"] == "tickets-winner-2"
    assert done["lastEnd"]["attempt"] == 2
    values = {
        name: studies.get("configmap", name)["data"]["value"]
        for name in ("tickets-winner", "tickets-winner-2")
    }
    assert values == {"tickets-winner": "0.5", "tickets-winner-2": "0.75"}
    studies.kubectl("delete", "fts", "tickets")
    until("its winners to go", lambda: "winner" not in str(studies.all("configmaps")), 60)


def test_failed_study_is_tried_again_when_its_annotation_says_so(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets")
    lives.run(studies, "tickets")
    lives.fail(studies, "tickets")
    asks(studies, "1")
    next_attempt(studies, 2)
    pod = studies.get("job", "tickets-2")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "FINETUNE_RETRY", "value": "1"} in pod["env"]
    assert status(studies)["retry"] == "1"
    assert studies.condition("tickets", "Failed")["status"] == "False"
    assert studies.condition("tickets", "Stalled")["status"] == "False"
    lives.run(studies, "tickets", 2)
    lives.complete(studies, "tickets", 2, **findings(4, 0.5))
    assert status(studies)["winner"] == "tickets-winner"
    asks(studies, "1")
    lives.edit(studies, "tickets", ttlSecondsAfterFinished=10**6)
    generation = studies.get("fts", "tickets")["metadata"]["generation"]
    until("the edit", lambda: status(studies)["observedGeneration"] == generation)
    assert studies.state("tickets") == "Complete"


def test_budget_that_is_raised_while_the_winner_is_trained_again_is_not_lost(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets", budget={"maxTrials": 4})
    lives.run(studies, "tickets")
    studies.report("tickets", "tickets-1", "Refitting")
    until("the refit", lambda: studies.state("tickets") == "Refitting")
    lives.edit(studies, "tickets", budget={"maxTrials": 8})
    until("the edit", lambda: '"maxTrials": 8' in str(studies.get("configmap", "tickets-spec")))
    said = json.dumps({"term": 1, "limits": {"maxTrials": 4, "maxFailedTrials": 3}})
    studies.done("PATCH", "configmap", "tickets-progress", {"data": {"limits": said}})
    lives.finish(studies, "tickets", "tickets-1", **findings(4, 0.5))
    next_attempt(studies, 2)
    assert studies.get("configmap", "tickets-winner")["data"]["value"] == "0.5"


def test_study_goes_on_though_all_that_it_left_was_deleted(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.apply("tickets", budget={"maxTrials": 4})
    lives.run(studies, "tickets")
    lives.complete(studies, "tickets", **findings(4, 0.5))
    for kind in ("jobs", "configmaps", "services", "roles", "serviceaccounts"):
        names = [one["metadata"]["name"] for one in studies.all(kind)]
        for name in names:
            if name.startswith("tickets"):
                studies.kubectl("delete", kind, name)
    until("its pods to go", lambda: not studies.all("pods"), meanwhile=studies.remove_pods)
    lives.edit(studies, "tickets", budget={"maxTrials": 8})
    next_attempt(studies, 2)
    assert status(studies)["best"]["value"] == 0.5
    lives.run(studies, "tickets", 2)
    lives.complete(studies, "tickets", 2, **findings(8, 0.75))
    assert studies.get("configmap", "tickets-winner-2")["data"]["value"] == "0.75"
