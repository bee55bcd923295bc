"""`helm test` against a real API server, with the rights of its hook; the operator is played."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.chart.helm import NAMESPACE, hooks, of_kind, render
from tests.chart.release import TEAM, groups, manifest_list, study
from tests.cluster.onenode.apiserver import ApiServer


@dataclass
class Hook:
    """The pod of `helm test`, as a process."""

    server: ApiServer
    study: str
    namespace: str
    start: Callable[..., "subprocess.Popen[str]"]

    def stored(self) -> str:
        """The study's name if it is there."""
        where = (f"--namespace={self.namespace}", "--ignore-not-found", "-o=name")
        return self.server.kubectl("get", "fts", self.study, *where)

    def created(self) -> None:
        """Return when the study is there."""
        deadline = time.monotonic() + 240
        while not self.stored():
            assert time.monotonic() < deadline, "the test creates no study"
            time.sleep(0.2)

    def finish(self, end: str) -> None:
        """Say in the study's status that it has ended, as the operator would."""
        self.created()
        condition = {
            "type": end,
            "status": "True",
            "reason": "SearchFinished",
            "lastTransitionTime": "2026-11-23T12:00:00Z",
        }
        status = {"state": end, "message": "the end of it", "conditions": [condition]}
        where = (self.study, f"--namespace={self.namespace}", "--subresource=status")
        body = json.dumps({"status": status})
        self.server.kubectl("patch", "fts", *where, "--type=merge", f"-p={body}")


@pytest.fixture
def hook(server: ApiServer, values: dict[str, Any]) -> Iterator[Hook]:
    # A short name: users of a certificate have at most 64 characters.
    wanted = {
        "test.enabled": True,
        "test.namespace": TEAM,
        "test.study": study("smoke")["spec"],
        "fullnameOverride": "finetune",
    }
    made = hooks(render({**values, **wanted}))
    rights = manifest_list(manifest for manifest in made if manifest["kind"] != "Pod")
    server.kubectl("apply", "-f", "-", stdin=rights)
    (pod,) = of_kind(made, "Pod")
    (container,) = pod["spec"]["containers"]
    account = f"system:serviceaccount:{NAMESPACE}:{pod['spec']['serviceAccountName']}"
    env = {
        **os.environ,
        **{entry["name"]: entry["value"] for entry in container["env"]},
        "KUBECONFIG": str(server.kubeconfig_for(account, groups(NAMESPACE))),
    }
    meta = json.loads(env["FINETUNE_TEST_STUDY"])["metadata"]

    def start(**more: str) -> "subprocess.Popen[str]":
        command = [sys.executable, *container["command"][1:]]
        return subprocess.Popen(
            command,
            env={**env, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    yield Hook(server, meta["name"], meta["namespace"], start)
    server.kubectl("delete", "-f", "-", stdin=rights)


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("Complete", 0, "passed"),
        ("Failed", 1, "failed: the study failed: the end of it"),
    ],
)
def test_it_ends_as_its_study_does(hook: Hook, end: str, code: int, message: str) -> None:
    test = hook.start()
    hook.finish(end)
    said, _ = test.communicate(timeout=240)
    assert f"{end}: the end of it" in said.splitlines()
    assert said.splitlines()[-1] == message
    assert test.returncode == code
    assert hook.stored() == ""


def test_it_gives_up_and_deletes_the_study(hook: Hook) -> None:
    test = hook.start(FINETUNE_TEST_TIMEOUT_SECONDS="3")
    said, _ = test.communicate(timeout=240)
    assert said.splitlines()[-1] == "failed: the study has not ended after 3 s"
    assert test.returncode == 1
    assert hook.stored() == ""


def test_it_deletes_the_study_when_its_pod_is_deleted(hook: Hook) -> None:
    test = hook.start()
    hook.created()
    test.send_signal(signal.SIGTERM)
    test.communicate(timeout=240)
    assert test.returncode != 0
    assert hook.stored() == ""


def test_study_of_an_earlier_test_is_left_alone(hook: Hook) -> None:
    where = (f"--namespace={hook.namespace}", "-f", "-")
    hook.server.kubectl("create", *where, stdin=json.dumps(study(hook.study)))
    said, _ = hook.start().communicate(timeout=240)
    assert "already exists" in said
    assert hook.stored() != ""
    hook.server.kubectl("delete", "fts", hook.study, f"--namespace={hook.namespace}")
