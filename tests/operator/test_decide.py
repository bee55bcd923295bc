"""What the operator decides, path by path: values in, values out."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.conditions import with_condition
from finetune_api.status import (
    MAX_PROGRESS_BYTES,
    ChosenSearch,
    ConditionType,
    FinalModel,
    Findings,
    Spending,
    StudyStatus,
    TrialCounts,
    TrialResult,
)
from finetune_api.study import FineTuneStudy
from finetune_operator import names
from finetune_operator.belief import believed_progress
from finetune_operator.decide import (
    UNEXPLAINED,
    decide,
    forbidden,
    hindered,
    refused,
    unreadable,
)
from finetune_operator.decision import Decision, Deletion
from finetune_operator.observe import ConfigView, JobView, Observed, PodView
from finetune_operator.settings import Settings
from finetune_operator.trouble import Trouble
from tests.operator.studies import (
    JOB_UID,
    NOW,
    SETTINGS,
    UID,
    job,
    kuberay_job,
    later,
    observed,
    pod,
    progress,
    study,
)


def after(*steps: tuple[Observed, float]) -> tuple[StudyStatus, Decision]:
    """The status and last decision after the operator has seen each step at its second."""
    status = StudyStatus()
    for seen, second in steps:
        decision = decide(study(status), seen, SETTINGS, later(second))
        status = decision.status
    return status, decision


def true_conditions(status: StudyStatus) -> set[str]:
    return {condition.type for condition in status.conditions if condition.status == "True"}


def test_new_study_gets_its_children_and_the_job_last() -> None:
    decision = decide(study(), Observed(), SETTINGS, NOW)
    kinds = [manifest["kind"] for manifest in (*decision.apply, *decision.create)]
    assert kinds == [
        "ServiceAccount",
        "ConfigMap",
        "ConfigMap",
        "NetworkPolicy",
        "Service",
        "Role",
        "RoleBinding",
        "Secret",
        "Job",
    ]
    assert decision.status.state == "Starting"
    assert decision.status.attempts == 1
    assert decision.status.observed_generation == 1
    assert true_conditions(decision.status) == {"Reconciling"}
    assert [event.reason for event in decision.events] == ["AttemptStarted"]


def test_same_observation_gives_the_same_status() -> None:
    first = decide(study(), observed(job(), pod()), SETTINGS, NOW)
    second = decide(study(first.status), observed(job(), pod()), SETTINGS, later(60))
    assert second.status == first.status
    assert (second.apply, second.create, second.delete, second.events) == ((), (), (), ())


def test_study_without_storage_says_so_and_waits() -> None:
    decision = decide(study(), Observed(), Settings(), NOW)
    assert true_conditions(decision.status) == {"Stalled"}
    assert decision.status.message.startswith("spec.storage must be given")
    assert not decision.create


def test_running_study_is_not_reconciling() -> None:
    decision = decide(study(), observed(job(), pod(), document=progress()), SETTINGS, NOW)
    assert decision.status.state == "Running"
    assert true_conditions(decision.status) == {"Running"}
    assert decision.status.trials.summary == "1/4"


def test_study_that_waits_for_its_storage_says_so() -> None:
    words = "spec.storage: s3://bucket cannot be written: No space left on device; waiting"
    for phase, state in (("Preparing", "Starting"), ("Searching", "Running")):
        said = progress(phase, reason="StorageUnavailable", message=words)
        decision = decide(study(), observed(job(), pod(), document=said), SETTINGS, NOW)
        assert decision.status.state == state
        assert {c.reason for c in decision.status.conditions} == {"StorageUnavailable"}
        assert decision.status.message == words
        assert [e.reason for e in decision.events if e.type == "Warning"] == ["StorageUnavailable"]


def test_job_does_not_hold_up_a_namespace_that_ends() -> None:
    why = 'pods "tickets-1-0-x" is forbidden: unable to create new content in namespace nlp because it is being terminated'
    waiting = decide(study(), observed(job(active=0)), SETTINGS, NOW).status
    seen = observed(job(active=0))
    decision = decide(study(waiting), seen, SETTINGS, later(6), explanation=why)
    assert decision.delete == (Deletion("Job", "tickets-1", JOB_UID),)


def test_edited_budget_reaches_the_driver() -> None:
    decision = decide(
        study(), observed(job(), pod(), document=progress(), fresh=False), SETTINGS, NOW
    )
    (applied,) = decision.apply
    assert applied["metadata"]["name"] == "tickets-spec"
    assert json.loads(applied["data"]["study.json"])["spec"]["budget"]["maxTrials"] == 4


@pytest.mark.parametrize(
    "kind", ["ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "Service"]
)
@pytest.mark.parametrize("changed", [False, True], ids=["deleted", "changed"])
def test_child_that_somebody_deleted_or_changed_is_put_right(kind: str, changed: bool) -> None:
    seen = observed(job(), pod(), document=progress())
    mine = {one: what for one, what in seen.kept.items() if changed or one[0] != kind}
    theirs = {one: "changed" for one in seen.kept if changed and one[0] == kind}
    decision = decide(study(), replace(seen, kept={**mine, **theirs}), SETTINGS, NOW)
    assert [manifest["kind"] for manifest in decision.apply] == [kind]
    assert decision.status.state == "Running"


@pytest.mark.parametrize("name", ["tickets-spec", "tickets-progress"])
def test_config_map_that_somebody_deleted_is_made_again(name: str) -> None:
    seen = observed(job(), pod(), document=progress())
    left = {one: view for one, view in seen.configs.items() if one != name}
    decision = decide(study(), replace(seen, configs=left), SETTINGS, NOW)
    assert [manifest["metadata"]["name"] for manifest in decision.apply] == [name]


def test_spec_that_somebody_changed_is_put_right() -> None:
    seen = observed(job(), pod(), document=progress())
    changed = replace(seen.configs["tickets-spec"], intact=False)
    configs = {**seen.configs, "tickets-spec": changed}
    (applied,) = decide(study(), replace(seen, configs=configs), SETTINGS, NOW).apply
    assert not ConfigView.of({**applied, "data": {"study.json": "{}"}}).intact
    assert ConfigView.of(applied).intact


def test_study_is_complete_when_the_job_and_the_driver_say_so() -> None:
    done = progress("Finished", reason="SearchFinished", message="all 4 trials ended")
    running = StudyStatus(attempts=1, state="Running")
    decision = decide(study(running), observed(job(succeeded=True), document=done), SETTINGS, NOW)
    assert true_conditions(decision.status) == {"Complete"}
    assert decision.status.completion_time == NOW
    assert [event.reason for event in decision.events] == ["Completed"]


def test_a_complete_study_leaves_its_winner_for_pipelines() -> None:
    best = TrialResult(trial=3, value=0.75, epoch=2, params={"epochs": 2}, metrics={"f1": 0.75})
    final = FinalModel(
        model_uri="s3://bucket/model", params={"epochs": 2}, test_metrics={"f1": 0.7}
    )
    image = "registry.example.com/trainer@sha256:0123"
    ended = pod(ended=True, running=False, image=image)
    data = {}
    for name, findings in {
        "refitted": Findings(best=best, final=final),
        "not refitted": Findings(best=best),
        "without any": Findings(),
    }.items():
        done = progress("Finished", reason="SearchFinished", findings=findings)
        seen = observed(job(succeeded=True), ended, document=done)
        decision = decide(study(), seen, SETTINGS, NOW)
        assert true_conditions(decision.status) == {"Complete"}
        data[name] = [made["data"] for made in decision.create]
        for made in decision.create:
            assert made["metadata"]["name"] == "tickets-winner"
            assert made["immutable"]
    (refitted,), (plain,) = data["refitted"], data["not refitted"]
    assert data["without any"] == []
    assert (refitted["trial"], refitted["value"], refitted["image"]) == ("3", "0.75", image)
    assert json.loads(refitted["params.json"]) == {"epochs": 2}
    assert json.loads(refitted["testMetrics.json"]) == {"f1": 0.7}
    assert refitted["modelUri"] == "s3://bucket/model"
    assert (plain["testMetrics.json"], plain["modelUri"]) == ("", "")
    assert len(refitted["specHash"]) == 16


@pytest.mark.parametrize(
    "seen",
    [
        observed(job(), pod(), document=progress("Finished", reason="SearchFinished")),
        observed(job(succeeded=True), document=progress("Drained", reason="SuspendRequested")),
        observed(job(succeeded=True), document=progress("Searching")),
        observed(job(succeeded=True)),
        observed(job(succeeded=True), document=progress("Finished", job_uid="another")),
        observed(job(succeeded=True), document=progress("Finished", study_uid="another")),
        observed(job(succeeded=True), document=progress("Finished"), term=2),
        observed(job(succeeded=True), document=progress("Finished", term=2), term=1),
    ],
    ids=[
        "job runs",
        "drained",
        "searching",
        "silent",
        "document of another job",
        "of another study",
        "of a driver that was replaced",
        "of a term that nobody claimed",
    ],
)
def test_neither_alone_completes_a_study(seen: Observed) -> None:
    assert "Complete" not in true_conditions(decide(study(), seen, SETTINGS, NOW).status)


def test_user_error_fails_the_study_with_the_drivers_words() -> None:
    wrong = progress(
        "Failed", reason="DataError", message="spec.dataset.labelColumn: must name a column"
    )
    decision = decide(
        study(), observed(job(failed="PodFailurePolicy: exit 42"), document=wrong), SETTINGS, NOW
    )
    assert true_conditions(decision.status) == {"Failed", "Stalled"}
    failed = decision.status.condition("Failed")
    assert failed is not None
    assert (failed.reason, failed.message) == (
        "DataError",
        "spec.dataset.labelColumn: must name a column",
    )


@pytest.mark.parametrize(
    "seen",
    [
        observed(job(), pod(), document=progress("Failed", reason="DataError")),
        observed(job(failed="exit 42"), document=progress("Failed", reason="DataError"), term=2),
        observed(job(failed="exit 42"), document=progress("Failed", job_uid="another")),
        observed(job(failed="exit 42"), document=progress("Searching")),
        observed(job(failed="exit 42")),
    ],
    ids=["job runs", "of a driver that was replaced", "of another job", "searching", "silent"],
)
def test_neither_alone_fails_a_study(seen: Observed) -> None:
    assert "Failed" not in true_conditions(decide(study(), seen, SETTINGS, NOW).status)


def test_document_that_is_not_in_the_studys_own_config_map_is_not_believed() -> None:
    seen = observed(job(), pod(), document=progress())
    assert believed_progress(study(), seen) is not None
    theirs = replace(seen.configs["tickets-progress"], study_uid="older")
    configs = {**seen.configs, "tickets-progress": theirs}
    assert believed_progress(study(), replace(seen, configs=configs)) is None


def test_failed_attempt_is_deleted_and_another_follows_when_its_pods_are_gone() -> None:
    status, decision = after((observed(job(failed="BackoffLimitExceeded")), 0))
    assert decision.delete == (Deletion("Job", "tickets-1", JOB_UID),)
    assert status.failed_attempts == 1
    status, decision = after(
        (observed(job(failed="BackoffLimitExceeded")), 0), (observed(job(deleting=True), pod()), 1)
    )
    assert not decision.create
    assert true_conditions(status) == {"Reconciling"}
    status, decision = after(
        (observed(job(failed="BackoffLimitExceeded")), 0),
        (observed(job(deleting=True), pod()), 1),
        (Observed(), 2),
    )
    assert decision.create[-1]["metadata"]["name"] == "tickets-2"
    assert status.attempts == 2


def test_attempts_that_get_nowhere_end_the_study() -> None:
    status = StudyStatus(attempts=5, failed_attempts=4)
    said = progress("Preparing", message="the driver starts again: the hub cannot be reached")
    gone = observed(job(5, failed="BackoffLimitExceeded"), document=said)
    decision = decide(study(status), gone, SETTINGS, NOW)
    assert "the hub cannot be reached" in decision.status.message
    assert true_conditions(decision.status) == {"Failed", "Stalled"}
    assert "5 attempts in a row" in decision.status.message


def test_trial_that_ends_resets_the_count_of_failed_attempts() -> None:
    status = StudyStatus(attempts=3, failed_attempts=2)
    decision = decide(study(status), observed(job(3), pod(), document=progress()), SETTINGS, NOW)
    assert decision.status.failed_attempts == 0


def test_suspended_study_loses_its_job_and_says_so_when_the_pods_are_gone() -> None:
    decision = decide(study(suspend=True), observed(job(), pod()), SETTINGS, NOW)
    assert decision.delete == (Deletion("Job", "tickets-1", JOB_UID),)
    assert true_conditions(decision.status) == {"Reconciling"}
    decision = decide(study(decision.status, suspend=True), observed(pod()), SETTINGS, NOW)
    assert "Suspended" not in true_conditions(decision.status)
    decision = decide(study(decision.status, suspend=True), observed(), SETTINGS, NOW)
    assert true_conditions(decision.status) == {"Suspended"}
    assert decision.status.state == "Suspended"


@pytest.mark.parametrize("end", [{"succeeded": True}, {"failed": "BackoffLimitExceeded"}])
def test_study_whose_job_has_ended_is_suspended_only_after_a_second_look(
    end: dict[str, Any],
) -> None:
    suspended, seen = study(suspend=True), observed(job(**end))
    first = decide(suspended, seen, SETTINGS, NOW)
    assert first.confirm  # its driver may have said that it is finished
    assert not decide(suspended, seen, SETTINGS, NOW, confirmed=True).confirm
    assert not decide(suspended, observed(job(), pod()), SETTINGS, NOW).confirm
    assert not decide(suspended, observed(job(deleting=True, **end)), SETTINGS, NOW).confirm
    finished = observed(job(**end), document=progress("Finished", reason="SearchFinished"))
    complete = decide(suspended, finished, SETTINGS, NOW, confirmed=True)
    assert ("Complete" in true_conditions(complete.status)) is ("succeeded" in end)


def test_resumed_study_starts_the_next_attempt_with_what_was_found() -> None:
    running = decide(study(), observed(job(), pod(), document=progress()), SETTINGS, NOW).status
    decision = decide(study(running), observed(), SETTINGS, NOW)
    assert decision.create[-1]["metadata"]["name"] == "tickets-2"
    assert decision.status.trials.completed == 1


@pytest.mark.parametrize(
    ("edit", "ends"),
    [
        ({"cluster": {"workers": 2}}, True),
        ({"compute": {"precision": "BF16"}}, True),
        ({"budget": {"maxTrials": 99}}, False),
    ],
)
def test_an_attempt_that_cannot_follow_an_edit_is_followed_by_another(
    edit: dict[str, Any], ends: bool
) -> None:
    """The study was suspended, edited and resumed before the operator looked."""
    made = job(made_for=names.made_for(study()))
    seen = observed(made, pod(), document=progress())
    before = decide(study(), seen, SETTINGS, NOW)
    assert not before.delete
    new = study(before.status, **edit)
    meta = new.metadata.model_copy(update={"generation": 3})
    decision = decide(new.model_copy(update={"metadata": meta}), seen, SETTINGS, NOW)
    assert decision.delete == ((Deletion("Job", "tickets-1", JOB_UID),) if ends else ())
    assert decision.confirm is ends
    assert decision.status.failed_attempts == 0
    # Another version of the operator, which would make it in other words, is no edit.
    same = study(before.status, **edit)
    assert not decide(same, seen, SETTINGS, NOW).delete
    earlier = observed(job(), pod(), document=progress())
    assert not decide(new, earlier, SETTINGS, NOW).delete


def starting(held: float, **more: Any) -> Observed:
    """An attempt whose first pod has had a node since then, and does not run."""
    pulling = Trouble("ImagePullFailed", "image x cannot be pulled: not found")
    first = pod(0, running=False, held=later(held), trouble=pulling)
    return observed(job(), first, pod(1, running=False, **more))


def test_pod_that_never_runs_gives_its_node_back_and_the_study_is_stalled() -> None:
    early = decide(study(), starting(0), SETTINGS, later(3599))
    assert not early.delete
    assert early.again_after == pytest.approx(1)
    late = decide(study(early.status), starting(0), SETTINGS, later(3600))
    assert late.delete == (Deletion("Job", "tickets-1", JOB_UID),)
    assert late.confirm
    assert true_conditions(late.status) == {"Stalled"}
    assert "ImagePullFailed" not in late.status.message
    assert "image x cannot be pulled" in late.status.message
    assert [event.reason for event in late.events] == ["StartDeadlineExceeded"]
    assert late.status.failed_attempts == 0


def test_deadline_is_the_studys_and_counts_only_pods_that_have_a_node() -> None:
    own = study(cluster={"startDeadlineSeconds": 60})
    assert not decide(own, starting(10), SETTINGS, later(69)).delete
    assert decide(own, starting(10), SETTINGS, later(70)).delete
    waiting = observed(job(), pod(running=False, held=None))
    assert not decide(own, waiting, SETTINGS, later(10**6)).delete
    others = observed(job(), pod(running=False, held=NOW, run_id="other", study_uid="other"))
    assert not decide(own, others, SETTINGS, later(10**6)).delete
    runs = observed(job(), pod(), document=progress())
    assert not decide(own, runs, SETTINGS, later(10**6)).delete


def test_study_that_was_given_up_goes_on_when_it_is_edited_or_told_to() -> None:
    stalled = decide(study(StudyStatus(attempts=1)), starting(0), SETTINGS, later(3600)).status
    same = decide(study(stalled), observed(), SETTINGS, later(9999))
    assert (same.status.message, true_conditions(same.status)) == (stalled.message, {"Stalled"})
    assert not same.create
    assert not same.events

    def meta(**changes: Any) -> FineTuneStudy:
        found = study(same.status)
        return found.model_copy(update={"metadata": found.metadata.model_copy(update=changes)})

    for again in (meta(generation=2), meta(annotations={names.RETRY: "1"})):
        decision = decide(again, observed(), SETTINGS, later(10_000))
        assert (decision.status.state, decision.status.attempts) == ("Starting", 2)
        assert true_conditions(decision.status) == {"Reconciling"}
    asked = decide(meta(annotations={names.RETRY: "1"}), observed(), SETTINGS, later(10_000)).status
    assert asked.retry == "1"
    twice = decide(study(asked), starting(10_000), SETTINGS, later(20_000)).status
    assert twice.retry is None  # the annotation is gone: a later one is new


def test_people_see_how_many_workers_train_and_the_best_value_with_four_digits() -> None:
    wanted = study(cluster={"workers": 3})
    best = Findings(trials=TrialCounts(completed=1), best=TrialResult(trial=0, value=0.876543))
    seen = observed(job(), pod(), pod(1, running=False), document=progress(findings=best))
    status = decide(wanted, seen, SETTINGS, NOW).status
    assert (status.workers, status.best_shown) == ("1/3", "0.8765")
    of_kuberay = names.run_id(UID, 1)
    seen = observed(
        kuberay_job(),
        pod(run_id=of_kuberay),
        pod(1, run_id=of_kuberay),
        pod(2),
        document=progress(findings=best, job_uid=of_kuberay),
    )
    assert decide(wanted, seen, SETTINGS, NOW).status.workers == "1/3"  # its head trains nothing
    ended = decide(
        wanted, observed(job(succeeded=True), document=progress("Finished")), SETTINGS, NOW
    )
    assert ended.status.workers is None
    small = Findings(
        trials=TrialCounts(completed=1), best=TrialResult(trial=0, value=0.00001234567)
    )
    seen = observed(job(), pod(), document=progress(findings=small))
    assert decide(wanted, seen, SETTINGS, NOW).status.best_shown == "1.235e-05"


def test_held_job_is_queued_and_nothing_is_done_about_it() -> None:
    waiting = decide(study(), observed(job(held=True, active=0)), SETTINGS, NOW)
    assert waiting.status.state == "Queued"
    assert true_conditions(waiting.status) == {"Reconciling"}
    assert (waiting.create, waiting.delete, waiting.explain, waiting.again_after) == (
        (), (), None, None
    )  # fmt: skip
    assert [event.reason for event in waiting.events][-1] == "Queued"


def test_evicted_study_comes_to_rest_when_its_pods_are_gone_and_has_not_failed() -> None:
    held = job(held=True)
    status, decision = after(
        (observed(job(), pod(), document=progress()), 0),
        (observed(held, pod(), document=progress()), 10),
    )
    assert (status.state, status.trials.running) == ("Queued", 1)
    assert "took its place back, 1 pods save and end" in status.message
    gone = decide(study(status), observed(held, document=progress()), SETTINGS, later(20)).status
    assert (gone.state, gone.trials.running, gone.trials.paused) == ("Queued", 0, 1)
    assert (gone.attempts, gone.failed_attempts) == (1, 0)
    assert not decision.delete
    again = observed(job(), pod(), document=progress())
    assert decide(study(gone), again, SETTINGS, later(30)).status.state == "Running"


def test_silence_is_counted_from_when_the_queue_let_the_job_run() -> None:
    held = decide(study(), observed(job(held=True, active=0)), SETTINGS, NOW).status
    let = observed(job(active=0, begun=later(3600)))
    assert decide(study(held), let, SETTINGS, later(3601)).explain is None
    assert decide(study(held), let, SETTINGS, later(3606)).explain is not None


def test_study_waits_for_the_pods_of_a_namesake() -> None:
    decision = decide(
        study(), observed(job(study_uid="older"), pod(study_uid="older")), SETTINGS, NOW
    )
    assert (decision.create, decision.delete) == ((), ())
    assert decision.status.conditions[0].reason == "WaitingForPodsToEnd"


def test_attempt_whose_pods_are_there_and_whose_job_is_not_is_looked_for() -> None:
    begun = study(StudyStatus(attempts=1))
    assert decide(begun, observed(pod()), SETTINGS, NOW).confirm
    assert not decide(begun, observed(pod()), SETTINGS, NOW, confirmed=True).confirm
    assert not decide(begun, observed(job(deleting=True), pod()), SETTINGS, NOW).confirm


@pytest.mark.parametrize(
    "left",
    [
        pod(),
        pod(1),
        pod(running=False),
        pod(deadline=later(30)),
        pod(study_uid="older", run_id="older"),
        job(deleting=True),
        job(study_uid="older"),
    ],
    ids=["runs", "worker", "pending", "is being deleted", "namesake", "job", "job of a namesake"],
)
@pytest.mark.parametrize("confirmed", [False, True])
def test_no_attempt_begins_beside_what_is_left_of_another(
    left: JobView | PodView, confirmed: bool
) -> None:
    begun = study(StudyStatus(attempts=1))
    decision = decide(begun, observed(left), SETTINGS, NOW, confirmed=confirmed)
    assert (decision.create, decision.apply) == ((), ())
    assert decision.status.conditions[0].reason == "WaitingForPodsToEnd"
    assert decision.status.attempts == 1


def test_pods_that_have_ended_are_not_waited_for() -> None:
    ended = observed(pod(ended=True, running=False))
    decision = decide(study(StudyStatus(attempts=1)), ended, SETTINGS, NOW, confirmed=True)
    assert decision.create[-1]["metadata"]["name"] == "tickets-2"


@pytest.mark.parametrize(
    ("owner", "advice"), [("older", "to be deleted"), ("", "which has no owner: delete it")]
)
def test_job_of_a_namesake_that_is_waited_for_is_named(owner: str, advice: str) -> None:
    message = decide(study(), observed(job(study_uid=owner)), SETTINGS, NOW).status.message
    assert "waiting for Job tickets-1 of an earlier study of this name" in message
    assert message.endswith(advice)


def test_of_two_live_attempts_the_earlier_goes() -> None:
    two = observed(job(1, uid="first"), job(2), pod(), document=progress())
    decision = decide(study(), two, SETTINGS, NOW)
    assert decision.delete == (Deletion("Job", "tickets-1", "first"),)
    assert (decision.status.state, decision.status.attempts) == ("Running", 2)
    gone = observed(job(1, uid="first", deleting=True), job(2), pod(), document=progress())
    assert decide(study(), gone, SETTINGS, NOW).delete == ()


def test_silent_job_is_explained_after_five_seconds() -> None:
    quiet = observed(job(active=0))
    created = decide(study(), observed(), SETTINGS, NOW).status
    early = decide(study(created), quiet, SETTINGS, later(1))
    assert early.explain is None
    assert early.again_after == pytest.approx(4.1)
    assert decide(study(created), quiet, SETTINGS, later(6)).explain == job(active=0)
    told = decide(study(created), quiet, SETTINGS, later(6), explanation="exceeded quota: gpus")
    assert told.status.message == "exceeded quota: gpus"
    assert [event.reason for event in told.events] == ["PodsPending"]


def test_explanation_is_looked_for_less_and_less_often_and_then_no_more() -> None:
    quiet = observed(job(active=0))
    status = decide(study(), observed(), SETTINGS, NOW).status
    second, looks = 6.0, []
    while True:
        decision = decide(study(status), quiet, SETTINGS, later(second), explanation="no quota")
        status = decision.status
        if decision.again_after is None:
            break
        looks.append(second)
        second += decision.again_after
    assert looks == [6.0, pytest.approx(10.1), pytest.approx(20.1)]
    assert decide(study(status), quiet, SETTINGS, later(3600)).explain is None
    assert decide(study(status), quiet, SETTINGS, later(3600)).status == status


def test_event_about_the_next_pod_is_newer_than_the_end_of_the_last() -> None:
    killed = pod(ended=True, running=False, trouble=Trouble("OutOfMemory", "killed"))
    status = decide(study(), observed(), SETTINGS, NOW).status
    quiet = observed(job(active=0), killed)
    for explanation, message in (
        ("", "pod 0: killed"),
        (UNEXPLAINED, "pod 0: killed"),
        ("exceeded quota: gpus", "exceeded quota: gpus"),
    ):
        found = decide(study(status), quiet, SETTINGS, later(6), explanation=explanation)
        assert found.status.message == message


def test_pod_that_cannot_start_is_explained() -> None:
    said = Trouble("ImagePullFailed", "image x cannot be pulled: no such image")
    stuck = pod(running=False, trouble=said)
    decision = decide(study(), observed(job(), stuck), SETTINGS, NOW)
    assert decision.status.message == "pod 0: image x cannot be pulled: no such image"
    assert true_conditions(decision.status) == {"Reconciling"}
    assert decision.status.conditions[-2].reason == "ImagePullFailed"
    assert decision.events[0].reason == "ImagePullFailed"


def test_worker_that_was_killed_is_told_until_another_runs_in_its_place() -> None:
    killed = pod(1, uid="a", ended=True, running=False, trouble=Trouble("OutOfMemory", "killed"))
    again = pod(1, uid="b", created=later(20))
    status, decision = after(
        (observed(job(), pod(), pod(1, uid="a"), document=progress()), 0),
        (observed(job(), pod(), killed, document=progress()), 10),
    )
    assert (status.state, status.message) == ("Running", "pod 1: killed")
    assert true_conditions(status) == {"Running"}
    assert [(event.type, event.reason) for event in decision.events] == [("Warning", "OutOfMemory")]
    same = decide(study(status), observed(job(), pod(), killed, document=progress()), SETTINGS, NOW)
    assert same.events == ()
    starting = pod(1, uid="b", created=later(20), running=False)
    seen = observed(job(), pod(), killed, starting, document=progress())
    assert decide(study(status), seen, SETTINGS, later(30)).status.message == "pod 1: killed"
    seen = observed(job(), pod(), killed, again, document=progress())
    assert decide(study(status), seen, SETTINGS, later(30)).status.message == ""
    twice = pod(1, uid="b", created=later(20), ended=True, running=False)
    seen = observed(job(), pod(), twice, killed, document=progress())
    assert decide(study(status), seen, SETTINGS, later(30)).status.message == ""  # the last counts


def test_search_with_fewer_pods_than_asked_says_why() -> None:
    seen = observed(job(pods=2), pod(), document=progress())
    early = decide(study(), seen, SETTINGS, later(1))
    assert (early.status.message, early.explain) == ("", None)
    assert early.again_after == pytest.approx(4.1)
    asked = decide(study(), seen, SETTINGS, later(6))
    assert (asked.explain, asked.status.state) == (job(pods=2), "Running")
    unexplained = decide(study(), seen, SETTINGS, later(6), explanation=UNEXPLAINED)
    assert (unexplained.status.message, unexplained.explain) == ("", None)
    told = decide(study(), seen, SETTINGS, later(6), explanation="exceeded quota: gpus")
    assert (told.status.state, true_conditions(told.status)) == ("Running", {"Running"})
    assert told.status.message == "1 of 2 pods: exceeded quota: gpus"
    assert [event.reason for event in told.events if event.type == "Warning"] == ["PodsPending"]
    hours_later = decide(study(told.status), seen, SETTINGS, later(3600))
    assert (hours_later.status, hours_later.explain) == (told.status, None)
    both = observed(job(pods=2), pod(), pod(1, running=False), document=progress())
    assert decide(study(told.status), both, SETTINGS, later(3601)).status.message == ""


def test_search_without_a_running_pod_is_starting_again() -> None:
    lost = observed(job(), pod(running=False), document=progress())
    decision = decide(study(StudyStatus(attempts=1)), lost, SETTINGS, NOW)
    assert decision.status.state == "Starting"
    assert decision.status.trials.completed == 1


def test_attempt_is_given_up_only_after_a_second_look() -> None:
    failed = observed(job(failed="BackoffLimitExceeded"))
    assert decide(study(), failed, SETTINGS, NOW).confirm
    assert not decide(study(), failed, SETTINGS, NOW, confirmed=True).confirm
    assert not decide(study(), observed(), SETTINGS, NOW).confirm  # the first begins at once
    last = study(StudyStatus(attempts=5, failed_attempts=4))
    assert decide(last, failed, SETTINGS, NOW).confirm
    assert not decide(last, failed, SETTINGS, NOW, confirmed=True).confirm


def test_next_attempt_begins_only_after_a_second_look() -> None:
    gone = study(StudyStatus(attempts=1))
    assert decide(gone, observed(), SETTINGS, NOW).confirm
    assert not decide(gone, observed(), SETTINGS, NOW, confirmed=True).confirm


def test_child_is_put_right_only_after_a_second_look() -> None:
    seen = replace(observed(job(), pod(), document=progress()), kept={})
    assert decide(study(), seen, SETTINGS, NOW).confirm
    assert not decide(study(), seen, SETTINGS, NOW, confirmed=True).confirm
    edited = observed(job(), pod(), document=progress(), fresh=False)
    assert not decide(study(), edited, SETTINGS, NOW).confirm  # by its user, just now


def test_what_the_api_server_never_takes_fails_the_study() -> None:
    decision = refused(study(), observed(), NOW, 'unknown field "spec.nonsense"')
    assert true_conditions(decision.status) == {"Failed", "Stalled"}
    assert [event.reason for event in decision.events] == ["Failed"]


def test_what_the_api_server_does_not_take_now_lets_the_study_wait() -> None:
    first = forbidden(study(), observed(), NOW, "exceeded quota: used 4 of 4")
    assert true_conditions(first.status) == {"Reconciling"}
    assert [event.reason for event in first.events] == ["Forbidden"]
    again = forbidden(study(first.status), observed(), later(9), "exceeded quota: used 3 of 4")
    assert again.events == ()  # no news


def test_child_that_is_not_taken_now_is_told_and_changes_nothing_else() -> None:
    seen = observed(job(), pod(), document=progress())
    running = decide(study(), seen, SETTINGS, NOW)
    told = hindered(study(running.status), seen, running, later(9), "the policy says no")
    assert (told.status.state, told.status.message) == ("Running", "the policy says no")
    assert true_conditions(told.status) == {"Running"}
    assert {condition.reason for condition in told.status.conditions} == {"Forbidden"}
    assert [(event.type, event.reason) for event in told.events] == [("Warning", "Forbidden")]
    again = decide(study(told.status), seen, SETTINGS, later(20))
    same = hindered(study(told.status), seen, again, later(20), "the policy says no")
    assert (same.status, same.events) == (told.status, ())


def test_study_is_not_complete_before_its_winner_is_taken() -> None:
    running = decide(study(), observed(job(), pod(), document=progress()), SETTINGS, NOW).status
    best = Findings(best=TrialResult(trial=3, value=0.75))
    done = progress("Finished", reason="SearchFinished", findings=best)
    seen = observed(job(succeeded=True), document=done)
    complete = decide(study(running), seen, SETTINGS, later(9))
    told = hindered(study(running), seen, complete, later(9), "the policy says no")
    assert (told.status.state, told.status.best) == ("Running", best.best)
    assert true_conditions(told.status) == {"Reconciling", "Running"}
    assert [event.reason for event in told.events] == ["Forbidden"]
    after_all = decide(study(told.status), seen, SETTINGS, later(60))
    assert true_conditions(after_all.status) == {"Complete"}
    assert [made["kind"] for made in after_all.create] == ["ConfigMap"]


def test_study_that_only_a_newer_operator_can_read_stands_still() -> None:
    running = decide(study(), observed(job(), pod(), document=progress()), SETTINGS, NOW).status
    status = unreadable(running, 2, later(5), "spec.task: must be one of …")
    assert true_conditions(status) == {"Running", "Stalled"}
    assert status.trials == running.trials
    assert unreadable(status, 2, later(60), "spec.task: must be one of …") == status


def test_pod_on_a_lost_node_is_deleted_by_force_only_after_its_deadline() -> None:
    lost = observed(job(), pod(deadline=NOW))
    waiting = decide(study(), lost, SETTINGS, later(10))
    assert not waiting.delete
    assert waiting.again_after == pytest.approx(20)
    assert decide(study(), lost, SETTINGS, later(30)).delete == (
        Deletion("Pod", "tickets-1-0-abcde", "pod-0", force=True),
    )


@pytest.mark.parametrize(
    ("said", "jobs", "forced"),
    [
        ({}, [job()], True),
        ({"controller": "gone"}, [job(2, uid="second")], True),
        ({"controller": "gone", "controller_name": "tickets-1-x7kqz"}, [], True),  # KubeRay's
        ({"controller": "", "controller_name": ""}, [job()], False),
        ({"controller": "set", "controller_name": ""}, [job()], False),  # not a Job's
        ({"controller": "other", "controller_name": "tickets-eval"}, [job()], False),
        ({"controller": "other", "controller_name": "others-1"}, [], False),
        ({"study_uid": "earlier", "controller": "gone"}, [], False),
        ({}, [job(study_uid="earlier")], False),
    ],
)
def test_only_pods_that_the_studys_own_attempts_made_are_deleted_by_force(
    said: dict[str, Any], jobs: list[JobView], forced: bool
) -> None:
    seen = observed(*jobs, pod(deadline=NOW, **said))
    decision = decide(study(StudyStatus(attempts=1)), seen, SETTINGS, later(60))
    assert [each.kind for each in decision.delete if each.force] == ["Pod"] * forced


def test_pod_of_somebody_else_that_is_waited_for_is_named() -> None:
    status = decide(study(), observed(pod(controller_name="")), SETTINGS, NOW).status
    assert "pod tickets-1-0-abcde to end" in status.message
    assert "does not delete it" in status.message


@pytest.mark.parametrize("phase", ["Preparing", "Drained", "Failed"])
def test_what_was_found_stays_until_a_driver_has_read_the_records(phase: str) -> None:
    best = TrialResult(trial=3, value=0.75)
    found = Findings(trials=TrialCounts(planned=4, completed=3), best=best, gpu_seconds=7)
    before = StudyStatus(**found.__dict__, attempts=1)
    says = progress(phase, reason="Running", findings=Findings(), term=2)
    status = decide(
        study(before), observed(job(), pod(), document=says, term=2), SETTINGS, NOW
    ).status
    assert (status.best, status.trials, status.gpu_seconds) == (best, found.trials, 7)
    news = progress("Searching", term=2)
    seen = observed(job(), pod(), document=news, term=2)
    assert decide(study(status), seen, SETTINGS, NOW).status.trials == news.findings.trials


def test_study_that_is_not_accepted_for_a_while_is_stalled_until_it_is() -> None:
    first = forbidden(study(), observed(), NOW, "denied").status
    assert true_conditions(first) == {"Reconciling"}
    soon = forbidden(study(first), observed(), later(299), "denied").status
    assert true_conditions(soon) == {"Reconciling"}
    late = forbidden(study(soon), observed(), later(301), "denied")
    assert true_conditions(late.status) == {"Stalled"}
    stalled = late.status.condition("Stalled")
    assert stalled is not None
    assert (late.status.state, stalled.reason) == ("Pending", "Forbidden")
    assert not late.events  # it has been announced
    still = forbidden(study(late.status), observed(), later(400), "denied").status
    assert true_conditions(still) == {"Stalled"}
    on = decide(study(still), observed(), SETTINGS, later(401)).status
    assert (on.state, true_conditions(on)) == ("Starting", {"Reconciling"})


def test_time_in_which_a_study_did_come_further_does_not_make_it_stalled() -> None:
    starting = decide(study(), observed(), SETTINGS, NOW).status
    status = forbidden(study(starting), observed(), later(1000), "denied").status
    assert true_conditions(status) == {"Reconciling"}


def test_finished_study_is_deleted_when_its_time_is_over() -> None:
    finished = decide(
        study(), observed(job(succeeded=True), document=progress("Finished")), SETTINGS, NOW
    ).status
    kept = decide(study(finished), observed(), SETTINGS, later(10**6))
    assert not kept.delete_study
    assert kept.again_after is None
    early = decide(study(finished, ttlSecondsAfterFinished=60), observed(), SETTINGS, later(10))
    assert (early.delete_study, early.again_after) == (False, 50)
    assert decide(
        study(finished, ttlSecondsAfterFinished=60), observed(), SETTINGS, later(60)
    ).delete_study


def test_finished_study_stays_finished_whatever_is_seen() -> None:
    finished = decide(
        study(), observed(job(succeeded=True), document=progress("Finished")), SETTINGS, NOW
    ).status
    for seen in (
        Observed(),
        observed(job(failed="x")),
        observed(job(), pod(), document=progress()),
    ):
        for suspend in (False, True):
            decision = decide(study(finished, suspend=suspend), seen, SETTINGS, later(9))
            assert true_conditions(decision.status) == {"Complete"}
            assert (decision.create, decision.apply) == ((), ())
            said = [event.reason for event in decision.events]
            assert said == (["NoEffect"] if suspend else [])


@pytest.mark.parametrize(
    ("left", "goes"),
    [
        (job(), True),
        (job(held=True, active=0), True),
        (job(succeeded=True), False),
        (job(failed="BackoffLimitExceeded"), False),
        (job(deleting=True), False),
    ],
    ids=["runs", "queued", "succeeded", "failed", "deleting"],
)
def test_no_job_of_a_finished_study_runs_on(left: JobView, goes: bool) -> None:
    finished = decide(
        study(), observed(job(succeeded=True), document=progress("Finished")), SETTINGS, NOW
    ).status
    decision = decide(study(finished), observed(left), SETTINGS, later(9))
    assert decision.delete == ((Deletion("Job", "tickets-1", JOB_UID),) if goes else ())


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
)


@given(
    st.dictionaries(
        st.sampled_from(["findings", "term", "phase", "reason", "message", "time", "x"]), _JSON
    )
)
def test_document_of_a_hostile_driver_is_believed_or_ignored_but_never_raises(
    changes: dict[str, Any],
) -> None:
    text = json.dumps({**json.loads(progress().model_dump_json()), **changes})
    found = believed_progress(study(), observed(job(), document=text))
    assert found is None or (found.study_uid, found.job_uid) == (UID, JOB_UID)


@given(st.text(max_size=200))
def test_text_that_is_no_document_is_ignored(text: str) -> None:
    assert believed_progress(study(), observed(job(), document=text)) is None


def test_document_that_is_too_long_is_ignored() -> None:
    text = progress().model_dump_json() + " " * MAX_PROGRESS_BYTES
    meta = {"name": "tickets-progress", "uid": "c", "ownerReferences": []}
    assert ConfigView.of({"metadata": meta, "data": {"progress": text}}).progress == ""


def test_transition_time_moves_only_with_the_status_of_a_condition() -> None:
    kind: ConditionType = "Failed"
    first = with_condition([], kind, False, "Running", "", 1, NOW)
    same = with_condition(first, kind, False, "Running", "more", 2, later(5))
    changed = with_condition(same, kind, True, "DataError", "", 2, later(9))
    assert [c[0].last_transition_time for c in (first, same, changed)] == [NOW, NOW, later(9)]


_FALSE_ALONE = {
    "Complete": {"the study has not ended yet", "the study has failed: no rows"},
    "Failed": {"the study has not failed", "the study is complete"},
    "Suspended": {
        "the study is not suspended",
        "pods have not ended yet",
        "the study is complete",
        "the study has failed: no rows",
    },
    "Stalled": {
        "the study goes on, or the operator keeps trying",
        "it is suspended, and goes on once spec.suspend is false",
        "the study is complete",
    },
}


@pytest.mark.parametrize(
    ("seen", "spec"),
    [
        (Observed(), {}),
        (Observed(), {"suspend": True}),
        (observed(job(), pod()), {"suspend": True}),
        (observed(job(), pod(trouble=Trouble("Unschedulable", "no node"))), {}),
        (observed(job(), pod(), document=progress()), {}),
        (observed(job(), document=progress("Finished", reason="BudgetSpent")), {}),
        (observed(job(), document=progress("Failed", reason="DataError", message="no rows")), {}),
    ],
)
def test_a_condition_that_is_false_says_why_in_words_of_its_own(
    seen: Observed, spec: dict[str, Any]
) -> None:
    status = decide(study(**spec), seen, SETTINGS, NOW).status
    assert len(status.conditions) == 6
    for condition in status.conditions:
        if condition.status == "True":
            assert condition.message == status.message
        elif condition.type in _FALSE_ALONE:
            assert condition.message in _FALSE_ALONE[condition.type]


# The plan.


def test_the_plan_is_in_the_status_before_the_first_pod_and_follows_the_budget() -> None:
    search = {"algorithm": "Random", "scheduler": {"type": "ASHA"}}
    first = decide(study(search=search, budget={"maxTrials": 9}), Observed(), SETTINGS, NOW).status
    assert first.plan is not None
    assert [(rung.resource, rung.trials) for rung in first.plan.rungs] == [(1, 9), (3, 3)]
    more = study(first, search=search, budget={"maxTrials": 27})
    assert decide(more, Observed(), SETTINGS, NOW).status.plan == first.plan
    edited = more.model_copy(
        update={"metadata": more.metadata.model_copy(update={"generation": 2})}
    )
    plan = decide(edited, Observed(), SETTINGS, NOW).status.plan
    assert plan is not None
    assert plan.trials == 27


def test_a_chosen_search_is_planned_by_the_rule_and_then_as_the_driver_chose_it() -> None:
    few, many = {"maxTrials": 6}, {"maxTrials": 1000}
    first = decide(study(search={}, budget=few), Observed(), SETTINGS, NOW).status
    assert first.plan is not None
    chosen = first.plan.search
    assert chosen is not None
    assert (chosen.scheduler, chosen.min_resource) == ("Hyperband", 1)  # of three epochs
    begun = first.model_copy(update={"search": chosen})
    edited = study(begun, search={}, budget=many)
    edited = edited.model_copy(
        update={"metadata": edited.metadata.model_copy(update={"generation": 2})}
    )
    plan = decide(edited, Observed(), SETTINGS, NOW).status.plan
    assert plan is not None
    assert (plan.trials, plan.search) == (1000, chosen)
    prepares = decide(
        edited, observed(job(), document=progress(findings=Findings())), SETTINGS, NOW
    )
    assert prepares.status.search == chosen  # a driver that starts again has not read it yet
    strange = ChosenSearch(algorithm="Oracle", scheduler="None")  # a later version's, or anybody's
    said = progress(findings=Findings(search=strange))
    kept = decide(
        study(first, search={}, budget=few), observed(job(), document=said), SETTINGS, NOW
    )
    assert kept.status.plan == first.plan
    told = ChosenSearch(algorithm="Random", scheduler="None")  # by an earlier version's rule
    said = progress(findings=Findings(search=told))
    plan = decide(
        study(first, search={}, budget=few), observed(job(), document=said), SETTINGS, NOW
    ).status.plan
    assert plan is not None
    assert plan.search == told


def test_hours_and_price_are_planned_as_soon_as_an_epoch_is_measured() -> None:
    planned = study(budget={"maxTrials": 9, "pricePerGpuHour": 2.0})
    before = decide(planned, observed(job(), document=progress()), SETTINGS, NOW).status.plan
    assert before is not None
    assert (before.worst_case_epochs, before.worst_case_gpu_hours) == (27, None)
    measured = Findings(gpu_seconds=401.0, spending=Spending(epochs=2))
    seen = observed(job(), document=progress(findings=measured))
    plan = decide(planned, seen, SETTINGS, NOW).status.plan
    assert plan is not None
    assert (plan.worst_case_gpu_hours, plan.worst_case_price) == (27 * 200 / 3600, 3.0)


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ("batchSize <", "spec.search.constraints[0]: must be a CEL expression"),
        ("batch < 8", "spec.search.constraints[0]: must name only hyperparameters"),
        ("batchSize > 999", "spec.search.constraints: must leave something to try"),
    ],
)
def test_constraints_that_are_wrong_fail_the_study_before_any_pod(
    constraint: str, reason: str
) -> None:
    space = {"batchSize": {"values": [8, 16]}}
    search = {"algorithm": "Random", "constraints": [constraint]}
    decision = decide(study(searchSpaces=[space], search=search), Observed(), SETTINGS, NOW)
    assert decision.status.state == "Failed"
    assert decision.status.message.startswith(reason)
    assert not decision.create
