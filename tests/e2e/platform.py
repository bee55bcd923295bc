"""What a platform team does: installs the chart, gives a team a namespace with storage, applies studies."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.manifest import dump_yaml, load_yaml
from tests.cluster.onenode import images, volumes
from tests.cluster.onenode.access import access
from tests.cluster.onenode.build import program
from tests.cluster.onenode.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "finetune"
SYSTEM = "finetune-system"
TEAM = "nlp"
_PATIENCE = 300  # seconds a command of kubectl may take, e.g. a deletion that waits for a finalizer
_OFFLINE = {"name": "HF_HUB_OFFLINE", "value": "1"}  # a node without internet: never ask the hub
_RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass(frozen=True)
class Images:
    """The images under test; `pod_template` is laid over study pods where they need it."""

    operator: str
    trainer: str
    pod_template: dict[str, Any]


class Platform:
    """A cluster with the operator on it."""

    def __init__(self, kubeconfig: Path, cluster: Cluster | None) -> None:
        self.kubeconfig = kubeconfig
        self.cluster = cluster

    @classmethod
    def reach(cls) -> "Platform":
        """The cluster of E2E_KUBECONFIG, else this machine's own, started if need be."""
        found = access()
        return cls(found.kubeconfig, found.cluster)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """What kubectl prints. Raises AssertionError with its words if it fails, TimeoutExpired if it hangs."""
        command = [str(program("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(
            command, input=stdin, text=True, capture_output=True, check=False, timeout=_PATIENCE
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}{done.stdout}")
        return done.stdout

    def helm(self, *arguments: str) -> str:
        """What helm prints."""
        command = [str(program("helm")), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        if done.returncode:
            raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr}{done.stdout}")
        return done.stdout

    def images(self) -> Images:
        """The images: built here and imported, or named by E2E_OPERATOR_IMAGE and E2E_TRAINER_IMAGE."""
        if self.cluster is None:
            return Images(os.environ["E2E_OPERATOR_IMAGE"], os.environ["E2E_TRAINER_IMAGE"], {})
        found = images.provide(self.cluster.runtime(), "operator", "trainer")
        # The development image has no libraries: they are mounted from this checkout's environment.
        claim = {"claimName": volumes.libraries_claim(), "readOnly": True}
        mount = {"name": "libraries", "mountPath": images.LIBRARIES, "readOnly": True}
        template = {
            "spec": {
                "volumes": [{"name": "libraries", "persistentVolumeClaim": claim}],
                "containers": [{"name": "trainer", "volumeMounts": [mount], "env": [_OFFLINE]}],
            }
        }
        return Images(found["operator"], found["trainer"], template)

    def install(self, **of_studies: Any) -> None:
        """`helm upgrade --install` of the chart, waiting until the operator is ready.

        `of_studies` are values below `study`, beside those that this cluster needs.
        """
        found = self.images()
        self.namespace(SYSTEM)
        values = {
            "image": _image(found.operator),
            "study": {
                "image": _image(found.trainer),
                "resources": {"cpu": "900m", "memory": "4Gi"},
                "storage": {"claimName": volumes.STUDIES_CLAIM},
                "podTemplate": found.pod_template,
                **of_studies,
            },
            "resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "512Mi"}},
        }
        command = ["upgrade", "--install", RELEASE, str(ROOT / "charts" / "finetune-operator")]
        options = ["--namespace", SYSTEM, "--wait", "--timeout", "120s"]
        self.helm(
            *command,
            *options,
            *(f"--set-json={key}={json.dumps(value)}" for key, value in values.items()),
        )

    def namespace(self, name: str) -> None:
        """A namespace under the restricted Pod Security Standard."""
        manifest = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": _RESTRICTED},
        }
        self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))

    def team(self) -> None:
        """The team's namespace, its storage, and the example data and model in it."""
        self.namespace(TEAM)
        if self.cluster is not None:
            folder = volumes.provide(self.cluster.server(), TEAM).studies_folder
            for name in ("data", "models"):
                subprocess.run(
                    ["cp", "-rL", "--update", ROOT / "examples" / name, folder], check=True
                )
            subprocess.run(["chmod", "-R", "a+rwX", folder], check=True)
            return
        self.kubectl(
            "get", "pvc", volumes.STUDIES_CLAIM, "-n", TEAM
        )  # the owner of the cluster makes it

    def apply(self, manifest: dict[str, Any]) -> None:
        """`kubectl apply` of a study in the team's namespace."""
        self.kubectl("apply", "-n", TEAM, "-f", "-", stdin=dump_yaml(manifest))

    def clear(self) -> None:
        """Delete the team's studies; returns when their pods are gone."""
        self.kubectl("delete", "fts", "--all", "-n", TEAM, "--wait")
        self.kubectl("wait", "pods", "--all", "-n", TEAM, "--for=delete", "--timeout=120s")

    def study(self, name: str) -> dict[str, Any]:
        """The study as the API server has it."""
        found: dict[str, Any] = json.loads(
            self.kubectl("get", "fts", name, "-n", TEAM, "-o", "json")
        )
        return found

    def pods(self, study: str) -> list[dict[str, Any]]:
        """The study's pods."""
        found = self.kubectl(
            "get", "pods", "-n", TEAM, "-l", f"finetune.dev/study={study}", "-o", "json"
        )
        return list(json.loads(found)["items"])

    def wait(self, what: str, done: Callable[[], Any], seconds: float) -> Any:
        """The first true answer of `done`, asked every second. Raises AssertionError after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = done()
            if answer:
                return answer
            time.sleep(1)
        raise AssertionError(f"waited {seconds:.0f} s for {what}\n{self.describe()}")

    def describe(self) -> str:
        """What a person would look at when something is stuck."""
        parts = (
            ("get", "fts,jobs,pods", "-n", TEAM, "-o", "wide"),
            ("get", "events", "-n", TEAM, "--sort-by=.lastTimestamp"),
            ("logs", "-n", SYSTEM, "-l", "app.kubernetes.io/name=finetune-operator", "--tail=20"),
        )
        return "\n".join(self.kubectl(*part, check=False) for part in parts)


def condition(study: dict[str, Any], kind: str) -> str:
    """Status of a condition of the study, empty if it has none."""
    conditions = study.get("status", {}).get("conditions", [])
    return next((c["status"] for c in conditions if c["type"] == kind), "")


def example(name: str) -> dict[str, Any]:
    """An example manifest."""
    found: dict[str, Any] = load_yaml((ROOT / "examples" / f"{name}.yaml").read_text())
    return found


def _image(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"}


def say(text: str) -> None:
    """One line of progress."""
    print(f"== {text}", file=sys.stderr, flush=True)
