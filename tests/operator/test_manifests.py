"""The rendered objects, and how templates and views are made."""

import json

import pytest

from finetune_operator.merge import overlay
from finetune_operator.observe import JobView, PodView, Store
from finetune_operator.settings import read
from tests.operator.regenerate import CASES, GOLDEN, rendered
from tests.operator.studies import JOB_UID, UID


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_as_in_the_golden_file(case: str) -> None:
    assert rendered(case) == (GOLDEN / f"{case}.yaml").read_text(), (
        "if the change is meant: python -m tests.operator.regenerate"
    )


def test_template_of_the_user_lies_over_the_operators() -> None:
    base = {
        "spec": {
            "containers": [{"name": "trainer", "image": "a", "env": [{"name": "X", "value": "1"}]}],
            "n": 1,
        }
    }
    over = {
        "spec": {
            "containers": [
                {"name": "trainer", "env": [{"name": "Y", "value": "2"}]},
                {"name": "side"},
            ]
        }
    }
    assert overlay(base, over) == {
        "spec": {
            "containers": [
                {
                    "name": "trainer",
                    "image": "a",
                    "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}],
                },
                {"name": "side"},
            ],
            "n": 1,
        }
    }


def _body(version: int, **status: object) -> dict[str, object]:
    meta = {
        "name": "tickets-1",
        "uid": JOB_UID,
        "resourceVersion": str(version),
        "labels": {"finetune.dev/study": "tickets", "finetune.dev/attempt": "1"},
        "ownerReferences": [{"controller": True, "uid": UID}],
    }
    return {"metadata": meta, "status": status}


def test_store_keeps_the_newest_of_what_it_hears() -> None:
    store = Store()
    assert store.put("nlp", JobView, _body(5, active=1)) == ("nlp", "tickets")
    assert store.put("nlp", JobView, _body(4, active=2)) is None
    (found,) = store.observed(("nlp", "tickets")).jobs
    assert (found.active, found.attempt, found.study_uid) == (1, 1, UID)
    store.expect_deletion(("nlp", "tickets"), "tickets-1")
    assert store.observed(("nlp", "tickets")).jobs[0].deleting
    store.remove("nlp", JobView, _body(6))
    assert store.observed(("nlp", "tickets")).jobs == ()


@pytest.mark.parametrize(
    ("condition", "succeeded", "failed"),
    [
        ("SuccessCriteriaMet", True, False),
        ("Complete", True, False),
        ("FailureTarget", False, True),
        ("Failed", False, True),
        ("Suspended", False, False),
    ],
)
def test_end_of_a_job_is_read_from_its_first_word(
    condition: str, succeeded: bool, failed: bool
) -> None:
    view = JobView.of(
        _body(1, conditions=[{"type": condition, "status": "True", "reason": "R", "message": "m"}])
    )
    assert (view.succeeded, view.failed is not None) == (succeeded, failed)


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/1 nodes",
                    }
                ]
            },
            "Unschedulable: 0/1 nodes",
        ),
        (
            {
                "containerStatuses": [
                    {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no image"}}}
                ]
            },
            "ImagePullBackOff: no image",
        ),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, ""),
        ({}, ""),
    ],
)
def test_pod_says_why_it_does_not_run(status: dict[str, object], problem: str) -> None:
    assert PodView.of({"metadata": {"name": "p", "uid": "u"}, "status": status}).problem == problem


def test_settings_name_the_variable_that_is_wrong() -> None:
    with pytest.raises(ValueError, match="FINETUNE_DEFAULT_STORAGE must be JSON"):
        read({"FINETUNE_DEFAULT_STORAGE": "{"})
    found = read(
        {"FINETUNE_NAMESPACES": "a, b", "FINETUNE_DEFAULT_RESOURCES": json.dumps({"cpu": 1})}
    )
    assert (found.namespaces, found.default_resources) == (("a", "b"), {"cpu": 1})
