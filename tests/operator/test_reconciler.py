"""Decisions are carried out in order, on what they were made for, and what is refused is told."""

import logging
import re
from collections.abc import AsyncIterator

import pytest

from finetune_operator import names
from finetune_operator.children import Manifest
from finetune_operator.decide import NAMESPACE_ENDS
from finetune_operator.kube import Conflict, Forbidden, Gone, KubeError, Refused
from finetune_operator.observe import JobView, RayJobView
from tests.api.wrong_manifests import VALID, changed
from tests.operator.fake_api import Answer, Broken, FakeApi, Request, Stalled
from tests.operator.one_study import (
    BEFORE_JOB,
    CHILD_PATHS,
    CONFIGS,
    CORE,
    JOBS,
    KEY,
    LONG_AGO,
    MADE_AT,
    PODS,
    STUDY,
    Cluster,
)
from tests.operator.studies import SETTINGS, UID


@pytest.fixture
async def cluster(api: FakeApi) -> AsyncIterator[Cluster]:
    one = Cluster(api)
    yield one
    one.reconciler.show_none()


def place(requests: list[Request], method: str, part: str) -> int:
    """Which of the requests is the only one of that method whose path ends so."""
    (found,) = [
        n for n, one in enumerate(requests) if one.method == method and one.path.endswith(part)
    ]
    return found


# -- order


async def test_what_depends_on_each_other_is_made_one_after_another(cluster: Cluster) -> None:
    cluster.api.on("POST", "/roles", Stalled(0.03))
    cluster.api.on("POST", "/secrets", Stalled(0.05))
    cluster.api.on("POST", "/rolebindings", Stalled(0.03))
    cluster.api.on("POST", "/jobs", Stalled(0.03))
    cluster.api.on("PATCH", "/status", Stalled(0.03))
    await cluster.begin()
    requests = cluster.api.requests
    order = [
        place(requests, "POST", "/roles"),
        place(requests, "POST", "/rolebindings"),
        place(requests, "POST", "/jobs"),
        place(requests, "PATCH", "/tickets/status"),
        place(requests, "POST", "/events"),
    ]
    assert order == sorted(order)
    assert [requests[each].beside for each in order[1:]] == [0, 0, 0, 0]
    assert order[1:] == [*range(len(requests) - 4, len(requests))]
    written = {str(request).split(" ")[1] for request in requests}
    assert set(MADE_AT.values()) <= written
    assert all(cluster.api.get(path) for path in CHILD_PATHS.values())


@pytest.mark.parametrize("child", CHILD_PATHS)
async def test_no_job_is_made_while_a_child_is_missing(child: str, cluster: Cluster) -> None:
    cluster.api.on("POST", MADE_AT[child], Answer(500, "etcd is away"))
    cluster.put_study()
    with pytest.raises(KubeError, match="etcd is away"):
        await cluster.hear_and_look()
    assert cluster.made() == []
    assert cluster.statuses() == []
    await cluster.hear_and_look()  # the others are not asked for in vain
    assert cluster.made() == ["tickets-1"]


async def test_all_requests_have_ended_when_one_has_failed(cluster: Cluster) -> None:
    cluster.api.on("POST", MADE_AT["ServiceAccount"], Answer(500))
    cluster.api.on("POST", MADE_AT["Service"], Stalled(0.05))
    cluster.put_study()
    with pytest.raises(KubeError):
        await cluster.hear_and_look()
    assert cluster.api.get(CHILD_PATHS["Service"]) is not None


async def test_deletion_that_was_not_taken_stops_everything_else(cluster: Cluster) -> None:
    await cluster.run()
    cluster.put_study({"spec.suspend": True})
    cluster.api.on("DELETE", "/tickets-1", Answer(500, "no"))
    with pytest.raises(KubeError):
        await cluster.hear_and_look()
    assert cluster.statuses() == []
    assert not any(job.deleting for job in cluster.store.observed(KEY).jobs)


async def test_nothing_is_asked_if_nothing_is_new(cluster: Cluster) -> None:
    await cluster.run()
    await cluster.hear_and_look()
    assert cluster.api.requests == []


# -- the leader


async def test_nothing_is_written_by_who_does_not_lead(cluster: Cluster) -> None:
    cluster.leads = False
    cluster.put_study()
    with pytest.raises(KubeError, match="is not the leader"):
        await cluster.hear_and_look()
    assert cluster.api.writes() == []


@pytest.mark.parametrize("last", ["/rolebindings", "/jobs"])
async def test_who_loses_the_lease_writes_nothing_more(last: str, cluster: Cluster) -> None:
    def lose() -> None:
        cluster.leads = False

    cluster.api.on("POST", last, lose)
    cluster.put_study()
    with pytest.raises(KubeError, match="is not the leader"):
        await cluster.hear_and_look()
    assert cluster.api.writes()[-1].startswith("POST")
    assert cluster.api.writes()[-1].endswith(last)


# -- the status


async def test_status_is_written_only_to_the_version_it_was_decided_on(cluster: Cluster) -> None:
    cluster.put_study()
    cluster.hear()
    seen = str(cluster.api.version)
    await cluster.look()
    meta = cluster.api.asked("PATCH", "tickets/status")[0].body["metadata"]
    assert (meta["resourceVersion"], meta["uid"]) == (seen, UID)


@pytest.mark.parametrize("anew", [False, True], ids=["changed", "another of its name"])
async def test_status_of_a_study_that_has_changed_is_not_written(
    anew: bool, cluster: Cluster
) -> None:
    def change() -> None:
        if anew:
            cluster.api.remove(STUDY)
        cluster.put_study({"metadata.uid": "another" if anew else UID}, {"message": "by another"})

    cluster.api.on("POST", "/jobs", change)
    cluster.put_study()
    with pytest.raises(Conflict):
        await cluster.hear_and_look()
    assert cluster.status == {"message": "by another"}
    assert len(cluster.statuses()) == 1  # and it is not tried with less in it


async def test_what_was_written_here_is_known_before_the_watch_tells_it(cluster: Cluster) -> None:
    await cluster.begin()
    await cluster.look()
    assert cluster.api.writes() == [str(request) for request in cluster.api.requests]
    assert [status["attempts"] for status in cluster.statuses()] == [1]  # it waits for pods now
    await cluster.look()
    assert cluster.statuses() == []
    assert cluster.made() == ["tickets-1"]


async def test_status_that_is_refused_is_written_without_what_it_may_be_refused_for(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    uid = await cluster.begin()
    stored = [each for each in cluster.status["conditions"] if each["type"] != "Running"]
    before = {**cluster.status, "conditions": stored}
    cluster.put_pod(uid)
    cluster.put_progress(uid, message="it goes on", findings={"trials": {"completed": 2}})
    edited = {"spec.budget.maxTrials": 9, "metadata.generation": 2}
    cluster.put_study(edited, status=before)
    invalid = Answer(422, "status.plan: Invalid value", "Invalid")
    cluster.api.on("PATCH", "/status", invalid, invalid, invalid)
    with caplog.at_level(logging.WARNING):
        await cluster.hear_and_look()
    whole, of_first_crd, without_plan, without_findings = cluster.statuses()
    assert whole["plan"] != before["plan"]
    assert "Running" in {each["type"] for each in whole["conditions"]}
    known = [each for each in whole["conditions"] if each["type"] != "Running"]
    added = {"workers", "bestShown", "conditions"}
    first = {name: what for name, what in whole.items() if name not in added}
    assert of_first_crd == {**first, "conditions": known}
    assert without_plan == {**of_first_crd, "plan": before["plan"]}
    assert without_findings == {**without_plan, "trials": before["trials"]}
    assert cluster.status["state"] == "Running"
    assert caplog.text.count("status refused") == 3


async def test_status_that_is_refused_altogether_is_tried_again_later(cluster: Cluster) -> None:
    cluster.api.on("PATCH", "/status", *[Answer(422, "no", "Invalid")] * 4)
    cluster.put_study()
    with pytest.raises(Refused):
        await cluster.hear_and_look()
    assert len(cluster.statuses()) == 4


async def test_study_that_is_gone_when_its_status_is_written_is_forgotten(
    cluster: Cluster,
) -> None:
    cluster.api.on("POST", "/jobs", lambda: cluster.api.remove(STUDY))
    cluster.put_study()
    await cluster.hear_and_look()
    assert cluster.reconciler.studies() == []
    await cluster.look()
    assert cluster.api.requests == []


async def test_only_progress_that_was_written_here_is_no_news(cluster: Cluster) -> None:
    def is_news() -> bool:
        study = cluster.api.get(STUDY)
        assert study is not None
        return cluster.reconciler.put(KEY, study)

    uid = await cluster.run()
    assert is_news()  # that it runs was more than progress
    best = {"trial": 2, "value": 0.123456}
    cluster.put_progress(uid, findings={"trials": {"completed": 3}, "best": best})
    await cluster.hear_and_look()
    assert cluster.status["trials"]["completed"] == 3
    assert cluster.status["bestShown"] == "0.1235"
    assert not is_news()
    cluster.put_study({"spec.suspend": True, "metadata.generation": 2})
    assert is_news()


async def test_progress_waits_for_its_turn_after_a_status(cluster: Cluster) -> None:
    assert cluster.pace.wait(KEY) == 0
    await cluster.begin()
    assert cluster.pace.wait(KEY) > 1


async def test_study_of_a_newer_api_is_told_so_and_loses_nothing(cluster: Cluster) -> None:
    uid = await cluster.run()
    cluster.put_study({"spec.task": "NewTask", "metadata.generation": 2})
    await cluster.hear_and_look()
    assert cluster.api.writes() == [f"PATCH {STUDY}/status"]
    assert cluster.reason("Stalled") == "InvalidSpec"
    assert cluster.status["trials"]["completed"] == 1
    assert cluster.store.observed(KEY).jobs[0].uid == uid
    cluster.put_study({"spec.task": "NewTask"}, {"state": "NewState"})
    await cluster.hear_and_look()
    assert cluster.api.writes() == []


async def test_study_that_is_being_deleted_is_left_alone(cluster: Cluster) -> None:
    cluster.put_study({"metadata.deletionTimestamp": LONG_AGO})
    assert await cluster.hear_and_look() is None
    assert cluster.api.requests == []


async def test_end_of_an_earlier_study_does_not_remove_a_later_one(cluster: Cluster) -> None:
    body = changed(VALID, {"metadata.uid": UID, "metadata.resourceVersion": "9"})
    cluster.reconciler.put(KEY, body)
    assert not cluster.reconciler.remove(KEY, 8)
    assert cluster.reconciler.studies() == [KEY]
    assert cluster.reconciler.remove(KEY, 10)
    assert cluster.reconciler.studies() == []
    cluster.reconciler.put(KEY, body)  # an answer that was on its way
    assert cluster.reconciler.studies() == []


# -- what is there already


async def test_job_whose_answer_was_lost_stays_the_only_one(cluster: Cluster) -> None:
    cluster.api.on("POST", "/jobs", Broken(after=True))
    cluster.put_study()
    with pytest.raises(KubeError):
        await cluster.hear_and_look()
    assert cluster.statuses() == []
    await cluster.look()  # nothing was heard of it
    assert cluster.made() == ["tickets-1"]
    assert [job.name for job in cluster.store.observed(KEY).jobs] == ["tickets-1"]
    assert (cluster.status["attempts"], cluster.reason()) == (1, "CreatingPods")


async def test_job_of_a_stranger_is_not_taken_for_the_studys(cluster: Cluster) -> None:
    cluster.put_study()
    cluster.hear()
    theirs = cluster.put_job(owner="stranger")
    with pytest.raises(Forbidden, match="tickets-1 exists and does not belong to this study"):
        await cluster.look()
    assert (cluster.status["state"], cluster.reason()) == ("Pending", "Forbidden")
    assert "delete it" in cluster.status["message"]
    found = cluster.api.get(f"{JOBS}/tickets-1")
    assert found is not None
    assert found["metadata"]["uid"] == theirs
    assert not [request for request in cluster.api.requests if request.method == "DELETE"]


async def test_job_that_was_there_and_is_gone_is_made_at_the_next_try(cluster: Cluster) -> None:
    cluster.api.on("POST", "/jobs", Answer(409, "exists", "AlreadyExists"))
    cluster.put_study()
    with pytest.raises(Conflict, match="is gone"):
        await cluster.hear_and_look()
    assert cluster.statuses() == []
    await cluster.look()
    assert cluster.made() == ["tickets-1"]


async def test_secret_that_is_there_is_never_taken_for_the_studys(cluster: Cluster) -> None:
    cluster.api.on("POST", "/secrets", Answer(409, "exists", "AlreadyExists"))
    cluster.put_study()
    with pytest.raises(Conflict):
        await cluster.hear_and_look()
    assert cluster.made() == []
    (taken,) = [
        request.body["metadata"]["name"] for request in cluster.api.asked("POST", "/secrets")
    ]
    await cluster.hear_and_look()
    (secret,) = cluster.api.all(f"{CORE}/secrets")
    assert secret["metadata"]["name"] != taken
    (job,) = cluster.api.all(JOBS)
    volumes = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert volumes["ray"]["secret"]["secretName"] == secret["metadata"]["name"]


# -- what belongs to somebody else


async def test_all_that_an_attempt_needs_is_among_what_somebody_may_have_taken(
    cluster: Cluster,
) -> None:
    await cluster.begin()
    made = {
        f"{request.path}/{request.body['metadata']['name']}"
        for request in cluster.api.requests
        if request.method == "POST"
    }
    beside = {path for path in made if not re.search("/(secrets|events)/", path)}
    assert beside == set(BEFORE_JOB.values())


@pytest.mark.parametrize("labelled", [False, True], ids=["unlabelled", "labelled"])
@pytest.mark.parametrize("child", BEFORE_JOB)
async def test_what_belongs_to_somebody_else_is_left_alone_and_the_study_waits(
    child: str, labelled: bool, cluster: Cluster
) -> None:
    path = BEFORE_JOB[child]
    labels = {names.STUDY_LABEL: "tickets", names.UID_LABEL: UID} if labelled else {}
    meta = {"name": path.rsplit("/", 1)[1], "namespace": "default", "labels": labels}
    theirs = cluster.api.put(path, {"metadata": meta, "data": {"of": "somebody"}})
    cluster.put_study()
    if labelled and child == "Job":
        await cluster.hear_and_look()
        assert cluster.reason() == "WaitingForPodsToEnd"
    else:
        with pytest.raises(Forbidden, match=f"{meta['name']} exists and does not belong"):
            await cluster.hear_and_look()
        assert (cluster.status["state"], cluster.reason()) == ("Pending", "Forbidden")
    assert cluster.api.get(path) == theirs
    assert cluster.made() == (["tickets-1"] if child == "Job" else [])
    cluster.api.remove(path)
    await cluster.hear_and_look()
    assert cluster.made() == ["tickets-1"]
    assert cluster.api.get(path) != theirs


@pytest.mark.parametrize("child", CHILD_PATHS)
async def test_what_somebody_made_in_the_place_of_a_child_is_left_alone_while_the_search_runs(
    child: str, cluster: Cluster
) -> None:
    await cluster.run()
    path = CHILD_PATHS[child]
    cluster.api.remove(path)
    meta = {"name": path.rsplit("/", 1)[1], "namespace": "default"}
    theirs = cluster.api.put(path, {"metadata": meta})
    with pytest.raises(Forbidden, match="does not belong to this study"):
        await cluster.hear_and_look()
    assert cluster.api.get(path) == theirs
    # Without its ConfigMap, a driver is not heard.
    assert cluster.status["state"] == ("Starting" if child == "progress" else "Running")
    assert cluster.made() == ["tickets-1"]
    assert "does not belong" in cluster.status["message"]


@pytest.mark.parametrize("child", [child for child in CHILD_PATHS if child != "progress"])
async def test_a_child_is_changed_only_if_it_is_still_the_one_that_was_looked_at(
    child: str, cluster: Cluster
) -> None:
    await cluster.run()
    path = CHILD_PATHS[child]
    found = cluster.api.get(path)
    assert found is not None
    edited = {**found["metadata"], "labels": {names.STUDY_LABEL: "tickets"}, "annotations": {}}
    cluster.api.put(path, {**found, "metadata": edited})
    theirs: list[Manifest] = []

    def replace() -> None:
        cluster.api.remove(path)
        theirs.append(cluster.api.put(path, {"metadata": {"name": edited["name"]}}))

    cluster.api.on("PATCH", path, replace)
    with pytest.raises(Conflict):
        await cluster.hear_and_look()
    assert cluster.api.get(path) == theirs[0]


async def complete(cluster: Cluster) -> str:
    """Let the driver and the Job of a running study say that it is finished; the UID of the Job."""
    uid = await cluster.run()
    best = {"trials": {"completed": 4}, "best": {"trial": 3, "value": 0.75}}
    cluster.put_progress(uid, "Finished", reason="SearchFinished", findings=best)
    cluster.put_job(status={"conditions": [{"type": "Complete", "status": "True"}]})
    return uid


async def test_winner_of_a_stranger_completes_no_study(cluster: Cluster) -> None:
    await complete(cluster)
    meta = {"name": "tickets-winner", "namespace": "default"}
    cluster.api.put(f"{CONFIGS}/tickets-winner", {"metadata": meta, "data": {"trial": "9"}})
    with pytest.raises(Forbidden, match="tickets-winner exists and does not belong to this study"):
        await cluster.hear_and_look()
    assert (cluster.status["state"], cluster.reason()) == ("Running", "Forbidden")
    cluster.api.remove(f"{CONFIGS}/tickets-winner")
    await cluster.hear_and_look()
    assert cluster.status["state"] == "Complete"
    winner = cluster.api.get(f"{CONFIGS}/tickets-winner")
    assert winner is not None
    assert winner["data"]["trial"] == "3"


# -- what is refused


MALFORMED = Answer(422, 'Job.batch "tickets-1" is invalid: spec.template: Invalid value', "Invalid")
DENIED = Answer(
    422, 'jobs.batch "tickets-1" is forbidden: ValidatingAdmissionPolicy says no', "Invalid"
)
UNSUPPORTED = Answer(400, "admission webhook does not support dry run", "BadRequest")
OWN_TEMPLATE: Manifest = {"spec.cluster.podTemplate": {"spec": {"hostname": "Ä"}}}


async def test_pod_template_of_the_study_that_is_never_taken_fails_it(cluster: Cluster) -> None:
    cluster.api.on("POST", "/jobs", MALFORMED)
    cluster.put_study(OWN_TEMPLATE)
    assert await cluster.hear_and_look() is None
    assert cluster.reason("Failed") == "InvalidPodTemplate"
    assert "spec.template: Invalid value" in cluster.status["message"]
    assert cluster.made() == []


@pytest.mark.parametrize(
    ("changes", "answers"),
    [
        ({}, [MALFORMED]),
        (OWN_TEMPLATE, [MALFORMED, MALFORMED]),
        (OWN_TEMPLATE, [MALFORMED, DENIED]),
        (OWN_TEMPLATE, [MALFORMED, UNSUPPORTED]),
        (OWN_TEMPLATE, [DENIED]),
    ],
    ids=[
        "of the platform",
        "of the platform too",
        "not judged because it is denied",
        "not judged by a dry run",
        "denied",
    ],
)
async def test_what_the_study_is_not_to_blame_for_lets_it_wait_until_it_is_mended(
    changes: Manifest, answers: list[Answer], cluster: Cluster
) -> None:
    cluster.api.on("POST", "/jobs", *answers)
    cluster.put_study(changes)
    with pytest.raises(Refused):
        await cluster.hear_and_look()
    assert (cluster.status["state"], cluster.reason()) == ("Pending", "Forbidden")
    assert cluster.status["message"] == answers[0].message
    await cluster.hear_and_look()
    assert (cluster.status["attempts"], cluster.made()) == (1, ["tickets-1"])


@pytest.mark.parametrize("path", ["/jobs", "/secrets", *sorted(set(MADE_AT.values()))])
async def test_what_is_not_taken_now_lets_the_study_wait(path: str, cluster: Cluster) -> None:
    cluster.api.on("POST", path, Answer(403, "exceeded quota", "Forbidden"))
    cluster.put_study()
    with pytest.raises(Forbidden):
        await cluster.hear_and_look()
    assert (cluster.status["state"], cluster.reason()) == ("Pending", "Forbidden")
    assert cluster.made() == []
    (event,) = [request.body for request in cluster.api.asked("POST", "/events")]
    assert (event["type"], event["reason"]) == ("Warning", "Forbidden")
    assert event["involvedObject"]["uid"] == UID
    await cluster.hear_and_look()
    assert (cluster.status["attempts"], cluster.made()) == (1, ["tickets-1"])


@pytest.mark.parametrize("status", [403, 422])
async def test_child_that_is_not_taken_while_the_search_runs_stops_nothing(
    status: int, cluster: Cluster
) -> None:
    await cluster.run()
    cluster.api.remove(CHILD_PATHS["Role"])
    cluster.api.on("POST", "/roles", Answer(status, "the policy says no"))
    with pytest.raises(KubeError, match="the policy says no"):
        await cluster.hear_and_look()
    assert (cluster.status["state"], cluster.status["message"]) == ("Running", "the policy says no")
    assert cluster.made() == ["tickets-1"]
    await cluster.hear_and_look()
    assert cluster.api.get(CHILD_PATHS["Role"]) is not None


async def test_kuberay_that_is_not_there_is_told(cluster: Cluster) -> None:
    cluster.use(SETTINGS.model_copy(update={"engine": "RayJob"}))
    missing = Answer(404, "the server could not find the requested resource")
    cluster.api.on("POST", "/rayjobs", missing, missing)
    cluster.api.on(
        "GET", "/apis/ray.io/v1", missing, Answer(200, text='{"resources": [{"name": "rayjobs"}]}')
    )
    cluster.put_study()
    with pytest.raises(Forbidden, match="RayJob is not served"):
        await cluster.hear_and_look()
    assert cluster.reason() == "Forbidden"
    with pytest.raises(Gone):  # it was something else: the namespace
        await cluster.hear_and_look()
    await cluster.hear_and_look()
    assert cluster.made() == ["tickets-1"]


async def test_engine_is_chosen_anew_where_it_may_be_either(cluster: Cluster) -> None:
    cluster.use(SETTINGS.model_copy(update={"engine": "Auto"}))
    cluster.ray_jobs = True
    cluster.api.on("POST", "/rayjobs", Answer(404, "the server could not find it"))
    cluster.put_study()
    with pytest.raises(Gone):
        await cluster.hear_and_look()
    assert cluster.statuses() == []
    cluster.ray_jobs = False
    await cluster.hear_and_look()
    assert [body["metadata"]["name"] for body in cluster.api.all(JOBS)] == ["tickets-1"]


# -- Events


@pytest.mark.parametrize(
    "answer",
    [
        Answer(403, "no right to"),
        Answer(409, "exists", "AlreadyExists"),
        Answer(409, "quota", "Conflict"),
        Answer(422, "involvedObject.namespace: Invalid value"),
    ],
)
async def test_event_that_is_refused_is_logged_and_hinders_nothing(
    answer: Answer, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.api.on("POST", "/events", answer)
    with caplog.at_level(logging.WARNING):
        await cluster.begin()
    assert "Event not posted" in caplog.text
    assert cluster.status["attempts"] == 1
    assert not [request for request in cluster.api.requests if request.method == "DELETE"]


async def test_event_that_cannot_be_posted_now_comes_after_the_status(cluster: Cluster) -> None:
    cluster.api.on("POST", "/events", Answer(500, "etcd is away"))
    cluster.put_study()
    with pytest.raises(KubeError, match="etcd is away"):
        await cluster.hear_and_look()
    assert cluster.status["attempts"] == 1


async def test_job_does_not_hold_up_a_namespace_that_ends(cluster: Cluster) -> None:
    await cluster.begin()
    old = cluster.status
    conditions = [{**each, "lastTransitionTime": LONG_AGO} for each in old["conditions"]]
    cluster.put_study(None, {**old, "conditions": conditions})
    items = (
        '{"items": [{"message": "exceeded quota: pods", "lastTimestamp": "2026-01-01T00:00:00Z"}]}'
    )
    cluster.api.on("GET", "/events", Answer(200, text=items))
    ends = (
        f"events is forbidden: unable to create new content in namespace default {NAMESPACE_ENDS}"
    )
    cluster.api.on("POST", "/events", Answer(403, ends, "Forbidden"))
    await cluster.hear_and_look()
    assert cluster.made() == []
    (deletion,) = cluster.api.asked("DELETE", "/tickets-1")
    assert deletion.body["preconditions"]["uid"]


async def test_silence_of_a_job_is_explained_by_its_events(cluster: Cluster) -> None:
    uid = await cluster.begin()
    old = cluster.status
    conditions = [{**each, "lastTransitionTime": LONG_AGO} for each in old["conditions"]]
    cluster.put_study(None, {**old, "conditions": conditions})
    items = [
        f'{{"message": "{word}", "lastTimestamp": "{at}"}}'
        for at, word in ((2, "no quota"), (1, "old"))
    ]
    cluster.api.on("GET", "/events", Answer(200, text=f'{{"items": [{", ".join(items)}]}}'))
    await cluster.hear_and_look()
    assert (cluster.reason(), cluster.status["message"]) == ("PodsPending", "no quota")
    (asked,) = cluster.api.asked("GET", "/events")
    assert uid in asked.query["fieldSelector"]


# -- deletion


async def test_job_is_deleted_if_it_is_the_one_that_was_seen(cluster: Cluster) -> None:
    uid = await cluster.run()
    cluster.put_study({"spec.suspend": True})
    await cluster.hear_and_look()
    (deletion,) = cluster.api.asked("DELETE", "/tickets-1")
    assert deletion.body["preconditions"] == {"uid": uid}
    assert cluster.made() == []
    assert cluster.reason() == "SuspendRequested"
    await cluster.look()  # what was asked to go is not asked again
    assert not cluster.api.asked("DELETE", "/tickets-1")


async def test_successor_of_a_job_is_not_deleted(cluster: Cluster) -> None:
    await cluster.run()
    cluster.put_study({"spec.suspend": True})
    cluster.hear()
    cluster.api.remove(f"{JOBS}/tickets-1")
    cluster.put_job()
    await cluster.look()
    assert cluster.made() == ["tickets-1"]


async def test_study_is_deleted_when_its_time_is_over_if_it_is_the_same(cluster: Cluster) -> None:
    await complete(cluster)
    await cluster.hear_and_look()
    ended = {**cluster.status, "completionTime": LONG_AGO}
    cluster.put_study({"spec.ttlSecondsAfterFinished": 60}, ended)
    cluster.hear()
    cluster.api.on("DELETE", "/tickets", Answer(503))
    with pytest.raises(KubeError):
        await cluster.look()
    assert await cluster.look() is None
    (deletion,) = cluster.api.requests
    assert (str(deletion), deletion.body["preconditions"]) == (f"DELETE {STUDY}", {"uid": UID})
    assert cluster.api.get(STUDY) is None


@pytest.mark.parametrize("answer", [None, Answer(403, "no right to"), Answer(422, "no")])
async def test_pod_of_a_lost_node_is_failed_and_then_deleted_by_force(
    answer: Answer | None, cluster: Cluster
) -> None:
    uid = await cluster.run()
    cluster.put_pod(uid, deletionTimestamp=LONG_AGO, uid="pod-0")
    cluster.api.on("PATCH", "tickets-1-0/status", *([answer] if answer is not None else []))
    await cluster.hear_and_look()
    pod = f"{PODS}/tickets-1-0"
    assert cluster.api.writes()[:2] == [f"PATCH {pod}/status", f"DELETE {pod}"]
    failed, deleted = cluster.api.requests[:2]
    assert failed.body["metadata"] == {"uid": "pod-0"}
    assert deleted.body["preconditions"] == {"uid": "pod-0"}
    assert deleted.body["gracePeriodSeconds"] == 0


async def test_pod_that_could_not_be_failed_yet_is_not_deleted(cluster: Cluster) -> None:
    uid = await cluster.run()
    cluster.put_pod(uid, deletionTimestamp=LONG_AGO)
    cluster.api.on("PATCH", "tickets-1-0/status", Answer(500))
    with pytest.raises(KubeError):
        await cluster.hear_and_look()
    assert cluster.api.get(f"{PODS}/tickets-1-0") is not None


# -- before an attempt is given up or begun, the API server is asked once more


def fail_job(cluster: Cluster) -> None:
    """Let the Job of the attempt fail."""
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": ""}
    cluster.put_job(status={"conditions": [failed]})


async def test_failed_attempt_is_deleted_after_a_second_look_and_followed_when_its_pods_are_gone(
    cluster: Cluster,
) -> None:
    uid = await cluster.run()
    fail_job(cluster)
    await cluster.hear_and_look()
    reads = [str(request) for request in cluster.api.requests if request.method == "GET"]
    assert sorted(reads) == [
        f"GET {CONFIGS}/tickets-progress",
        f"GET {JOBS}/tickets-1",
        f"GET {STUDY}",
    ]
    first_write = next(n for n, r in enumerate(cluster.api.requests) if r.method != "GET")
    assert first_write == len(reads)
    assert cluster.made() == []
    assert cluster.reason() == "AttemptFailed"
    await cluster.hear_and_look()  # its Job is gone, its pod is not
    assert cluster.made() == []
    assert cluster.reason() == "WaitingForPodsToEnd"
    cluster.put_pod(uid, "Failed")
    await cluster.hear_and_look()
    assert cluster.made() == ["tickets-2"]


@pytest.mark.parametrize("change", ["gone", "ends", "finished"])
async def test_study_that_has_changed_meanwhile_is_not_given_up(
    change: str, cluster: Cluster
) -> None:
    await cluster.run()
    fail_job(cluster)
    cluster.hear()
    if change == "gone":
        cluster.api.remove(STUDY)
    elif change == "ends":
        cluster.put_study({"metadata.deletionTimestamp": LONG_AGO})
    else:
        done = {"type": "Complete", "status": "True", "reason": "SearchFinished", "message": ""}
        done |= {"lastTransitionTime": LONG_AGO}
        cluster.put_study(None, {**cluster.status, "state": "Complete", "conditions": [done]})
    await cluster.look()
    assert cluster.api.writes() == []
    assert (cluster.reconciler.studies() == []) is (change == "gone")


@pytest.mark.parametrize("suspend", [False, True])
async def test_word_of_the_driver_that_was_not_heard_yet_counts(
    suspend: bool, cluster: Cluster
) -> None:
    uid = await cluster.run()
    cluster.put_job(status={"conditions": [{"type": "Complete", "status": "True"}]})
    if suspend:
        cluster.put_study({"spec.suspend": True})
    cluster.hear()
    cluster.put_progress(uid, "Finished", reason="SearchFinished")
    await cluster.look()
    assert cluster.status["state"] == "Complete"
    assert cluster.made() == ["tickets-1"]


@pytest.mark.parametrize("engine", ["Job", "RayJob", "Auto"])
async def test_attempt_of_which_nothing_was_heard_is_not_begun_again(
    engine: str, cluster: Cluster
) -> None:
    cluster.use(SETTINGS.model_copy(update={"engine": engine}))
    kind = "Job" if engine == "Job" else "RayJob"
    cluster.put_study(None, {"attempts": 1, "state": "Starting"})
    cluster.hear()
    cluster.put_job(kind=kind)
    await cluster.look()
    assert cluster.made() == ["tickets-1"]
    assert [type(job) for job in cluster.store.observed(KEY).jobs] == [
        JobView if kind == "Job" else RayJobView
    ]


async def test_api_server_that_cannot_say_is_asked_again_before_anything_is_done(
    cluster: Cluster,
) -> None:
    await cluster.run()
    fail_job(cluster)
    cluster.hear()
    for part in ("/tickets", "/tickets-progress", "/jobs/tickets-1"):
        cluster.api.on("GET", part, Answer(503))
        with pytest.raises(KubeError):
            await cluster.look()
        assert cluster.api.writes() == []
    await cluster.look()
    assert cluster.made() == []


# -- after the end


async def ended(cluster: Cluster) -> None:
    """Let a study end."""
    await complete(cluster)
    await cluster.hear_and_look()
    assert cluster.status["state"] == "Complete"


async def test_study_that_has_ended_goes_on_from_one_look_to_the_next(cluster: Cluster) -> None:
    await ended(cluster)
    cluster.put_study({"spec.budget": {"maxTrials": 99}, "metadata.generation": 2})
    await cluster.hear_and_look()
    order = [
        place(cluster.api.requests, "DELETE", "/tickets-1"),
        place(cluster.api.requests, "PATCH", "/tickets/status"),
    ]
    assert order == sorted(order)
    assert (cluster.status["state"], cluster.reason()) == ("Pending", "Reopened")
    cluster.api.remove(f"{PODS}/tickets-1-0")
    await cluster.hear_and_look()
    assert cluster.made() == ["tickets-2"]
    assert cluster.status["attempts"] == 2


async def test_study_that_is_edited_back_before_it_goes_on_stays_ended(cluster: Cluster) -> None:
    """What a watch has told is read again first."""
    await ended(cluster)
    before = cluster.api.get(STUDY)
    assert before is not None
    cluster.put_study({"spec.budget": {"maxTrials": 99}, "metadata.generation": 2})
    cluster.hear()
    cluster.put_study({"metadata.generation": 3})
    await cluster.look()
    assert (cluster.made(), cluster.status["state"]) == (["tickets-1"], "Complete")


async def test_study_stays_ended_where_the_crd_cannot_remember_why_it_went_on(
    cluster: Cluster,
) -> None:
    await ended(cluster)
    status = {k: v for k, v in cluster.status.items() if k not in ("lastEnd", "winner", "retry")}
    wish = {"metadata.annotations": {names.RETRY: "1"}}
    cluster.put_study(wish, status=status)
    unknown = Answer(422, ".status.lastEnd: field not declared in schema", "Invalid")
    cluster.api.on("PATCH", "/tickets/status", unknown)
    await cluster.hear_and_look()
    assert cluster.status["state"] == "Complete"
    (condition,) = [c for c in cluster.status["conditions"] if c["type"] == "Reconciling"]
    assert "older than the operator" in condition["message"]
    assert "lastEnd" not in cluster.status
    posted = [event["reason"] for event in cluster.api.all(f"{CORE}/events")]
    assert posted.count("NoEffect") == 1
    assert "Reopened" not in posted
    await cluster.hear_and_look()  # now it can
    assert cluster.status["state"] == "Pending"


async def test_reopening_that_is_refused_is_tried_again(cluster: Cluster) -> None:
    await ended(cluster)
    cluster.put_study({"spec.budget": {"maxTrials": 99}, "metadata.generation": 2})
    cluster.api.on("PATCH", "/tickets/status", Answer(422, "a policy says no", "Invalid"))
    with pytest.raises(Refused, match="a policy says no"):
        await cluster.hear_and_look()
    assert cluster.status["state"] == "Complete"
    await cluster.hear_and_look()
    assert cluster.status["state"] == "Pending"


async def test_refused_status_does_not_make_a_study_forget_its_end(cluster: Cluster) -> None:
    """Without `retry` it would go on once more, without `winner` it would leave the last winner as the new one."""
    await ended(cluster)
    cluster.put_study({"metadata.annotations": {names.RETRY: "1"}})
    await cluster.hear_and_look()
    cluster.api.remove(f"{PODS}/tickets-1-0")
    for _ in range(2):
        cluster.api.on("PATCH", "/tickets/status", Answer(422, "no", "Invalid"))
        await cluster.hear_and_look()
    assert cluster.made() == ["tickets-2"]
    kept = {name: cluster.status[name] for name in ("retry", "winner", "lastEnd")}
    assert kept["retry"] == "1"
    assert kept["winner"] == "tickets-winner"
    assert kept["lastEnd"]["attempt"] == 1
