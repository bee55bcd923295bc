"""What the policy on a real API server lets a study's pods write."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config

from finetune_api.manifest import parse_study
from finetune_api.status import Findings, JudgedBy, Limits
from finetune_operator.children import children
from finetune_operator.settings import Settings
from finetune_trainer.environment import PodEnvironment
from finetune_trainer.runtime import progress
from tests.api.wrong_manifests import VALID, changed
from tests.chart.release import (
    TEAM,
    VALUES,
    api_server,
    groups,
    install,
    manifest_list,
    uninstall,
)
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import program
from tests.operator.studies import UID

PROGRESS = "guarded-progress"
LIMIT = 64 * 1024
CLOUD = "cloud"
"""An account that the study names for its pods, as one that a cloud knows."""


class Account:
    """A service account that patches the progress of the team's study guarded."""

    def __init__(self, server: ApiServer, name: str, namespace: str = TEAM) -> None:
        user = f"system:serviceaccount:{namespace}:{name}"
        self.kubeconfig = server.kubeconfig_for(user, groups(namespace))

    def patch(self, body: dict[str, Any]) -> str:
        """What the API server says against it; empty if it takes it."""
        return patch(self.kubeconfig, body)


def patch(kubeconfig: Path, body: dict[str, Any]) -> str:
    """What the API server says against a patch of the progress; empty if it takes it."""
    command = [str(program("kubectl")), f"--kubeconfig={kubeconfig}", f"--namespace={TEAM}"]
    what = ["patch", "configmap", PROGRESS, "--type=merge", "--patch-file=/dev/stdin"]
    done = subprocess.run(
        [*command, *what], input=json.dumps(body), text=True, capture_output=True, check=False
    )
    return done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    # Without the plugin that would be first to refuse changes of owner references.
    with api_server(tmp_path_factory.mktemp("apiserver")) as started:
        yield started


@pytest.fixture(scope="module")
def pods(server: ApiServer) -> Iterator[Account]:
    """The account of a study's pods, with the policy in force."""
    install(server, {**VALUES, "policy.enabled": True})
    place: dict[str, Any]
    place = {"metadata.name": "guarded", "metadata.namespace": TEAM, "metadata.uid": UID}
    place["spec.cluster"] = {"podTemplate": {"spec": {"serviceAccountName": CLOUD}}}
    made = manifest_list(children(parse_study(changed(VALID, place)), Settings()))
    server.kubectl("apply", "-f", "-", stdin=made)
    account = Account(server, "guarded-trainer")
    deadline = time.monotonic() + 240
    while not account.patch({"metadata": {"annotations": {"probe": str(time.monotonic())}}}):
        assert time.monotonic() < deadline, "the policy is not in force"
        time.sleep(0.2)
    yield account
    server.kubectl("delete", "-f", "-", stdin=made)
    uninstall(server)


def test_driver_claims_terms_and_publishes(
    server: ApiServer, pods: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The driver itself, but for where it learns of the API server.
    login = config.load_kube_config
    monkeypatch.setattr(config, "load_incluster_config", lambda: login(str(pods.kubeconfig)))
    sink = progress.ConfigMapSink(_environment())
    assert sink.claim_term() == 1
    assert sink.claim_term() == 2
    words = {"phase": "Searching", "reason": "Running", "message": "trial 3"}
    limits = Limits(max_trials=4)
    sink.publish(progress.document(sink, UID, 2, Findings(), **words), limits)
    stored = json.loads(server.kubectl("get", "cm", PROGRESS, f"--namespace={TEAM}", "-o=json"))
    assert json.loads(stored["data"]["progress"])["message"] == "trial 3"
    said = JudgedBy.model_validate_json(stored["data"]["limits"])
    assert said == JudgedBy(term=2, limits=limits)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"finetune.dev/study": "another"}},
        {"labels": {"finetune.dev/study": None}},
        {"labels": None},
        {"annotations": {"argocd.argoproj.io/sync-options": "Prune=false"}},
        {"ownerReferences": None},
        {"finalizers": ["example.com/never"]},
        {"generateName": "guarded-"},
    ],
    ids=json.dumps,
)
def test_metadata_stay_as_they_are(pods: Account, change: dict[str, Any]) -> None:
    assert "must not change the metadata" in pods.patch({"metadata": change})


@pytest.mark.parametrize("change", [{"immutable": True}, {"binaryData": {"x": "AAAA"}}], ids=str)
def test_nothing_but_data_can_be_written(pods: Account, change: dict[str, Any]) -> None:
    assert "must change nothing but the data" in pods.patch(change)


def test_data_have_at_most_64_kib_in_all(pods: Account) -> None:
    nothing = {"term": None, "progress": None, "limits": None}
    assert pods.patch({"data": {**nothing, "x": "a" * (LIMIT - 1)}}) == ""
    assert "must not be larger than 64 KiB" in pods.patch({"data": {"y": ""}})
    # Bytes count, not characters.
    assert "must not be larger than 64 KiB" in pods.patch({"data": {"x": "ü" * (LIMIT // 2)}})
    assert pods.patch({"data": {"x": None}}) == ""


@pytest.mark.usefixtures("pods")
def test_the_account_that_a_study_names_may_write_the_same(server: ApiServer) -> None:
    named = Account(server, CLOUD)
    assert named.patch({"data": {"x": "1"}}) == ""
    assert "must not change the metadata" in named.patch({"metadata": {"labels": None}})
    assert "forbidden" in Account(server, "stranger").patch({"data": {"x": "2"}})


@pytest.mark.usefixtures("pods")
def test_others_are_not_asked(server: ApiServer) -> None:
    assert patch(server.kubeconfig, {"metadata": {"labels": {"team": "nlp"}}}) == ""
    grant = ("--role=guarded-trainer", "--serviceaccount=kube-system:syncer")
    server.kubectl("create", "rolebinding", "other", *grant, f"--namespace={TEAM}")
    other = Account(server, "syncer", "kube-system")
    assert other.patch({"metadata": {"labels": {"team": "search"}}}) == ""
    server.kubectl("delete", "rolebinding", "other", f"--namespace={TEAM}")


def _environment() -> PodEnvironment:
    return PodEnvironment.read(
        {
            "FINETUNE_STUDY_FILE": "study.json",
            "FINETUNE_STORAGE": "studies",
            "FINETUNE_PROGRESS": PROGRESS,
            "FINETUNE_NAMESPACE": TEAM,
            "FINETUNE_JOB_UID": "job",
            "FINETUNE_STUDY_UID": UID,
        }
    )
