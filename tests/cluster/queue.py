"""Plays a queue as Kueue is one: its webhook holds new Jobs or RayJobs, it lets them run, and takes their place back."""

import base64
import json
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from finetune_api.manifest import dump_yaml
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import Studies, until

LABEL = "kueue.x-k8s.io/queue-name"
_NAME = "queue-stand-in"
_META = {"name": "probe", "namespace": "default", "labels": {LABEL: "any"}}
_POD = {"spec": {"containers": [{"name": "x", "image": "x"}]}}
_RUNS = {"spec": {"restartPolicy": "Never", **_POD["spec"]}}
_HEAD = {"headGroupSpec": {"rayStartParams": {}, "template": _POD}}
_PROBES: dict[str, dict[str, Any]] = {
    "Job": {"apiVersion": "batch/v1", "spec": {"template": _RUNS}},
    "RayJob": {"apiVersion": "ray.io/v1", "spec": {"rayClusterSpec": _HEAD}},
}
"""By the kinds that can be queued: the least of an object that the API server takes."""

_HOLD = [{"op": "add", "path": "/spec/suspend", "value": True}]


class Queue:
    """An admission webhook on loopback, and what Kueue's controller writes to an object of this kind.

    `writes` has (operation, user) of every write to one with a queue that the API server asked it about.
    """

    def __init__(self, server: ApiServer, kind: Literal["Job", "RayJob"] = "Job") -> None:
        self.kind = kind
        self.writes: list[tuple[str, str]] = []
        self._server = server
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        pair = server.authority.issue(_NAME, _NAME, hosts=["127.0.0.1"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._thread = Thread(target=self._http.serve_forever, daemon=True)

    def start(self) -> None:
        """Have the API server ask it about its kind; returns when it does, a moment after it is told to."""
        self._thread.start()
        manifest = self._configuration(self._http.server_address[1])
        self._server.kubectl("apply", "-f", "-", stdin=dump_yaml(manifest))
        until("the API server to ask", self._holds)
        self.writes.clear()

    def _holds(self) -> bool:
        probe = ("create", "-f", "-", "--dry-run=server", "-o", "jsonpath={.spec.suspend}")
        manifest = {"kind": self.kind, "metadata": _META, **_PROBES[self.kind]}
        return self._server.kubectl(*probe, stdin=dump_yaml(manifest)) == "true"

    def stop(self) -> None:
        """Have the API server forget it."""
        self._server.kubectl("delete", "mutatingwebhookconfiguration", _NAME)
        self._http.shutdown()
        self._http.server_close()

    def admit(self, studies: Studies, job: str, **selector: str) -> None:
        """Let the Job or RayJob run, on nodes with these labels."""
        spec = studies.get(self.kind.lower(), job)["spec"]
        groups = spec.get("rayClusterSpec", {})
        templates = [group["template"] for group in groups.get("workerGroupSpecs", [])]
        templates.append((groups["headGroupSpec"] if groups else spec)["template"])
        for template in templates:
            template["spec"].setdefault("nodeSelector", {}).update(selector)
        self._patch(studies, job, {"spec": spec})
        self._patch(studies, job, {"spec": {"suspend": False}})

    def evict(self, studies: Studies, job: str) -> None:
        """Take its place back."""
        self._patch(studies, job, {"spec": {"suspend": True}})

    def forget_start(self, studies: Studies, job: str) -> None:
        """Prepare an evicted Job, whose pods are gone, for other nodes: what has not started may change."""
        self._patch(studies, job, {"status": {"startTime": None}}, "--subresource=status")

    def _patch(self, studies: Studies, job: str, patch: dict[str, Any], *options: str) -> None:
        change = ("--type=merge", "-p", json.dumps(patch), "--field-manager=kueue")
        studies.kubectl("patch", self.kind.lower(), job, *change, *options)

    def _configuration(self, port: int) -> dict[str, Any]:
        bundle = base64.b64encode(Path(self._server.authority.certificate).read_bytes()).decode()
        group, _, version = _PROBES[self.kind]["apiVersion"].partition("/")
        rule = {
            "apiGroups": [group],
            "apiVersions": [version],
            "operations": ["CREATE", "UPDATE"],
            "resources": [f"{self.kind.lower()}s"],
        }
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": _NAME},
            "webhooks": [
                {
                    "name": "jobs.queue.example.com",
                    "clientConfig": {"url": f"https://127.0.0.1:{port}/", "caBundle": bundle},
                    "rules": [rule],
                    "objectSelector": {"matchExpressions": [{"key": LABEL, "operator": "Exists"}]},
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "timeoutSeconds": 5,
                }
            ],
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        writes = self.writes

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked = review["request"]
                writes.append((asked["operation"], asked["userInfo"]["username"]))
                answer: dict[str, Any] = {"uid": asked["uid"], "allowed": True}
                if asked["operation"] == "CREATE":
                    patch = base64.b64encode(json.dumps(_HOLD).encode()).decode()
                    answer |= {"patchType": "JSONPatch", "patch": patch}
                body = json.dumps({**review, "request": None, "response": answer}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler
