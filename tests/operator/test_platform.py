"""What the operator makes of classes: which one a study has, what it gives, and what waits for it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.classes import Allowed, FineTuneClass, Limits
from finetune_api.cluster import ClusterSpec
from finetune_api.conditions import with_condition
from finetune_api.manifest import parse_study
from finetune_api.outputs import Tracking
from finetune_api.schema import Model
from finetune_api.stores import Storage
from finetune_api.study import FineTuneStudy
from finetune_operator.decide import decide
from finetune_operator.decision import Decision
from finetune_operator.observe import Observed
from finetune_operator.platform import Classes, Platform
from finetune_operator.settings import Settings
from tests.api.wrong_manifests import VALID, changed
from tests.operator.studies import NOW, SETTINGS, UID, job, observed, pod, progress

REACHES_PODS = {
    "cluster.workers": "limits.workers",
    "cluster.minWorkers": "at most workers",
    "cluster.resourcesPerWorker": "limits.resourcesPerWorker, limits.gpus",
    "cluster.trialsPerWorker": "shares of what a worker has",
    "cluster.queueName": "allowed.queueNames",
    "cluster.priorityClassName": "allowed.priorityClassNames",
    "cluster.nodeSelector": "allowed.placement",
    "cluster.tolerations": "allowed.placement",
    "cluster.podTemplate": "allowed.podTemplate",
    "cluster.startDeadlineSeconds": "ends pods earlier or later, no more",
    "storage.persistentVolumeClaim": "allowed.claims",
    "storage.uri": "allowed.stores",
    "storage.secretName": "allowed.secretNames",
    "tracking.wandb": "sends to W&B, by a key of tracking.secretName",
    "tracking.mlflow": "allowed.endpoints",
    "tracking.tensorboard": "writes to the study's storage",
    "tracking.secretName": "allowed.secretNames",
}
"""Each field of a study that reaches a pod, and what a class says about it."""


def made(name: str = "gpu", **spec: Any) -> FineTuneClass:
    return FineTuneClass.model_validate(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneClass",
            "metadata": {"name": name, "generation": 3},
            "spec": spec,
        }
    )


def asked(**changes: Any) -> FineTuneStudy:
    named = {f"spec.{key}" if "." not in key else key: value for key, value in changes.items()}
    return parse_study(changed(VALID, {"metadata.uid": UID, "metadata.generation": 1, **named}))


def platform(*classes: FineTuneClass, named: str | None = None) -> Platform:
    return Platform({each.metadata.name: each for each in classes}, named)


def decided(
    study: FineTuneStudy, of: Platform | None, settings: Settings = SETTINGS, **seen: Any
) -> Decision:
    return decide(study, Observed(platform=of, **seen), settings, NOW, confirmed=True)


def template(decision: Decision) -> dict[str, Any]:
    """The template of the pods of the attempt that begins."""
    return dict(decision.create[-1]["spec"]["template"])


def waits(decision: Decision) -> str:
    """Why no attempt begins: reason and message."""
    assert not decision.create
    assert not decision.apply
    assert decision.status.state == "Pending"
    stalled = decision.status.condition("Stalled")
    assert stalled is not None
    assert stalled.status == "True"
    return f"{stalled.reason}: {stalled.message}"


def test_every_field_that_reaches_a_pod_is_considered() -> None:
    parts: dict[str, type[Model]] = {
        "cluster": ClusterSpec,
        "storage": Storage,
        "tracking": Tracking,
    }
    fields = {
        f"{part}.{field.alias}"
        for part, model in parts.items()
        for field in model.model_fields.values()
    }
    assert fields == REACHES_PODS.keys()
    said_by: dict[str, type[Model]] = {"limits": Limits, "allowed": Allowed}
    limits = {
        f"{name}.{field.alias}"
        for name, model in said_by.items()
        for field in model.model_fields.values()
    }
    named = {word.strip(",") for said in REACHES_PODS.values() for word in said.split()}
    assert {word for word in named if word.startswith(("limits.", "allowed."))} <= limits


# -- where the records are


@pytest.mark.parametrize("by", ["the study", "its class", "the chart"])
def test_a_study_that_has_begun_keeps_the_storage_of_its_records(by: str) -> None:
    def stores(place: str) -> Storage:
        return Storage(uri=f"s3://{place}/studies")

    def attempt(study: FineTuneStudy, place: str) -> Decision:
        """What follows while defaults come from `place`."""
        of = made(storage=stores(place)) if by == "its class" else made()
        chart = SETTINGS.model_copy(update={"default_storage": stores(place)})
        return decided(study, platform(of, named="gpu"), chart)

    spec = {"storage": {"uri": "s3://first/studies"}} if by == "the study" else {"storage": None}
    begun = attempt(asked(**spec), "first")
    assert begun.status.storage == stores("first")
    again = attempt(asked(**spec).model_copy(update={"status": begun.status}), "second")
    assert again.status.attempts == 2
    assert again.status.storage == stores("first")
    assert "s3://first/studies/" in json.dumps(template(again))
    assert "s3://second" not in json.dumps(template(again))


def test_a_study_that_waits_for_its_first_attempt_has_no_storage_yet() -> None:
    waiting = decided(asked(className="none", storage=None), platform())
    assert waits(waiting).startswith("ClassNotFound")
    assert waiting.status.storage is None


# -- which class


def test_a_study_names_its_class_before_its_namespace_before_the_default() -> None:
    every = platform(made("default", default=True), made("team"), made("own"), named="team")
    assert decided(asked(className="own"), every).status.class_name == "own"
    assert decided(asked(), every).status.class_name == "team"
    unnamed = Platform(every.classes)
    assert decided(asked(), unnamed).status.class_name == "default"
    assert decided(asked(), platform(made("team"))).status.class_name is None
    assert decided(asked(), every).status.class_generation == 3


@pytest.mark.parametrize(
    ("of", "study", "said"),
    [
        (platform(), asked(className="gpu"), "FineTuneClass gpu (spec.className) does not exist"),
        (platform(named="gpu"), asked(), "FineTuneClass gpu (label finetune.dev/class of the"),
        (
            platform(made("a", default=True), made("b", default=True)),
            asked(),
            "the FineTuneClasses a, b are all the default",
        ),
        (Platform({"gpu": "spec.new: unknown"}), asked(className="gpu"), "spec.new: unknown"),
        (None, asked(className="gpu"), "watches only some namespaces and cannot read classes"),
    ],
    ids=["study's", "namespace's", "two defaults", "of a newer version", "namespaced"],
)
def test_a_study_whose_class_is_not_there_waits_and_goes_on_when_it_is(
    of: Platform | None, study: FineTuneStudy, said: str
) -> None:
    decision = decided(study, of)
    assert waits(decision).startswith("ClassNotFound: ")
    assert said in decision.status.message
    again = study.model_copy(update={"status": decision.status})
    assert decided(again, platform(made("gpu"), named="gpu")).status.state == "Starting"


def test_a_namespaced_operator_runs_studies_that_name_no_class() -> None:
    assert decided(asked(), None).status.state == "Starting"


# -- what it refuses


def test_a_study_that_asks_for_more_than_its_class_allows_waits_until_either_is_edited() -> None:
    study = asked(**{"className": "gpu", "spec.cluster.workers": 9})
    small = platform(made(limits={"workers": 4}))
    decision = decided(study, small)
    assert waits(decision) == (
        "ClassDenied: spec.cluster.workers must be at most 4 in class gpu (got 9)"
    )
    waiting = study.model_copy(update={"status": decision.status})
    assert decided(waiting, platform(made(limits={"workers": 9}))).status.state == "Starting"


def test_every_refusal_is_named_at_once() -> None:
    study = asked(
        **{
            "className": "gpu",
            "spec.cluster": {"workers": 9, "podTemplate": {"spec": {"hostNetwork": True}}},
        }
    )
    message = decided(study, platform(made(limits={"workers": 4}))).status.message
    assert "spec.cluster.podTemplate must not be given" in message
    assert "spec.cluster.workers must be at most 4" in message


def test_a_running_study_goes_on_within_the_limits_of_a_class_that_was_tightened() -> None:
    study = asked(**{"className": "gpu", "spec.budget": {"maxTrials": 40}})
    began = decided(study, platform(made()))
    running = study.model_copy(update={"status": began.status})
    tight = platform(made(limits={"trials": 10}))
    seen = observed(job(), pod(), document=progress())
    decision = decide(running, seen_with(seen, tight), SETTINGS, NOW, confirmed=True)
    assert decision.status.state == "Running"
    assert decision.status.message == (
        "the study goes on within its class's limits: spec.budget.maxTrials must be at most 10 in"
        " class gpu (got 40)"
    )
    assert not decision.delete


def seen_with(seen: Observed, of: Platform) -> Observed:
    return replace(seen, platform=of)


def test_a_running_study_goes_on_when_its_class_is_deleted() -> None:
    study = asked(className="gpu")
    began = decided(study, platform(made(podTemplate={"spec": {"serviceAccountName": "cloud"}})))
    running = study.model_copy(update={"status": began.status})
    seen = seen_with(observed(job(), pod(), document=progress()), platform())
    decision = decide(running, seen, SETTINGS, NOW, confirmed=True)
    assert decision.status.state == "Running"
    assert not decision.apply  # with the rights of another account, its driver could not report
    assert not decision.delete
    assert decision.status.class_name == "gpu"


def test_an_ended_study_does_not_care_about_its_class() -> None:
    began = decided(asked(className="gpu"), platform(made())).status
    conditions = with_condition(began.conditions, "Complete", True, "SearchFinished", "", 1, NOW)
    ended = began.model_copy(update={"conditions": conditions, "state": "Complete"})
    study = asked(className="gpu").model_copy(update={"status": ended})
    assert decided(study, platform()).status == ended


# -- what it gives

GIVEN: dict[str, Any] = {
    "image": "registry/trainer:7",
    "imagePullPolicy": "Always",
    "imagePullSecrets": ["mirror"],
    "resourcesPerWorker": {"cpu": 8, "nvidia.com/gpu": 1},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "priorityClassName": "batch",
    "storage": {"uri": "s3://studies", "secretName": "s3"},
    "environment": {"HF_ENDPOINT": "http://hub"},
    "podTemplate": {"spec": {"runtimeClassName": "nvidia"}},
    "labels": ["team", "cost"],
    "blockedNetworks": ["169.254.0.0/16", "fe80::/10"],
}


def test_a_class_gives_what_the_study_leaves_out() -> None:
    study = asked(**{"className": "gpu", "metadata.labels": {"team": "ml", "other": "x"}})
    decision = decided(study, platform(made(**GIVEN)))
    pods, spec = template(decision), template(decision)["spec"]
    (container,) = spec["containers"]
    assert container["image"] == "registry/trainer:7"
    assert container["imagePullPolicy"] == "Always"
    assert container["resources"]["limits"] == {"cpu": 8, "nvidia.com/gpu": 1}
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert env["HF_ENDPOINT"] == "http://hub"
    assert env["FINETUNE_STORAGE"].startswith("s3://studies/default/tickets/")
    assert env["FINETUNE_IMAGE"] == "registry/trainer:7"
    assert {"secretRef": {"name": "s3"}} in container["envFrom"]
    assert spec["imagePullSecrets"] == [{"name": "mirror"}]
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert {"key": "gpu", "operator": "Exists"} in spec["tolerations"]
    assert spec["priorityClassName"] == "batch"
    assert spec["runtimeClassName"] == "nvidia"
    for labels in (pods["metadata"]["labels"], decision.create[-1]["metadata"]["labels"]):
        assert labels["team"] == "ml"
        assert "other" not in labels
        assert "cost" not in labels
    (policy,) = [m for m in decision.apply if m["kind"] == "NetworkPolicy"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"] == [
        {"to": [{"namespaceSelector": {}}]},
        {
            "to": [
                {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
                {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}},
            ]
        },
    ]


def test_a_study_has_its_own_where_the_class_allows_it_but_not_other_nodes() -> None:
    study = asked(
        **{
            "className": "gpu",
            "spec.cluster": {
                "resourcesPerWorker": {"cpu": 2},
                "nodeSelector": {"pool": "other", "zone": "a"},
                "priorityClassName": "own",
            },
            "spec.storage": {"persistentVolumeClaim": {"claimName": "mine"}},
        }
    )
    spec = template(decided(study, platform(made(**GIVEN))))["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"] == {"cpu": 2, "nvidia.com/gpu": 1}
    assert spec["nodeSelector"] == {"pool": "gpu", "zone": "a"}
    assert spec["priorityClassName"] == "own"
    assert "envFrom" not in container


@pytest.mark.parametrize(
    ("budget", "limits", "then"),
    [
        ({"maxTrials": 20}, {"trials": 50, "gpuHours": 8}, {"maxTrials": 20, "maxGpuHours": 8}),
        ({"maxDurationSeconds": 60}, {"trials": 50}, {"maxDurationSeconds": 60, "maxTrials": 50}),
        (
            {"maxTrials": 20},
            {"durationSeconds": 9, "parallelTrials": 2},
            {"maxTrials": 20, "maxDurationSeconds": 9, "maxParallelTrials": 2},
        ),
    ],
)
def test_what_a_study_leaves_out_of_its_budget_is_the_limit(
    budget: dict[str, Any], limits: dict[str, Any], then: dict[str, Any]
) -> None:
    decision = decided(
        asked(className="gpu", budget=budget), platform(made(limits=limits, pricePerGpuHour=2))
    )
    (config,) = [m for m in decision.apply if m["metadata"]["name"] == "tickets-spec"]
    told = json.loads(config["data"]["study.json"])["spec"]["budget"]
    assert told == {**then, "pricePerGpuHour": 2}
    assert decision.status.plan is not None
    assert decision.status.plan.trials == then["maxTrials"]


@pytest.mark.parametrize(
    ("engine", "of_class", "kind"),
    [
        ("Auto", None, "RayJob"),
        ("Auto", "Job", "Job"),
        ("RayJob", "Job", "Job"),
        ("Auto", "RayJob", "RayJob"),
        ("RayJob", "Auto", "RayJob"),
        ("Job", "Job", "Job"),
        ("Job", "RayJob", None),
        ("Job", "Auto", None),
    ],
)
def test_a_class_chooses_among_the_engines_that_the_operator_watches(
    engine: Any, of_class: str | None, kind: str | None
) -> None:
    settings = SETTINGS.model_copy(update={"engine": engine, "auto_engine": "RayJob"})
    given = made(**({"engine": of_class} if of_class else {}))
    decision = decided(asked(className="gpu"), platform(given), settings)
    if kind is None:
        assert "study.engine" in waits(decision)
    else:
        assert decision.create[-1]["kind"] == kind


# -- what is known of classes


def test_classes_and_the_choices_of_namespaces_come_and_go() -> None:
    known = Classes()
    body = made("gpu").to_json()
    known.see("FineTuneClass", body, False)
    known.see(
        "Namespace", {"metadata": {"name": "ml", "labels": {"finetune.dev/class": "gpu"}}}, False
    )
    assert known.of("ml").named == "gpu"
    assert known.of("other").named is None
    assert known.of("other").classes["gpu"] == made("gpu")
    known.see("Namespace", {"metadata": {"name": "ml"}}, True)
    known.see("FineTuneClass", body, True)
    assert known.of("ml") == Platform()


def test_a_class_of_a_newer_version_says_why_it_cannot_be_read() -> None:
    known = Classes()
    body = {**made("gpu").to_json(), "spec": {"unheard": 1}}
    known.see("FineTuneClass", body, False)
    assert "unheard" in str(known.of("ml").classes["gpu"])
