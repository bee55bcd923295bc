"""The rendered objects, how templates are laid over them, and how views are made."""

import json
from typing import Any

import pytest

from finetune_api.manifest import parse_study
from finetune_operator import engines
from finetune_operator.children import children, resolved, spec_config_map
from finetune_operator.merge import overlay
from finetune_operator.observe import JobView, PodView
from finetune_operator.pods import storage_location
from finetune_operator.settings import read
from finetune_operator.trouble import Trouble
from tests.api.wrong_manifests import VALID, changed
from tests.operator.regenerate import CASES, GOLDEN, rendered
from tests.operator.studies import JOB_UID, SETTINGS, UID


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_as_in_the_golden_file(case: str) -> None:
    assert rendered(case) == (GOLDEN / f"{case}.yaml").read_text(), (
        "if the change is meant: python -m tests.operator.regenerate"
    )


@pytest.mark.parametrize("case", CASES)
def test_driver_reads_what_the_operator_has_read(case: str) -> None:
    changes, settings = CASES[case]
    study = parse_study(changed(VALID, {**changes, "metadata.uid": UID}))
    document = json.loads(spec_config_map(study, settings)["data"]["study.json"])
    assert parse_study(document).spec == resolved(study, settings)
    assert "onExisting" not in document["spec"], "an earlier image would not know it"


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


def test_platforms_template_lies_below_what_the_study_says() -> None:
    platform = {
        "spec": {
            "nodeSelector": {"pool": "platform", "zone": "a"},
            "priorityClassName": "low",
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "containers": [{"name": "trainer", "resources": {"limits": {"cpu": 1, "disk": 2}}}],
        }
    }
    spot_too = {"key": "spot", "operator": "Exists"}
    patient = {
        "key": "node.kubernetes.io/unreachable",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 300,
    }
    cluster = {
        "nodeSelector": {"pool": "h200"},
        "priorityClassName": "high",
        "resourcesPerWorker": {"cpu": 4},
        "tolerations": [{"key": "gpu", "operator": "Exists"}, spot_too],
        "podTemplate": {"spec": {"tolerations": [patient]}},
    }
    study = parse_study(changed(VALID, {"spec.cluster": cluster, "metadata.uid": UID}))
    settings = SETTINGS.model_copy(update={"pod_template": platform})
    for engine in ("Job", "RayJob"):
        chosen = settings.model_copy(update={"engine": engine})
        made = engines.manifests(study, 1, chosen)[-1]["spec"]
        workers = made["rayClusterSpec"]["workerGroupSpecs"][0] if engine == "RayJob" else made
        spec = workers["template"]["spec"]
        assert spec["nodeSelector"] == {"pool": "h200", "zone": "a"}
        assert spec["priorityClassName"] == "high"
        assert spec["containers"][0]["resources"]["limits"] == {"cpu": 4, "disk": 2}
        assert [(one["key"], one.get("tolerationSeconds")) for one in spec["tolerations"]] == [
            ("node.kubernetes.io/not-ready", 60),
            ("gpu", None),
            ("spot", None),
            ("node.kubernetes.io/unreachable", 300),
        ]


def test_pods_report_progress_whichever_account_they_are_given() -> None:
    named = {"spec": {"serviceAccountName": "cloud"}}
    cases = [
        ({}, {}, []),
        (named, {}, ["cloud"]),
        ({}, named, ["cloud"]),
        ({"spec": {"serviceAccountName": "x"}}, named, ["cloud"]),
    ]
    for platform, cluster, others in cases:
        template = {"podTemplate": cluster} if cluster else {}
        study = parse_study(changed(VALID, {"spec.cluster": template, "metadata.uid": UID}))
        settings = SETTINGS.model_copy(update={"pod_template": platform})
        pods = engines.manifests(study, 1, settings)[-1]["spec"]["template"]["spec"]
        (binding,) = (one for one in children(study, settings) if one["kind"] == "RoleBinding")
        accounts = [subject["name"] for subject in binding["subjects"]]
        assert accounts == ["tickets-trainer", *others]
        assert pods["serviceAccountName"] == accounts[-1]


def test_options_of_an_object_store_stay_behind_the_studys_folder() -> None:
    own = f"default/tickets/{UID}"
    for uri, folder in (
        ("s3://bucket", f"s3://bucket/{own}"),
        ("gs://bucket/teams/", f"gs://bucket/teams/{own}"),
        (
            "s3://b/t?endpoint_override=a:9&scheme=http",
            f"s3://b/t/{own}?endpoint_override=a:9&scheme=http",
        ),
    ):
        study = parse_study(changed(VALID, {"spec.storage": {"uri": uri}, "metadata.uid": UID}))
        assert storage_location(study, study.spec) == folder


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


def test_job_is_held_as_long_as_it_is_suspended() -> None:
    for suspend, held in ((True, True), (False, False), (None, False)):
        body = {**_body(1, startTime="2026-11-02T10:00:00Z"), "spec": {"suspend": suspend}}
        view = JobView.of(body)
        assert view.held is held
        assert view.begun is not None
        assert view.begun.hour == 10


def _container(**state: object) -> dict[str, object]:
    return {"containerStatuses": [{"name": "trainer", "image": "x:1", "state": state}]}


def _condition(kind: str, status: str, reason: str, message: str) -> dict[str, object]:
    words = {"type": kind, "status": status, "reason": reason, "message": message}
    return {"conditions": [words]}


def _ready(status: str, reason: str | None = None) -> dict[str, Any]:
    """The status of a pod all of whose containers are ready, and which is or is not."""
    ready = {"type": "Ready", "status": status, **({"reason": reason} if reason else {})}
    conditions = [ready, {"type": "ContainersReady", "status": "True"}]
    return {"phase": "Running", "conditions": conditions}


def _disrupted(reason: str) -> dict[str, object]:
    return _condition("DisruptionTarget", "True", reason, "m")


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (
            _condition("PodScheduled", "False", "Unschedulable", "0/1 nodes"),
            Trouble("Unschedulable", "Unschedulable: 0/1 nodes"),
        ),
        (
            _container(waiting={"reason": "ImagePullBackOff", "message": "no image"}),
            Trouble("ImagePullFailed", "image x:1 cannot be pulled: no image"),
        ),
        (
            _container(waiting={"reason": "CreateContainerConfigError", "message": "no key"}),
            Trouble("PodsPending", "CreateContainerConfigError: no key"),
        ),
        (
            {"phase": "Failed", **_container(terminated={"reason": "OOMKilled", "exitCode": 137})},
            Trouble("OutOfMemory", "container trainer was killed for lack of memory (OOMKilled)"),
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "low on ephemeral-storage"},
            Trouble("Evicted", "Evicted: low on ephemeral-storage"),
        ),
        (_disrupted("PreemptionByScheduler"), Trouble("Evicted", "PreemptionByScheduler: m")),
        (_disrupted("EvictionByEvictionAPI"), Trouble("Evicted", "EvictionByEvictionAPI: m")),
        (_disrupted("TerminationByKubelet"), Trouble("Evicted", "TerminationByKubelet: m")),
        (_disrupted("DeletionByTaintManager"), Trouble("NodeLost", "DeletionByTaintManager: m")),
        (_disrupted("DeletionByPodGC"), Trouble("NodeLost", "DeletionByPodGC: m")),
        (_disrupted("NodeLost"), Trouble("NodeLost", "NodeLost: m")),
        (_ready("False"), Trouble("NodeLost", "its node does not answer")),
        (_ready("False", "ReadinessGatesNotReady"), None),
        (_ready("True"), None),
        (_container(terminated={"reason": "Error", "exitCode": 1}), None),
        (
            {"phase": "Running", **_container(terminated={"reason": "Error", "exitCode": 1})},
            Trouble(
                "PodsPending",
                "container trainer has ended with exit code 1; the pod goes on without it",
            ),
        ),
        ({"phase": "Running", **_container(terminated={"exitCode": 0})}, None),
        (_container(waiting={"reason": "ContainerCreating"}), None),
        (_container(running={}), None),
        ({}, None),
    ],
)
def test_pod_says_what_is_the_matter(status: dict[str, object], trouble: Trouble | None) -> None:
    view = PodView.of({"metadata": {"name": "p", "uid": "u"}, "status": status})
    assert view.trouble == trouble


def test_pod_has_the_image_that_it_runs() -> None:
    containers = [{"name": "side", "imageID": "y"}, {"name": "trainer", "imageID": "x@sha256:1"}]
    body = {"metadata": {"name": "p", "uid": "u"}, "status": {"containerStatuses": containers}}
    assert PodView.of(body).image == "x@sha256:1"


def test_settings_name_the_variable_that_is_wrong() -> None:
    with pytest.raises(ValueError, match="FINETUNE_DEFAULT_STORAGE must be JSON"):
        read({"FINETUNE_DEFAULT_STORAGE": "{"})
    found = read(
        {"FINETUNE_NAMESPACES": "a, b", "FINETUNE_DEFAULT_RESOURCES": json.dumps({"cpu": 1})}
    )
    assert (found.namespaces, found.default_resources) == (("a", "b"), {"cpu": 1})
    numbers = read({"FINETUNE_PROGRESS_PER_SECOND": "7.5", "FINETUNE_METRICS_PORT": "0"})
    assert (numbers.progress_per_second, numbers.metrics_port) == (7.5, 0)
    for wrong, word in (("0", "greater than 0"), ("many", "FINETUNE_PROGRESS_PER_SECOND must be")):
        with pytest.raises(ValueError, match=word):
            read({"FINETUNE_PROGRESS_PER_SECOND": wrong})
