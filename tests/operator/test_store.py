"""What the store believes when events and answers overtake each other."""

from typing import Any

from finetune_operator.observe import JobView
from finetune_operator.store import Store
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
