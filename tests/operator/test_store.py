"""What the store believes when events and answers overtake each other."""

from typing import Any

from finetune_operator.observe import JobView, PodView
from finetune_operator.store import Store, Versions
from tests.operator.studies import JOB_UID, UID

KEY = ("nlp", "tickets")


def body(version: int, uid: str = JOB_UID, **status: object) -> dict[str, Any]:
    meta = {
        "name": "tickets-1",
        "uid": uid,
        "resourceVersion": str(version),
        "labels": {"finetune.dev/study": "tickets", "finetune.dev/attempt": "1"},
        "ownerReferences": [{"controller": True, "uid": UID}],
    }
    return {"metadata": meta, "status": status}


def test_older_news_change_nothing() -> None:
    store = Store()
    assert store.put("nlp", JobView, body(5, active=1)) == KEY
    assert store.put("nlp", JobView, body(4, active=2)) is None
    (found,) = store.observed(KEY).jobs
    assert (found.active, found.attempt, found.study_uid) == (1, 1, UID)


def test_deleted_object_does_not_come_back_by_an_answer_sent_before() -> None:
    store = Store()
    store.put("nlp", JobView, body(5))
    assert store.remove("nlp", JobView, body(7)) == KEY
    assert store.put("nlp", JobView, body(6)) is None
    assert store.observed(KEY).jobs == ()


def test_end_of_an_object_does_not_remove_its_successor() -> None:
    store = Store()
    store.put("nlp", JobView, body(5, uid="old"))
    store.put("nlp", JobView, body(9, uid="new"))
    assert store.remove("nlp", JobView, body(7, uid="old")) is None
    assert [job.uid for job in store.observed(KEY).jobs] == ["new"]


def test_job_told_to_go_is_no_live_one_whatever_arrives() -> None:
    store = Store()
    store.put("nlp", JobView, body(5))
    store.expect_deletion(KEY, JOB_UID)
    assert store.observed(KEY).jobs[0].deleting
    store.put("nlp", JobView, body(6, active=1))
    assert store.observed(KEY).jobs[0].deleting
    store.remove("nlp", JobView, body(7))
    assert store.observed(KEY) == Store().observed(KEY)
    store.put("nlp", JobView, body(8))  # nothing of it is kept
    assert not store.observed(KEY).jobs[0].deleting


def test_job_that_went_before_its_deletion_was_answered_is_not_waited_for() -> None:
    store = Store()
    store.put("nlp", JobView, body(5))
    store.remove("nlp", JobView, body(7))
    store.expect_deletion(KEY, JOB_UID)
    store.put("nlp", JobView, body(8))
    assert not store.observed(KEY).jobs[0].deleting


def test_object_of_no_study_is_not_kept() -> None:
    stranger = body(5)
    del stranger["metadata"]["labels"]
    assert Store().put("nlp", JobView, stranger) is None


def test_what_a_list_lacks_is_forgotten_unless_it_came_after_that_list() -> None:
    store = Store()
    store.put("nlp", JobView, body(5))
    assert not store.lost(KEY, JobView, "tickets-1", "4")
    assert len(store.observed(KEY).jobs) == 1
    assert store.lost(KEY, JobView, "tickets-1", "8")
    assert store.observed(KEY).jobs == ()
    assert store.put("nlp", JobView, body(6)) is None  # an answer that was on its way


def test_objects_of_a_kind_that_comes_back_are_new() -> None:
    store = Store()
    store.put("nlp", JobView, body(5))
    store.expect_deletion(KEY, JOB_UID)
    assert store.lost(KEY, JobView, "tickets-1", "")
    assert store.observed(KEY).jobs == ()
    store.put("nlp", JobView, body(3))
    assert not store.observed(KEY).jobs[0].deleting


def test_only_so_many_objects_that_are_gone_are_remembered() -> None:
    versions = Versions()
    for number in range(5000):
        versions.gone(number, 7)
    assert versions.seen(0, body(6))
    assert not versions.seen(4999, body(6))


def test_attempts_and_pods_are_in_order_whenever_they_came() -> None:
    store = Store()
    for attempt in (2, 10, 1):
        made = body(attempt, uid=f"job-{attempt}")
        made["metadata"]["name"] = f"tickets-{attempt}"
        made["metadata"]["labels"]["finetune.dev/attempt"] = str(attempt)
        store.put("nlp", JobView, made)
    for index in (2, 0, 1):
        made = body(20 + index, uid=f"pod-{index}")
        made["metadata"]["name"] = f"pod-{index}"
        place = {"batch.kubernetes.io/job-completion-index": str(index)}
        made["metadata"]["annotations"] = place
        store.put("nlp", PodView, made)
    seen = store.observed(KEY)
    assert [job.attempt for job in seen.jobs] == [1, 2, 10]
    assert [pod.place for pod in seen.pods] == ["0", "1", "2"]
