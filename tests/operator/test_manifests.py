"""The rendered objects, how templates are laid over them, and how views are made."""

import json

import pytest

from finetune_operator.merge import overlay
from finetune_operator.observe import JobView, PodView
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
                    {
                        "image": "x:1",
                        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no image"}},
                    }
                ]
            },
            "image x:1 cannot be pulled: no image",
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
