"""What a class refuses: the policy of the API server and the operator's own check agree on it, field by field."""

import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.class_rules import refusals
from finetune_api.classes import FineTuneClass
from finetune_api.manifest import parse_study
from tests.api.wrong_manifests import VALID, changed
from tests.cluster.client import STUDIES, Client
from tests.cluster.onenode.apiserver import ApiServer

pytestmark = pytest.mark.quick

CLASSES = "/apis/finetune.dev/v1alpha1/finetuneclasses"
NS = "default"
PREFIX = f"tests-{os.environ.get('PYTEST_XDIST_WORKER', 'gw0')}"
"""Of names, which are the cluster's."""

FREE: dict[str, Any] = {"allowed": {"podTemplate": "Allow", "endpoints": ["*"]}}
STRICT: dict[str, Any] = {
    "resourcesPerWorker": {"cpu": 2, "nvidia.com/gpu": 1},
    "storage": {"uri": "s3://studies/all", "secretName": "platform"},
    "limits": {
        "workers": 4,
        "gpus": 4,
        "resourcesPerWorker": {"cpu": 8, "memory": "64Gi", "nvidia.com/gpu": 2},
        "trials": 50,
        "parallelTrials": 8,
        "durationSeconds": 86400,
        "gpuHours": 40,
    },
    "allowed": {
        "placement": "Deny",
        "queueNames": ["gpu"],
        "priorityClassNames": ["batch"],
        "claims": ["studies"],
        "stores": ["s3://studies/team"],
        "secretNames": ["own-keys"],
        "hubModels": ["answerdotai/", "google-bert/bert-base-uncased"],
        "hubDatasets": ["org/tickets"],
        "dataRoots": ["s3://data/teams", "/data/teams/"],
        "sharedRoots": ["s3://public?region=eu-west-1", "models/"],
        "endpoints": ["minio.ml.svc:9000", "mlflow.ml:5000"],
    },
}
EMPTY: dict[str, Any] = {
    "allowed": {
        "queueNames": [],
        "priorityClassNames": [],
        "claims": [],
        "stores": [],
        "secretNames": [],
        "hubModels": [],
        "hubDatasets": [],
        "dataRoots": [],
    },
    "limits": {"gpus": 0},
}
CLASSES_OF_TESTS = {"free": FREE, "strict": STRICT, "empty": EMPTY, "plain": {}}

BASE = changed(
    VALID,
    {
        "metadata.name": PREFIX,
        "spec.model.name": "google-bert/bert-base-uncased",
        "spec.dataset.files.train": f"s3://data/teams/{NS}/a.csv",
    },
)
"""A study that the strict class accepts."""

HUB = {"hub": {"path": "org/tickets"}, "textColumns": ["text"], "labelColumn": "y"}


def files(place: str) -> dict[str, Any]:
    return {"spec.dataset.files": {"train": place}}


def s3(place: str) -> dict[str, Any]:
    return {"spec.storage": {"uri": place}}


ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "data of others": files("s3://data/teams/other/a.csv"),
    "data of a name that begins alike": files(f"s3://data/teams/{NS}-2/a.csv"),
    "up and over": files(f"s3://data/teams/{NS}/../other/a.csv"),
    "up and over, encoded": files(f"s3://data/teams/{NS}/%2E%2e/other/a.csv"),
    "up and over, backwards": files(f"/data/teams/{NS}\\..\\other\\a.csv"),
    "options": files(f"s3://data/teams/{NS}/a.csv?region=eu-west-1"),
    "a root in the options": files(f"s3://other/a.csv?x=s3://data/teams/{NS}/"),
    "own path": files(f"/data/teams/{NS}/a.csv"),
    "a path": files("/data/teams/other/a.csv"),
    "own environment": files("/proc/self/environ"),
    "own token": files("/var/run/secrets/kubernetes.io/serviceaccount/token"),
    "a file URI": files("file:///proc/self/environ"),
    "own claim": files("/mnt/storage/a.csv"),
    "beside the claim": files("/mnt/storage/../../proc/self/environ"),
    "a relative path": files("data/a.csv"),
    "public data": files("s3://public/a.csv"),
    "validation rows": {"spec.dataset.files.validation": "s3://data/teams/other/a.csv"},
    "test rows": {"spec.dataset.files.test": "s3://data/teams/other/a.csv"},
    "names": {"spec.dataset.labelNamesFile": "/etc/passwd"},
    "synonyms": {"spec.dataset.synonyms": "/etc/passwd"},
    "warm start": {"spec.search.warmStart": [{"uri": "s3://studies/all/other/study/1"}]},
    "own warm start": {"spec.search.warmStart": [{"uri": f"s3://studies/all/{NS}/study/1"}]},
    "a model as data": {"spec.model.name": "/data/teams/other/model"},
    "an own model": {"spec.model.name": f"s3://data/teams/{NS}/model"},
    "a model of the hub": {"spec.model.name": "answerdotai/ModernBERT-base"},
    "an exact model of the hub": {"spec.model.name": "google-bert/bert-base-uncased"},
    "another model of the hub": {"spec.model.name": "google-bert/bert-base-uncased-2"},
    "a model that climbs": {"spec.model.name": "answerdotai/.."},
    "a deep folder": {"spec.model.name": "data/teams/other"},
    "an encoder": {"spec.dataset.cleaning": {"duplicateEncoder": {"name": "evil/model"}}},
    "an encoder at a path": {"spec.dataset.cleaning": {"duplicateEncoder": {"name": "/m"}}},
    "a fixed model": {"spec.hyperparameters": {"pretrainedModel": "evil/model"}},
    "a searched model": {
        "spec.searchSpaces": [{"pretrainedModel": {"values": ["answerdotai/a", "evil/model"]}}]
    },
    "a searched path": {"spec.searchSpaces": [{"pretrainedModel": {"values": ["/m", "/n"]}}]},
    "searched models": {"spec.searchSpaces": [{"pretrainedModel": {"values": ["answerdotai/a"]}}]},
    "a point's model": {"spec.search.points": [{"pretrainedModel": "s3://other/model"}]},
    "data of the hub": {"spec.dataset": HUB},
    "other data of the hub": {"spec.dataset": {**HUB, "hub": {"path": "org/other"}}},
    "a path as data of the hub": {"spec.dataset": {**HUB, "hub": {"path": "/etc"}}},
    "a script": {"spec.dataset": {**HUB, "hub": {"path": "s3://other/data"}}},
    "a template": {"spec.cluster.podTemplate": {"spec": {"hostNetwork": True}}},
    "an empty template": {"spec.cluster.podTemplate": {}},
    "nodes": {"spec.cluster.nodeSelector": {"team": "b"}},
    "tolerations": {"spec.cluster.tolerations": [{"operator": "Exists"}]},
    "five workers": {"spec.cluster.workers": 5},
    "four workers": {"spec.cluster.workers": 4},
    "eight GPUs": {"spec.cluster": {"workers": 4, "resourcesPerWorker": {"nvidia.com/gpu": 2}}},
    "GPUs of two makers": {
        "spec.cluster": {
            "workers": 2,
            "resourcesPerWorker": {"nvidia.com/mig-1g.5gb": "2", "amd.com/gpu": 1},
        }
    },
    "no GPU": {"spec.cluster": {"workers": 4, "resourcesPerWorker": {"nvidia.com/gpu": 0}}},
    "too much memory": {"spec.cluster.resourcesPerWorker": {"memory": "65Gi"}},
    "memory in bytes": {"spec.cluster.resourcesPerWorker": {"memory": "68719476736"}},
    "cores": {"spec.cluster.resourcesPerWorker": {"cpu": "8001m"}},
    "more trials": {"spec.budget.maxTrials": 51},
    "parallel trials": {"spec.budget.maxParallelTrials": 9},
    "time": {"spec.budget.maxDurationSeconds": 86401},
    "hours": {"spec.budget.maxGpuHours": 40.5},
    "fewer hours": {"spec.budget.maxGpuHours": 0.5},
    "a queue": {"spec.cluster.queueName": "other"},
    "the queue": {"spec.cluster.queueName": "gpu"},
    "a priority": {"spec.cluster.priorityClassName": "urgent"},
    "the priority": {"spec.cluster.priorityClassName": "batch"},
    "a claim": {"spec.storage": {"persistentVolumeClaim": {"claimName": "secrets"}}},
    "the claim": {"spec.storage": {"persistentVolumeClaim": {"claimName": "studies"}}},
    "a store": s3("s3://studies/other"),
    "the store": s3("s3://studies/team"),
    "a Secret": {"spec.storage": {"uri": "s3://studies/team", "secretName": "platform"}},
    "the Secret": {"spec.storage": {"uri": "s3://studies/team", "secretName": "own-keys"}},
    "a tracker's Secret": {"spec.tracking": {"tensorboard": True, "secretName": "team-b-keys"}},
    "an endpoint": files(f"s3://data/teams/{NS}/a.csv?endpoint_override=evil.example"),
    "an endpoint in capitals": files(f"s3://data/teams/{NS}/a.csv?Endpoint_Override=evil.example"),
    "an encoded endpoint": files(f"s3://data/teams/{NS}/a.csv?endpoint%5Foverride=evil.example"),
    "the endpoint": files(f"s3://data/teams/{NS}/a.csv?endpoint_override=minio.ml.svc:9000"),
    "an authority": files(f"abfss://c@a/teams/{NS}/a.csv?dfs_storage_authority=evil.example"),
    "Azure": files("abfss://data@account.dfs.core.windows.net/a.csv"),
    "not Azure": files("abfss://data@169.254.169.254/a.csv"),
    "the metadata server": files("http://169.254.169.254/latest/meta-data"),
    "a host": files("hdfs://namenode:8020/a.csv"),
    "mlflow": {
        "spec.tracking": {"mlflow": {"trackingUri": "http://mlflow.ml:5000", "experiment": "e"}}
    },
    "another mlflow": {
        "spec.tracking": {"mlflow": {"trackingUri": "http://evil.example", "experiment": "e"}}
    },
}

ACCEPTED = {
    *(
        "nothing",
        "options",
        "own path",
        "own claim",
        "public data",
        "own warm start",
        "an own model",
    ),
    *("a model of the hub", "an exact model of the hub", "searched models", "data of the hub"),
    *("four workers", "no GPU", "memory in bytes", "fewer hours", "the queue", "the priority"),
    *("the claim", "the store", "the Secret", "the endpoint", "mlflow"),
}
"""What the strict class accepts of these."""


@pytest.fixture(scope="module")
def client(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    made = Client(server, tmp_path_factory.mktemp("client"))
    for name, spec in CLASSES_OF_TESTS.items():
        manifest = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneClass",
            "metadata": {"name": f"{PREFIX}-{name}"},
            "spec": spec,
        }
        status, answer = made.request("POST", f"{CLASSES}?fieldValidation=Strict", manifest)
        assert status == 201, answer
    _until_in_force(made)
    yield made
    for name in CLASSES_OF_TESTS:
        made.request("DELETE", f"{CLASSES}/{PREFIX}-{name}")
    made.close()


def _until_in_force(client: Client) -> None:
    """Until each class is known to the API server's policies."""
    for name in ("strict", "empty", "plain"):
        changes = {"spec.className": f"{PREFIX}-{name}", **ASKED["a template"]}
        deadline = time.monotonic() + 120
        while client.dry_run(changed(BASE, changes))[0] == 201:
            assert time.monotonic() < deadline, "the policy is not in force"
            time.sleep(0.2)


def _class(name: str) -> FineTuneClass:
    return FineTuneClass.model_validate(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneClass",
            "metadata": {"name": f"{PREFIX}-{name}"},
            "spec": CLASSES_OF_TESTS[name],
        }
    )


def test_api_server_and_operator_refuse_the_same(client: Client) -> None:
    cases = list(itertools.product(CLASSES_OF_TESTS, ASKED))
    manifests = [
        changed(BASE, {"spec.className": f"{PREFIX}-{name}", **ASKED[asked]})
        for name, asked in cases
    ]
    refused = 0
    for (name, asked), manifest, (status, answer) in zip(
        cases, manifests, client.dry_runs(manifests), strict=True
    ):
        found = refusals(parse_study(manifest).spec, NS, f"{PREFIX}-{name}", _class(name).spec)
        says = answer.get("message", "")
        assert (status == 201) == (not found), f"{asked} in {name}: {status} {says}; {found}"
        if name == "strict":
            assert (not found) == (asked in ACCEPTED), f"{asked}: {found}"
        if found:
            refused += 1
            assert f"in class {PREFIX}-{name}" in says
    assert len(cases) / 3 < refused < len(cases) * 2 / 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("five workers", "spec.cluster.workers must be at most 4 in class CLASS (got 5)"),
        ("a template", "spec.cluster.podTemplate must not be given in class CLASS"),
        ("a queue", "spec.cluster.queueName must be one of gpu in class CLASS (got other)"),
        ("data of others", "/other/a.csv)"),
    ],
)
def test_refusals_say_field_value_and_what_would_be_right(
    client: Client, asked: str, message: str
) -> None:
    message = message.replace("CLASS", f"{PREFIX}-strict")
    manifest = changed(BASE, {"spec.className": f"{PREFIX}-strict", **ASKED[asked]})
    assert message in client.dry_run(manifest)[1]["message"]
    found = refusals(parse_study(manifest).spec, NS, f"{PREFIX}-strict", _class("strict").spec)
    assert any(message in f"{field} {text}" for field, text in found)


def test_a_study_of_a_class_that_was_tightened_can_be_suspended_and_labelled(
    client: Client,
) -> None:
    manifest = changed(
        BASE, {"spec.className": f"{PREFIX}-plain", "metadata.name": f"{PREFIX}-tight"}
    )
    assert client.request("POST", STUDIES, manifest)[0] == 201
    tight = {"limits": {"trials": 1}, "allowed": {}}
    place, kind = f"{CLASSES}/{PREFIX}-plain", "application/merge-patch+json"
    client.request("PATCH", place, {"spec": tight}, kind)
    study = f"{STUDIES}/{PREFIX}-tight"
    try:
        deadline = time.monotonic() + 60
        while (
            client.request(
                "PATCH", f"{study}?dryRun=All", {"spec": {"budget": {"maxTrials": 3}}}, kind
            )[0]
            == 200
        ):
            assert time.monotonic() < deadline, "the edit of the class is not in force"
            time.sleep(0.2)
        assert client.request("PATCH", study, {"metadata": {"labels": {"a": "b"}}}, kind)[0] == 200
        assert client.request("PATCH", study, {"spec": {"suspend": True}}, kind)[0] == 200
        status, answer = client.request("PATCH", study, {"spec": {"suspend": False}}, kind)
        assert status == 422
        assert "spec.budget.maxTrials must be at most 1" in answer["message"]
    finally:
        client.request("DELETE", study)
        client.request("PATCH", place, {"spec": {"limits": None}}, kind)


@pytest.mark.parametrize(
    "label",
    [
        "kueue.x-k8s.io/queue-name",
        "argocd.argoproj.io/instance",
        "app.kubernetes.io/instance",
        "finetune.dev/study",
        "job-name",
        "batch.kubernetes.io/job-name",
        "ray.io/cluster",
    ],
)
def test_labels_that_mean_something_to_others_are_not_inherited(client: Client, label: str) -> None:
    manifest = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneClass",
        "metadata": {"name": PREFIX},
        "spec": {"labels": ["team", "example.com/cost-center", label]},
    }
    status, answer = client.request("POST", f"{CLASSES}?dryRun=All", manifest)
    assert status == 422
    assert "spec.labels" in answer["message"]
    with pytest.raises(ValueError, match="must not be a label"):
        FineTuneClass.model_validate(manifest)
