"""What a platform team and its users do on a cluster that they share: classes, policies, edits, more of the same."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest import dump_yaml
from tests.cluster.onenode import volumes
from tests.cluster.onenode.build import program
from tests.e2e.platform import TEAM, Platform, condition
from tests.e2e.test_study import folder, patch, pod_of, running_trials, state, study, wait_complete
from tests.e2e.test_troubles import runs, tells
from tests.records import check_records, events_of

USER = "ml-engineer"
OTHER = "search"
CLASS: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneClass",
    "metadata": {"name": "small"},
    "spec": {
        "resourcesPerWorker": {"cpu": "900m", "memory": "4Gi"},
        "storage": {"persistentVolumeClaim": {"claimName": volumes.STUDIES_CLAIM}},
        "labels": ["cost-center"],
        "limits": {"workers": 2, "trials": 4, "gpus": 0},
        "allowed": {"placement": "Deny", "claims": [], "stores": [], "secretNames": []},
    },
}
FIFTEEN_LINES = """
task: SingleLabel
model: {name: models/all-MiniLM-L6-v2}
dataset:
  files: {train: data/library.csv}
  textColumns: [text]
  labelColumn: library
objective: {metric: accuracy}
hyperparameters: {epochs: 1, maxLength: 16}
searchSpaces:
  - learningRate: {min: 1e-4, max: 6e-4, scale: Log}
budget: {maxTrials: 2}
"""


class User:
    """Somebody with rights over studies alone, in two namespaces."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    def apply(self, name: str, namespace: str, spec: str, **metadata: Any) -> str:
        """What the API server says against the study; empty if it takes it."""
        meta = {"name": name, "namespace": namespace, **metadata}
        head = dump_yaml(
            {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneStudy", "metadata": meta}
        )
        body = "".join(f"  {line}\n" for line in spec.strip().splitlines())
        command = [str(program("kubectl")), f"--kubeconfig={self._kubeconfig}", "apply", "-f", "-"]
        done = subprocess.run(
            command, input=f"{head}spec:\n{body}", text=True, capture_output=True, check=False
        )
        return done.stderr


@pytest.fixture
def user(platform: Platform) -> Iterator[User]:
    """The user, with a class that the namespace of the team names and that of the others does not."""
    if platform.cluster is None:
        pytest.skip("users of a foreign cluster are not ours to make")
    platform.namespace(OTHER)
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(CLASS))
    platform.kubectl("label", "namespace", TEAM, "finetune.dev/class=small", "--overwrite")
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "studies-alone"},
        "rules": [
            {
                "apiGroups": ["finetune.dev"],
                "resources": ["finetunestudies"],
                "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"],
            }
        ],
    }
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(role))
    for namespace in (TEAM, OTHER):
        binding = ["rolebinding", "studies-alone", "-n", namespace]
        platform.kubectl("delete", *binding, "--ignore-not-found")
        platform.kubectl("create", *binding, "--clusterrole=studies-alone", f"--user={USER}")
    yield User(platform.cluster.server().kubeconfig_for(USER))
    platform.clear()
    platform.kubectl("label", "namespace", TEAM, "finetune.dev/class-")
    platform.kubectl("delete", "finetuneclass", "small")
    platform.kubectl("delete", "namespace", OTHER, "--wait")


def test_fifteen_lines_of_a_user_with_rights_over_studies_alone(
    platform: Platform, user: User
) -> None:
    assert len(FIFTEEN_LINES.strip().splitlines()) <= 15
    more = f"{FIFTEEN_LINES}cluster: {{workers: 3}}\n"
    deadline = time.monotonic() + 60
    while "must be at most 2 in class small (got 3)" not in (
        said := user.apply("more", TEAM, more)
    ):
        assert time.monotonic() < deadline, said
        platform.kubectl("delete", "fts", "more", "-n", TEAM, "--ignore-not-found")
        time.sleep(1)
    host = '{spec: {volumes: [{name: node, hostPath: {path: "/"}}]}}'
    escape = f"{FIFTEEN_LINES}cluster: {{podTemplate: {host}}}\n"
    assert "podTemplate must not be given" in user.apply("escape", TEAM, escape)
    # The others have no class, so nothing to run with: their namespace has no claim of that name.
    assert user.apply("few", OTHER, f"{FIFTEEN_LINES}className: nobodys\n") == ""
    assert user.apply("few", TEAM, FIFTEEN_LINES, labels={"cost-center": "42", "x": "y"}) == ""
    pod = pod_of(platform, "few", 0)
    labels = json.loads(platform.kubectl("get", "pod", pod, "-n", TEAM, "-o", "json"))
    assert labels["metadata"]["labels"]["cost-center"] == "42"
    assert "x" not in labels["metadata"]["labels"]
    done = wait_complete(platform, "few")
    assert done["status"]["className"] == "small"
    assert done["status"]["trials"]["summary"] == "2/2"
    other = json.loads(platform.kubectl("get", "fts", "few", "-n", OTHER, "-o", "json"))
    assert condition(other, "Stalled") == "True"
    assert "FineTuneClass nobodys (spec.className) does not exist" in other["status"]["message"]


_POLICY: dict[str, Any] = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "ValidatingAdmissionPolicy",
    "metadata": {"name": "no-jobs-today"},
    "spec": {
        "matchConstraints": {
            "resourceRules": [
                {
                    "apiGroups": ["batch"],
                    "apiVersions": ["v1"],
                    "resources": ["jobs"],
                    "operations": ["CREATE"],
                }
            ]
        },
        "validations": [
            {"expression": "false", "message": "no jobs today", "reason": "Invalid"},
        ],
    },
}


@contextmanager
def policy(platform: Platform) -> Iterator[None]:
    """A policy of the platform that refuses every Job, in force."""
    binding = {
        "apiVersion": _POLICY["apiVersion"],
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "no-jobs-today"},
        "spec": {"policyName": "no-jobs-today", "validationActions": ["Deny"]},
    }
    for manifest in (_POLICY, binding):
        platform.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    try:
        probe = ["create", "job", "probe", "--image=x", "-n", TEAM, "--dry-run=server"]
        platform.wait(
            "the policy to be in force", lambda: not platform.kubectl(*probe, check=False), 60
        )
        yield
    finally:
        kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy"
        platform.kubectl("delete", kinds, "no-jobs-today")


@pytest.mark.extended
def test_a_policy_of_the_platform_that_was_a_mistake(platform: Platform) -> None:
    with policy(platform):
        platform.apply(study("refused", refit=False, budget={"maxTrials": 1}))
        tells(platform, "refused", "Forbidden", "no jobs today", lasts=False)
        platform.wait("Pending", lambda: state(platform, "refused") == "Pending", 30)
        assert "no jobs today" in platform.study("refused")["status"]["message"]
    done = wait_complete(platform, "refused")
    assert done["status"]["attempts"] == 1
    platform.clear()


@pytest.mark.extended
def test_a_suspended_study_is_given_more_memory(platform: Platform) -> None:
    name = "grows"
    platform.apply(study(name, refit=False, cluster={"workers": 1}, budget={"maxTrials": 2}))
    platform.wait("a trial at its rung", lambda: running_trials(platform, name), 240)
    patch(platform, name, {"suspend": True})
    platform.wait("Suspended", lambda: condition(platform.study(name), "Suspended") == "True", 90)
    more = {"workers": 1, "resourcesPerWorker": {"memory": "5Gi"}}
    patch(platform, name, {"suspend": False, "cluster": more})
    runs(platform, name)
    pod = json.loads(
        platform.kubectl("get", "pod", pod_of(platform, name, 0), "-n", TEAM, "-o", "json")
    )
    assert pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == "5Gi"
    done = wait_complete(platform, name)
    assert done["status"]["attempts"] == 2
    check_records(folder(platform, name), 2)
    platform.clear()


def test_a_complete_study_is_given_more_trials(platform: Platform) -> None:
    name = "again"
    one = {"workers": 1}
    platform.apply(
        study(
            name,
            cluster=one,
            budget={"maxTrials": 2},
            hyperparameters={"epochs": 1, "maxLength": 16},
        )
    )
    first = wait_complete(platform, name)
    assert first["status"]["trials"]["summary"] == "2/2"
    root = folder(platform, name)
    before = events_of(root)
    patch(platform, name, {"budget": {"maxTrials": 3}})
    platform.wait(
        "another attempt", lambda: condition(platform.study(name), "Complete") == "False", 60
    )
    done = wait_complete(platform, name)
    assert done["status"]["trials"]["summary"] == "3/3"
    assert done["status"]["attempts"] == 2
    after = events_of(root)
    assert after[: len(before)] == before
    check_records(root, 3)
    platform.clear()
