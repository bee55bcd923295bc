"""A hostile driver: what the pods of a study can do with the rights they have, and with those they have not.

They may get and patch one ConfigMap, their study's progress. Whatever they make of it, the operator lives, other
studies are none the worse, and their own study ends as its Job does, or goes on with its next attempt.
"""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from finetune_api.status import MAX_PROGRESS_BYTES
from tests.cluster import lives
from tests.cluster.driver import Driver, Patch
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until


@pytest.fixture(scope="module")
def operator(
    server: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """One for all attacks: what one of them breaks, the next ones see."""
    process = OperatorProcess(server, tmp_path_factory.mktemp("operator") / "operator.log")
    process.start()
    yield process
    process.stop()


@pytest.fixture
def driver(
    operator: OperatorProcess, server: ApiServer, studies: Studies, tmp_path: Path
) -> Iterator[Driver]:
    """The driver of `tickets`, which runs; the operator is the same process before and after."""
    process = operator.process
    assert process is not None
    studies.apply("tickets")
    lives.run(studies, "tickets")
    yield Driver.of(server, studies, "tickets", tmp_path)
    assert operator.process is process
    assert process.poll() is None


# What it may not do.

POD = """
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec: {containers: [{name: x, image: x}]}
"""
CONFIG = """
apiVersion: v1
kind: ConfigMap
metadata: {name: stranger}
"""
_PATCH = ("--type=merge", "-p", '{"metadata":{"labels":{"x":"y"}}}')

FORBIDDEN: dict[str, tuple[tuple[str, ...], str | None]] = {
    "another study's progress": (("patch", "configmap", "other-progress", *_PATCH), None),
    "to read another study's progress": (("get", "configmap", "other-progress"), None),
    "its own spec": (("patch", "configmap", "tickets-spec", *_PATCH), None),
    "all ConfigMaps": (("get", "configmaps"), None),
    "to make a ConfigMap": (("create", "-f", "-"), CONFIG),
    "to delete its ConfigMap": (("delete", "configmap", "tickets-progress", "--wait=false"), None),
    "all secrets": (("get", "secrets"), None),
    "a secret by name": (("get", "secret", "storage"), None),
    "to make a pod": (("create", "-f", "-"), POD),
    "all pods": (("get", "pods"), None),
    "its Job": (("delete", "job", "tickets-1", "--wait=false"), None),
    "its study": (("patch", "fts", "tickets", *_PATCH), None),
    "its study's status": (("patch", "fts", "tickets", "--subresource=status", *_PATCH), None),
    "its own rights": (("patch", "role", "tickets-trainer", *_PATCH), None),
    "a further token": (("create", "token", "tickets-trainer"), None),
    "to be somebody else": (("get", "secrets", "--as=admin", "--as-group=system:masters"), None),
}


def test_a_driver_has_no_right_but_its_own(driver: Driver, studies: Studies) -> None:
    studies.apply("other")
    until("the other's progress", lambda: studies.get("configmap", "other-progress"))
    studies.kubectl("create", "secret", "generic", "storage", "--from-literal=key=value")
    answers = {
        what: driver.refusal(*arguments, stdin=stdin)
        for what, (arguments, stdin) in FORBIDDEN.items()
    }
    assert {what for what, answer in answers.items() if "forbidden" not in answer.lower()} == set()


# What it may do: patch its ConfigMap.


def _lie(studies: Studies, **more: Any) -> dict[str, Any]:
    """A document that says more than is true: the study has finished, with 99 trials."""
    counts = {"planned": 99, "completed": 99, "summary": "99/99"}
    return {
        "studyUid": studies.get("fts", "tickets")["metadata"]["uid"],
        "jobUid": studies.get("job", "tickets-1")["metadata"]["uid"],
        "term": 1,
        "phase": "Finished",
        "reason": "SearchFinished",
        "time": datetime.now(UTC).isoformat(),
        "findings": {"trials": counts},
        **more,
    }


def _says(text: str) -> Patch:
    return {"data": {"progress": text}}


def _lies(studies: Studies, **more: Any) -> Patch:
    return _says(json.dumps(_lie(studies, **more)))


def _uid(studies: Studies, name: str) -> str:
    return str(studies.get("fts", name)["metadata"]["uid"])


def _owner(studies: Studies, name: str) -> Patch:
    owner = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneStudy",
        "name": name,
        "uid": _uid(studies, name),
        "controller": True,
    }
    return {"metadata": {"ownerReferences": [owner]}}


DISBELIEVED: dict[str, Callable[[Studies], Patch]] = {
    "too long": lambda s: _says(json.dumps(_lie(s)) + " " * MAX_PROGRESS_BYTES),
    "a megabyte of keys": lambda _: {"data": {f"key-{n}": "x" * 8000 for n in range(120)}},
    "no JSON": lambda _: _says("{"),
    "no object": lambda _: _says("[1]"),
    "nested too deep": lambda _: _says('{"studyUid":' + "[" * 5000 + "]" * 5000 + "}"),
    "nothing at all": lambda _: {"data": {"progress": None}},
    "of another study": lambda s: _lies(s, studyUid=_uid(s, "other")),
    "of a term that nobody claimed": lambda s: _lies(s, term=2),
    "of a term that is no number": lambda s: {
        "data": {"term": "-1", **_lies(s, term=10**18)["data"]}
    },
    "numbers without end": lambda s: _lies(s, findings={"trials": {"running": 10**400}}),
    "no number": lambda s: _lies(s, findings={"gpuSeconds": float("nan")}),
}
"""What nobody should believe; the study stays as it was."""

UNHEARD: dict[str, Callable[[Studies], Patch]] = {
    "no labels": lambda _: {"metadata": {"labels": None}},
    "another study's label": lambda _: {"metadata": {"labels": {"finetune.dev/study": "other"}}},
    "another study's uid": lambda s: {
        "metadata": {"labels": {"finetune.dev/study-uid": _uid(s, "other")}}
    },
    "many annotations": lambda _: {
        "metadata": {"annotations": {f"key-{n}": "x" * 200 for n in range(1000)}}
    },
    "no managed fields": lambda _: {"metadata": {"managedFields": [{}]}},
    "a finalizer": lambda _: {"metadata": {"finalizers": ["example.dev/never"]}},
}
"""What may make its driver unheard until the next attempt, which puts it right."""


def _barrier(studies: Studies) -> None:
    """Another study of the namespace lives its life; when it has, the operator has seen what came before."""
    lives.run(studies, "other")
    lives.complete(studies, "other")


def _sane(studies: Studies) -> None:
    status = studies.get("fts", "tickets")["status"]
    true = {one["type"] for one in status["conditions"] if one["status"] == "True"}
    assert not true & {"Complete", "Failed", "Stalled"}
    assert (status["attempts"], status.get("failedAttempts", 0)) == (1, 0)
    assert status["trials"]["completed"] == 4  # as its honest driver said


def _recovers(studies: Studies) -> None:
    """The truth is heard again, and the study ends well."""
    counts = {"planned": 9, "completed": 5, "summary": "5/9"}
    studies.report("tickets", "tickets-1", "Searching", findings={"trials": counts})
    until("the truth", lambda: studies.get("fts", "tickets")["status"]["trials"]["completed"] == 5)
    lives.complete(studies, "tickets")


@pytest.mark.parametrize("attack", DISBELIEVED)
def test_document_is_not_believed(
    attack: str, driver: Driver, studies: Studies, tmp_path: Path
) -> None:
    studies.apply("other")
    until("the other study", lambda: studies.get("job", "other-1"))
    driver.patch("tickets-progress", DISBELIEVED[attack](studies), tmp_path)
    _barrier(studies)
    _sane(studies)
    _recovers(studies)


@pytest.mark.parametrize("attack", UNHEARD)
def test_config_map_is_put_right(
    attack: str, driver: Driver, studies: Studies, tmp_path: Path
) -> None:
    studies.apply("other")
    until("the other study", lambda: studies.get("job", "other-1"))
    driver.patch("tickets-progress", UNHEARD[attack](studies), tmp_path)
    _barrier(studies)
    _sane(studies)
    lives.suspend(studies, "tickets")
    lives.resume(studies, "tickets")
    lives.run(studies, "tickets", attempt=2)
    config = studies.get("configmap", "tickets-progress")["metadata"]
    assert config["labels"]["finetune.dev/study"] == "tickets"
    (owner,) = config["ownerReferences"]
    assert owner["uid"] == config["labels"]["finetune.dev/study-uid"] == _uid(studies, "tickets")
    lives.complete(studies, "tickets", attempt=2)
    if "finalizers" in config:  # else the namespace could not be cleared
        driver.patch("tickets-progress", {"metadata": {"finalizers": None}}, tmp_path)


def test_a_config_map_without_an_owner_is_not_the_studys_any_more_and_must_be_deleted(
    driver: Driver, studies: Studies, tmp_path: Path
) -> None:
    studies.apply("other")
    until("the other study", lambda: studies.get("job", "other-1"))
    driver.patch("tickets-progress", {"metadata": {"ownerReferences": None}}, tmp_path)
    _barrier(studies)
    _sane(studies)
    lives.suspend(studies, "tickets")
    lives.resume(studies, "tickets")
    advice = "ConfigMap tickets-progress exists and does not belong to this study: delete it"
    until("advice", lambda: studies.get("fts", "tickets")["status"]["message"] == advice)
    studies.done("DELETE", "configmap", "tickets-progress")
    lives.run(studies, "tickets", attempt=2)
    lives.complete(studies, "tickets", attempt=2)


@pytest.mark.parametrize("phase", ["Finished", "Failed"])
@pytest.mark.parametrize("attempt", ["this", "another"])
def test_an_end_is_believed_only_when_its_job_has_ended(
    phase: str, attempt: str, driver: Driver, studies: Studies, tmp_path: Path
) -> None:
    """What an attempt has found is believed all the same: it is no more than what its driver could say."""
    studies.apply("other")
    of = {} if attempt == "this" else {"jobUid": _uid(studies, "tickets")}
    driver.patch("tickets-progress", _lies(studies, phase=phase, **of), tmp_path)
    _barrier(studies)
    assert studies.state("tickets") == ("Running" if attempt == "this" else "Starting")
    assert not studies.get("configmap", "tickets-winner")
    _recovers(studies)


def test_a_config_map_that_claims_another_owner_costs_its_own_study_alone(
    driver: Driver, studies: Studies, tmp_path: Path
) -> None:
    studies.apply("other")
    until("the other study", lambda: studies.get("job", "other-1"))
    driver.patch("tickets-progress", _owner(studies, "other"), tmp_path)
    _barrier(studies)
    assert studies.condition("tickets", "Complete")["status"] != "True"
    assert studies.get("fts", "tickets")["status"]["trials"]["completed"] == 4
    assert "tickets" not in json.dumps(studies.get("fts", "other")["status"])


def test_a_frozen_config_map_costs_its_own_study_alone(
    driver: Driver, studies: Studies, tmp_path: Path
) -> None:
    studies.apply("other")
    driver.patch("tickets-progress", {"immutable": True}, tmp_path)
    _barrier(studies)
    _sane(studies)
    lives.suspend(studies, "tickets")
    studies.kubectl("delete", "fts", "tickets")
    until("its ConfigMap to go", lambda: not studies.get("configmap", "tickets-progress"), 90)
    studies.apply("tickets")
    lives.run(studies, "tickets")
