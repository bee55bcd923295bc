"""Runs the operator as a process against an API server, and plays the part of kubelet and driver."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.manifest import dump_yaml
from tests.api.wrong_manifests import VALID, changed
from tests.cluster.client import MERGE, Client
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.proxy import Call, Proxy, Stall

_PATHS = {
    "configmaps": "api/v1",
    "events": "api/v1",
    "finetunestudies": "apis/finetune.dev/v1alpha1",
    "jobs": "apis/batch/v1",
    "leases": "apis/coordination.k8s.io/v1",
    "networkpolicies": "apis/networking.k8s.io/v1",
    "pods": "api/v1",
    "rayjobs": "apis/ray.io/v1",
    "rolebindings": "apis/rbac.authorization.k8s.io/v1",
    "roles": "apis/rbac.authorization.k8s.io/v1",
    "secrets": "api/v1",
    "serviceaccounts": "api/v1",
    "services": "api/v1",
}
PATIENCE_SECONDS = 500
"""How long tests wait: a watch may be silent for three minutes, and a busy machine is five times as slow."""

_LATE_SECONDS = float(os.environ.get("FINETUNE_TESTS_LATE_SECONDS", "0"))
"""How much later than it is written the operator's word arrives, to find tests that read it once and too early."""

_SHORT = {"fts": "finetunestudies", "networkpolicy": "networkpolicies"}


def _late(call: Call) -> Stall | None:
    late = call.write and re.search(r"/(status|events)$|/configmaps/", call.path)
    return Stall(_LATE_SECONDS) if late else None


class OperatorProcess:
    """`python -m finetune_operator`, started, killed and started again."""

    def __init__(
        self,
        server: ApiServer,
        log: Path,
        kubeconfig: Path | None = None,
        /,
        module: str = "finetune_operator",
        **env: str,
    ) -> None:
        self._module = module
        self._env = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig or server.kubeconfig),
            "FINETUNE_DEFAULT_STORAGE": '{"persistentVolumeClaim":{"claimName":"studies"}}',
            "FINETUNE_METRICS_ACCESS": "Open",
            "FINETUNE_METRICS_PORT": "0",
            "FINETUNE_HEALTH_PORT": "0",
            **env,
        }
        self._log = log
        self._delayed = server if _LATE_SECONDS and kubeconfig is None else None
        self._between = ExitStack()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a new process."""
        if self._delayed is not None:
            folder = Path(self._between.enter_context(tempfile.TemporaryDirectory()))
            proxy = self._between.enter_context(Proxy(self._delayed, folder, _late))
            self._env["KUBECONFIG"] = str(proxy.kubeconfig)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self._module], env=self._env, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as Kubernetes does."""
        self._end(signal.SIGTERM)

    def said(self) -> list[dict[str, Any]]:
        """Its log, over all its processes: one object a line. Raises JSONDecodeError for a line that is none."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=240)
            self.process = None
            self._between.close()


class Studies:
    """Studies of one namespace, and what kubelet and the driver would write about them."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server = server
        self._folder = tempfile.TemporaryDirectory()
        self._client = Client(server, Path(self._folder.name))
        self.namespace = namespace
        server.kubectl("create", "namespace", namespace)

    def request(
        self,
        method: str,
        kind: str,
        name: str = "",
        body: Any = None,
        content_type: str = MERGE,
        subresource: str = "",
    ) -> tuple[int, Any]:
        """One request about objects of the namespace: status and answer."""
        plural = _SHORT.get(kind) or (kind if kind in _PATHS else f"{kind}s")
        place = f"/{_PATHS[plural]}/namespaces/{self.namespace}/{plural}"
        path = "/".join(part for part in (place, name, subresource) if part)
        kind_of_body = "application/json" if method != "PATCH" else content_type
        return self._client.request(method, path, body, kind_of_body)

    def done(self, method: str, kind: str, name: str = "", body: Any = None, **more: str) -> Any:
        """The answer to a request that must succeed. Raises AssertionError with the API server's words."""
        status, answer = self.request(method, kind, name, body, **more)
        assert status < 300, f"{method} {kind} {name}: {status} {answer.get('message', '')}"
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._folder.cleanup()

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """kubectl in the namespace."""
        return self._server.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def apply(self, name: str, **changes: Any) -> None:
        """Apply the valid study under that name."""
        spec = {f"spec.{key}": value for key, value in changes.items()}
        manifest = changed(
            VALID, {**spec, "metadata.name": name, "metadata.namespace": self.namespace}
        )
        self.kubectl("apply", "-f", "-", stdin=dump_yaml(manifest))

    def create(self, name: str, **spec: Any) -> None:
        """Create the valid study under that name, with these fields of the spec."""
        changes = {f"spec.{key}": value for key, value in spec.items()}
        manifest = changed(VALID, {**changes, "metadata.name": name})
        manifest["metadata"]["namespace"] = self.namespace
        self.done("POST", "fts", body=manifest)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object; empty if it is not there."""
        status, found = self.request("GET", kind, name)
        assert status in (200, 404), found
        return dict(found) if status == 200 else {}

    def all(self, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return list(self.done("GET", kind)["items"])

    def state(self, name: str) -> str:
        """The study's state."""
        return str(self.get("fts", name).get("status", {}).get("state", ""))

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """A condition of the study."""
        found = self.get("fts", name).get("status", {}).get("conditions", [])
        return next((c for c in found if c["type"] == kind), {})

    def run_pod(self, job: str, index: int) -> None:
        """Write the start of a pod as kubelet would."""
        self._write_pod(job, index, {"phase": "Running"})

    def bind_pod(self, job: str, index: int, node: str) -> None:
        """Give a pod to a node, as the scheduler would."""
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        name = self._pod(job, index)
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}}
        self.done("POST", "pod", name, {**binding, "target": target}, subresource="binding")

    def report(self, name: str, job: str, phase: str, **more: Any) -> None:
        """Write the driver's progress document."""
        document = {
            "studyUid": self.get("fts", name)["metadata"]["uid"],
            "jobUid": self.get("job", job)["metadata"]["uid"] if job else "",
            "term": 1,
            "phase": phase,
            "reason": "Running",
            "time": datetime.now(UTC).isoformat(),
            "findings": {"trials": {"planned": 4, "completed": 4, "summary": "4/4"}},
            **more,
        }
        patch = {"data": {"term": "1", "progress": json.dumps(document)}}
        self.done("PATCH", "configmap", f"{name}-progress", patch)

    def end_pod(self, job: str, index: int, phase: str, code: int) -> None:
        """Write the end of a pod as kubelet would; the real Job controller draws the conclusions."""
        ended = {
            "exitCode": code,
            "reason": "Completed" if code == 0 else "Error",
            "finishedAt": _now(),
        }
        container = {
            "name": "trainer",
            "image": "x",
            "imageID": "x",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": ended},
        }
        self._write_pod(job, index, {"phase": phase, "containerStatuses": [container]})

    def _write_pod(self, job: str, index: int, status: dict[str, Any]) -> None:
        name = self._pod(job, index)
        self.done("PATCH", "pod", name, {"status": status}, subresource="status")

    def _pod(self, job: str, index: int) -> str:
        """The name of a Job's pod."""
        return next(
            str(pod["metadata"]["name"])
            for pod in self.all("pods")
            if pod["metadata"]["labels"].get("batch.kubernetes.io/job-name") == job
            and pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == str(index)
            and "deletionTimestamp" not in pod["metadata"]
        )

    def remove_pods(self) -> None:
        """Let go of deleted pods, as kubelet does when their processes have ended."""
        for pod in self.all("pods"):
            if "deletionTimestamp" in pod["metadata"]:
                # The garbage collector may have been quicker.
                name, ended = pod["metadata"]["name"], {"status": {"phase": "Failed"}}
                self.request("PATCH", "pod", name, ended, subresource="status")
                self.request("DELETE", "pod", name, {"gracePeriodSeconds": 0})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def until(
    what: str,
    true: Callable[[], Any],
    seconds: float = PATIENCE_SECONDS,
    meanwhile: Callable[[], None] = lambda: None,
) -> Any:
    """The first true answer, `meanwhile` done before each question. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        meanwhile()
        answer = true()
        if answer:
            return answer
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")
