"""RayJobs: what each combination of KubeRay's words means, and the rules that a RayJob must keep."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest import parse_study
from finetune_api.status import Findings, StudyStatus
from finetune_operator import names, ray_job
from finetune_operator.decide import decide
from finetune_operator.decision import Deletion
from finetune_operator.kuberay import DEPLOYMENT_STATUSES, JOB_STATUSES, REASONS, Fate, fate_of
from finetune_operator.observe import Observed, PodView, RayJobView
from tests.api.wrong_manifests import VALID, changed
from tests.operator.studies import (
    JOB_UID,
    NOW,
    SETTINGS,
    UID,
    kuberay_job,
    observed,
    pod,
    progress,
    study,
)

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = SETTINGS.model_copy(update={"engine": "RayJob"})
RUN = names.run_id(UID, 1)


def status(deployment: str, job: str, reason: str, message: str = "") -> dict[str, Any]:
    return {
        "jobDeploymentStatus": deployment,
        "jobStatus": job,
        "reason": reason,
        "message": message,
    }


def expected(deployment: str, job: str, reason: str) -> str:
    """What the table in docs/operations.md says of the combination."""
    if deployment == "ValidationFailed":
        return "refused"
    if deployment == "Complete":
        return "succeeded" if job == "SUCCEEDED" else "over"
    if deployment == "Failed":
        return "over"
    return (
        "with pods"
        if deployment in ("Waiting", "Running", "Suspending", "Retrying")
        else "on its way"
    )


def meaning(fate: Fate) -> str:
    """The one word for a fate; each has exactly one."""
    words = {
        "refused": bool(fate.refused),
        "succeeded": fate.succeeded,
        "over": fate.failed is not None,
    }
    (*said,) = (word for word, true in words.items() if true)
    return said[0] if said else "with pods" if fate.has_pods else "on its way"


def test_every_combination_has_one_meaning() -> None:
    for deployment, job, reason in product(DEPLOYMENT_STATUSES, JOB_STATUSES, REASONS):
        fate = fate_of(status(deployment, job, reason, "m"))
        assert meaning(fate) == expected(deployment, job, reason), (deployment, job, reason)
        if fate.failed is not None:
            assert fate.failed == (f"{reason}: m" if reason else "m")
        later = fate_of({**status(deployment, job, reason), "later": 1})
        assert later.succeeded == fate.succeeded


@pytest.mark.parametrize(
    "given", [{}, {"jobDeploymentStatus": "Dreaming"}, {"jobStatus": "SUCCEEDED"}]
)
def test_what_kuberay_does_not_say_yet_is_an_attempt_on_its_way(given: dict[str, Any]) -> None:
    assert meaning(fate_of(given)) == "on its way"


def test_table_of_the_docs_has_every_word_of_kuberay() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for word in (*DEPLOYMENT_STATUSES, *JOB_STATUSES, *REASONS):
        assert not word or f"`{word}`" in page


def test_version_of_ray_is_that_of_the_image() -> None:
    pins = (ROOT / "requirements.lock").read_text().splitlines()
    assert f"ray=={ray_job.RAY_VERSION} \\" in pins


def made(attempt: int = 1, /, **changes: Any) -> dict[str, Any]:
    (manifest,) = ray_job.manifests(
        parse_study(changed(VALID, {**changes, "metadata.uid": UID})), attempt, KUBERAY
    )
    return manifest


def test_longest_name_leaves_room_for_what_kuberay_adds() -> None:
    manifest = made(999_999, **{"metadata.name": "a" * 40})
    assert len(manifest["metadata"]["name"]) <= 47


def test_head_has_no_trial_and_workers_no_rights() -> None:
    cluster = made(**{"spec.cluster": {"workers": 3, "nodeSelector": {"gpu": "h200"}}})["spec"][
        "rayClusterSpec"
    ]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nodeSelector" not in head["template"]["spec"]
    assert workers["template"]["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert workers["template"]["spec"]["automountServiceAccountToken"] is False
    assert (workers["minReplicas"], workers["maxReplicas"]) == (3, 3)
    assert "enableInTreeAutoscaling" not in cluster


def test_only_a_study_with_fewer_workers_at_least_than_at_most_is_scaled() -> None:
    cluster = made(**{"spec.cluster": {"workers": 3, "minWorkers": 3}})["spec"]["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in cluster
    cluster = made(**{"spec.cluster": {"workers": 3, "minWorkers": 0}})["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["workerGroupSpecs"][0]["minReplicas"] == 0


def body(**said: Any) -> dict[str, Any]:
    meta = {
        "name": "tickets-1",
        "uid": JOB_UID,
        "resourceVersion": "1",
        "labels": {names.STUDY_LABEL: "tickets", names.ATTEMPT_LABEL: "1"},
        "ownerReferences": [{"controller": True, "uid": UID}],
    }
    return {"metadata": meta, "spec": {"suspend": False}, "status": said}


def test_pods_and_driver_of_a_ray_job_are_known_by_study_and_attempt() -> None:
    assert RayJobView.of(body()).run_id == RUN
    labels = {names.UID_LABEL: UID, names.ATTEMPT_LABEL: "1", "ray.io/node-type": "head"}
    head = PodView.of({"metadata": {"name": "h", "uid": "u", "labels": labels}})
    assert (head.run_id, head.head, head.place) == (RUN, True, "head")
    worker = {**labels, "ray.io/node-type": "worker"}
    view = PodView.of({"metadata": {"name": "w", "uid": "u", "labels": worker}})
    assert (view.run_id, view.head, view.place) == (RUN, False, "w")


def test_new_study_gets_a_ray_job_and_nothing_that_kuberay_makes() -> None:
    decision = decide(study(), Observed(), KUBERAY, NOW)
    assert [manifest["kind"] for manifest in decision.create] == ["RayJob"]
    (policy,) = (one for one in decision.apply if one["kind"] == "NetworkPolicy")
    assert policy["spec"]["ingress"][1]["ports"] == [{"port": 8265, "protocol": "TCP"}]


def test_study_is_complete_when_kuberay_and_the_driver_say_so() -> None:
    document = progress("Finished", reason="SearchFinished", job_uid=RUN)
    seen = observed(kuberay_job(succeeded=True), pod(run_id=RUN), document=document)
    assert decide(study(), seen, KUBERAY, NOW).status.state == "Complete"
    stranger = progress("Finished", reason="SearchFinished", job_uid=names.run_id(UID, 2))
    seen = observed(kuberay_job(succeeded=True), document=stranger)
    assert decide(study(), seen, KUBERAY, NOW).status.state != "Complete"


def test_failed_cluster_is_followed_by_another_attempt() -> None:
    seen = observed(kuberay_job(failed="DeadlineExceeded: m"), document=progress(job_uid=RUN))
    asked = decide(study(), seen, KUBERAY, NOW)
    assert asked.confirm
    decision = decide(study(), seen, KUBERAY, NOW, confirmed=True)
    assert decision.delete == (Deletion("RayJob", "tickets-1", JOB_UID),)
    assert "DeadlineExceeded: m" in decision.status.message


def test_attempt_that_was_told_to_end_is_no_failure_of_a_study_that_has_trained() -> None:
    drained = progress("Drained", reason="SuspendRequested", job_uid=RUN)
    over = kuberay_job(failed="AppFailed: Job entrypoint command failed with exit code 143")
    almost = study(StudyStatus(attempts=1, failed_attempts=4))
    decision = decide(almost, observed(over, document=drained), KUBERAY, NOW, confirmed=True)
    assert decision.delete == (Deletion("RayJob", "tickets-1", JOB_UID),)
    assert (decision.status.state, decision.status.failed_attempts) == ("Pending", 4)
    assert [event.reason for event in decision.events] == ["Evicted"]
    assert not decision.confirm
    assert decide(almost, observed(over, document=drained), KUBERAY, NOW).confirm
    counted = {
        "it has trained nothing yet": drained.model_copy(update={"findings": Findings()}),
        "another driver has started since": drained.model_copy(update={"phase": "Preparing"}),
        "of another attempt": drained.model_copy(update={"job_uid": names.run_id(UID, 2)}),
    }
    for why, document in counted.items():
        decision = decide(almost, observed(over, document=document), KUBERAY, NOW)
        assert decision.status.state == "Failed", why


def test_what_kuberay_refuses_fails_the_study_with_its_words() -> None:
    view = RayJobView.of(body(**status("ValidationFailed", "", "ValidationFailed", "bad group")))
    decision = decide(study(), Observed(jobs=(view,)), KUBERAY, NOW)
    (failed,) = (c for c in decision.status.conditions if c.type == "Failed")
    assert (failed.status, failed.reason) == ("True", "InvalidPodTemplate")
    assert "bad group" in failed.message


def test_why_kuberay_has_no_pods_is_told() -> None:
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreateHeadPod",
        "message": "exceeded quota",
    }
    said = {**status("Initializing", "", ""), "rayClusterStatus": {"conditions": [condition]}}
    seen = Observed(jobs=(RayJobView.of(body(**said)),))
    decision = decide(study(StudyStatus()), seen, KUBERAY, NOW)
    (reconciling,) = (c for c in decision.status.conditions if c.type == "Reconciling")
    assert reconciling.reason == "PodsPending"
    assert decision.status.message == "FailedCreateHeadPod: exceeded quota"


def test_ray_job_held_by_its_queue_is_queued() -> None:
    seen = Observed(jobs=(kuberay_job(held=True),))
    assert decide(study(), seen, KUBERAY, NOW).status.state == "Queued"
