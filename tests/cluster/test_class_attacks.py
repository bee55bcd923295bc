"""Somebody who may create studies and nothing else tries to get what a class denies.

Without a class, all of it reaches a pod. With one, the API server's policy refuses it; and where the policy is not in
force, the operator does not begin.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.api.wrong_manifests import VALID, changed
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import program
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.cluster.shared import CLASS_CRD, CLASSES, serve_class_policies

USER = "mallory"
OPEN, GUARDED = "open", "guarded"

CLASS: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneClass",
    "metadata": {"name": "team"},
    "spec": {
        "storage": {"persistentVolumeClaim": {"claimName": "studies"}},
        "nodeSelector": {"pool": "team"},
        "resourcesPerWorker": {"cpu": 1},
        "limits": {"workers": 2, "gpus": 2, "resourcesPerWorker": {"memory": "8Gi"}},
        "allowed": {
            "placement": "Deny",
            "queueNames": [],
            "priorityClassNames": [],
            "claims": [],
            "stores": [],
            "secretNames": [],
        },
    },
}


def template(spec: dict[str, Any]) -> dict[str, Any]:
    return {"spec.cluster.podTemplate": {"spec": spec}}


def container(**more: Any) -> dict[str, Any]:
    return template({"containers": [{"name": "trainer", **more}]})


TRICKS: dict[str, tuple[dict[str, Any], str]] = {
    "a folder of the node": (
        template({"volumes": [{"name": "node", "hostPath": {"path": "/"}}]}),
        '"hostPath": {"path": "/"',
    ),
    "root": (
        container(securityContext={"runAsUser": 0, "runAsNonRoot": False}),
        '"runAsUser": 0',
    ),
    "privileges": (
        container(securityContext={"privileged": True, "allowPrivilegeEscalation": True}),
        '"privileged": true',
    ),
    "the node's network": (template({"hostNetwork": True}), '"hostNetwork": true'),
    "the node's processes": (template({"hostPID": True}), '"hostPID": true'),
    "another account": (
        template({"serviceAccountName": "deployer"}),
        '"serviceAccountName": "deployer"',
    ),
    "another team's Secret as a volume": (
        template({"volumes": [{"name": "s", "secret": {"secretName": "payments"}}]}),
        '"secretName": "payments"',
    ),
    "another team's Secret as environment": (
        container(envFrom=[{"secretRef": {"name": "payments"}}]),
        '"secretRef": {"name": "payments"}',
    ),
    "another image": (container(image="evil/image"), '"image": "evil/image"'),
    "another command": (container(command=["sh", "-c", "id"]), '"command": ["sh", "-c", "id"]'),
    "another container": (
        template({"containers": [{"name": "miner", "image": "evil/miner"}]}),
        '"image": "evil/miner"',
    ),
    "the storage's Secret": (
        {"spec.storage": {"uri": "s3://bucket/x", "secretName": "payments"}},
        '"secretRef": {"name": "payments"}',
    ),
    "a tracker's Secret": (
        {"spec.tracking": {"tensorboard": True, "secretName": "payments"}},
        '"secretRef": {"name": "payments"',
    ),
    "another claim": (
        {"spec.storage": {"persistentVolumeClaim": {"claimName": "payments"}}},
        '"claimName": "payments"',
    ),
    "another store": ({"spec.storage": {"uri": "s3://payments/all"}}, "s3://payments/all"),
    "another team's nodes": ({"spec.cluster.nodeSelector": {"pool": "b"}}, '"pool": "b"'),
    "tolerations": (
        {"spec.cluster.tolerations": [{"key": "b", "operator": "Exists"}]},
        '"key": "b"',
    ),
    "a higher priority": (
        {"spec.cluster.priorityClassName": "urgent"},
        '"priorityClassName": "urgent"',
    ),
    "another queue": (
        {"spec.cluster.queueName": "payments"},
        '"kueue.x-k8s.io/queue-name": "payments"',
    ),
    "more workers": ({"spec.cluster.workers": 3}, '"parallelism": 3'),
    "more GPUs": (
        {"spec.cluster.resourcesPerWorker": {"nvidia.com/gpu": 3}},
        '"nvidia.com/gpu": "3"',
    ),
    "more memory": ({"spec.cluster.resourcesPerWorker": {"memory": "9Gi"}}, '"memory": "9Gi"'),
}
"""What the study says, and what its Job would then say."""


@pytest.fixture(scope="module", autouse=True)
def cluster(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's kubeconfig, in a cluster with a class, its policies and two namespaces, one of which names the class."""
    server.serve(CLASS_CRD, CLASSES)
    serve_class_policies(server)
    server.kubectl("apply", "-f", "-", stdin=json.dumps(CLASS))
    role = ["--verb=get,list,create,delete,update,patch", "--resource=finetunestudies.finetune.dev"]
    server.kubectl("create", "clusterrole", "studies-alone", *role)
    binding = ["--clusterrole=studies-alone", f"--user={USER}"]
    server.kubectl("create", "clusterrolebinding", "studies-alone", *binding)
    with_operator = OperatorProcess(server, tmp_path_factory.mktemp("operator") / "log")
    with_operator.start()
    yield server.kubeconfig_for(USER)
    with_operator.stop()


@pytest.fixture(scope="module")
def unguarded(server: ApiServer) -> Iterator[Studies]:
    made = Studies(server, OPEN)
    yield made
    made.close()


@pytest.fixture(scope="module")
def guarded(server: ApiServer, cluster: Path) -> Iterator[Studies]:
    made = Studies(server, GUARDED)
    server.kubectl("label", "namespace", GUARDED, "finetune.dev/class=team")
    deadline = time.monotonic() + 120
    while not apply(cluster, GUARDED, "probe", TRICKS["root"][0]):
        assert time.monotonic() < deadline, "the policy is not in force"
        made.request("DELETE", "fts", "probe")
        time.sleep(0.2)
    yield made
    made.close()


def apply(kubeconfig: Path, namespace: str, name: str, changes: dict[str, Any]) -> str:
    """What the API server says against the user's study; empty if it takes it."""
    manifest = changed(VALID, {"metadata.name": name, "metadata.namespace": namespace, **changes})
    command = [str(program("kubectl")), f"--kubeconfig={kubeconfig}", "create", "-f", "-"]
    done = subprocess.run(
        command, input=json.dumps(manifest), text=True, capture_output=True, check=False
    )
    return done.stderr


def name_of(trick: str) -> str:
    """A name for the trick's study."""
    return trick.replace(" ", "-").replace("'", "").lower()[:38].rstrip("-")


@pytest.mark.parametrize("trick", TRICKS)
def test_without_a_class_it_reaches_the_pods(trick: str, cluster: Path, unguarded: Studies) -> None:
    changes, shown = TRICKS[trick]
    name = name_of(trick)
    assert apply(cluster, OPEN, name, changes) == ""
    job = until(f"a Job of {name}", lambda: unguarded.get("job", f"{name}-1"))
    assert shown in json.dumps(job)
    unguarded.request("DELETE", "fts", name)


@pytest.mark.parametrize("trick", TRICKS)
def test_with_a_class_the_api_server_refuses_it(
    trick: str, cluster: Path, guarded: Studies
) -> None:
    said = apply(cluster, GUARDED, "refused", TRICKS[trick][0])
    assert "in class team" in said, said
    assert guarded.get("fts", "refused") == {}


def test_what_is_denied_at_creation_is_denied_as_an_edit(cluster: Path, guarded: Studies) -> None:
    """Suspended, a study may say what it likes: nothing of it runs. It is resumed by an edit."""
    assert apply(cluster, GUARDED, "edited", {"spec.suspend": True}) == ""
    until("the study to be suspended", lambda: guarded.state("edited") == "Suspended")
    edit = [str(program("kubectl")), f"--kubeconfig={cluster}", "-n", GUARDED, "patch", "fts"]
    wish = {"spec": {"suspend": False, "cluster": {"podTemplate": {"spec": {"hostNetwork": True}}}}}
    done = subprocess.run(
        [*edit, "edited", "--type=merge", "-p", json.dumps(wish)],
        text=True,
        capture_output=True,
        check=False,
    )
    assert "spec.cluster.podTemplate must not be given in class team" in done.stderr
    guarded.done("DELETE", "fts", "edited")


def _class_name(studies: Studies, study: str) -> str:
    return str(studies.get("fts", study).get("status", {}).get("className", ""))


def test_nor_does_the_operator_begin_where_no_policy_refuses_it(
    server: ApiServer, cluster: Path, guarded: Studies
) -> None:
    server.kubectl("delete", "validatingadmissionpolicybinding", "tests-classes")
    deadline = time.monotonic() + 120
    while apply(cluster, GUARDED, "first", TRICKS["root"][0]):
        assert time.monotonic() < deadline, "the policy is still in force"
        time.sleep(0.2)
    for trick, (changes, _) in TRICKS.items():
        assert apply(cluster, GUARDED, name_of(trick), changes) == ""
    assert apply(cluster, GUARDED, "honest", {}) == ""
    until("the honest study's Job", lambda: guarded.get("job", "honest-1"))
    for trick in TRICKS:
        condition = partial(guarded.condition, name_of(trick), "Stalled")
        told = until(f"a word about {trick}", condition)
        assert (told["status"], told["reason"]) == ("True", "ClassDenied"), trick
        assert "in class team" in told["message"]
    assert {job["metadata"]["name"] for job in guarded.all("jobs")} == {"honest-1"}
    until("its class", lambda: _class_name(guarded, "honest") == "team")
    spec = guarded.get("job", "honest-1")["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"pool": "team"}


def test_a_study_goes_on_when_its_class_comes_and_when_it_allows_more(
    server: ApiServer, unguarded: Studies
) -> None:
    unguarded.create("late", className="late", cluster={"workers": 3})
    until("a word about the class", lambda: unguarded.condition("late", "Stalled"))
    assert unguarded.condition("late", "Stalled")["reason"] == "ClassNotFound"
    late = changed(CLASS, {"metadata.name": "late"})
    server.kubectl("apply", "-f", "-", stdin=json.dumps(late))
    until(
        "a word about its limit",
        lambda: unguarded.condition("late", "Stalled").get("reason") == "ClassDenied",
    )
    more = changed(late, {"spec.limits.workers": 3})
    server.kubectl("apply", "-f", "-", stdin=json.dumps(more))
    until("its Job", lambda: unguarded.get("job", "late-1"))

    def of_class() -> tuple[Any, Any]:
        status = unguarded.get("fts", "late")["status"]
        return status.get("className"), status.get("classGeneration")

    until("a word of what it was begun with", lambda: of_class() == ("late", 2))


def test_a_second_default_class_is_refused_and_two_let_studies_wait(
    server: ApiServer, unguarded: Studies
) -> None:
    first, second = (
        json.dumps(changed(CLASS, {"metadata.name": name, "spec.default": True}))
        for name in ("first", "second")
    )
    server.kubectl("apply", "-f", "-", stdin=first)
    server.kubectl("apply", "-f", "-", stdin=first)  # an edit of the default itself

    def refused() -> str:
        done = subprocess.run(
            [str(program("kubectl")), f"--kubeconfig={server.kubeconfig}", "create", "-f", "-"],
            input=second,
            text=True,
            capture_output=True,
            check=False,
        )
        if not done.returncode:  # the policy does not know the first class yet
            server.kubectl("delete", "finetuneclass", "second")
        return done.stderr

    assert "in one class only: first is the default" in until("a refusal", refused)
    server.kubectl("delete", "validatingadmissionpolicybinding", "tests-default-class")
    until("the policy to go", lambda: not refused())
    server.kubectl("create", "-f", "-", stdin=second)
    unguarded.create("torn")
    until("a word", lambda: unguarded.condition("torn", "Stalled"))
    told = unguarded.condition("torn", "Stalled")
    assert told["reason"] == "ClassNotFound"
    assert "first, second are all the default" in told["message"]
    server.kubectl("delete", "finetuneclass", "second")
    until("its Job", lambda: unguarded.get("job", "torn-1"))
