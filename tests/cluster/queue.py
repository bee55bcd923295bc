"""Plays a queue as Kueue is one: its webhook holds new Jobs, it lets them run, and takes their place back."""

import base64
import json
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from finetune_api.manifest import dump_yaml
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.certificates import Authority
from tests.cluster.operator_process import Studies, until

LABEL = "kueue.x-k8s.io/queue-name"
_NAME = "queue-stand-in"
_PROBE = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "probe", "namespace": "default", "labels": {LABEL: "any"}},
    "spec": {
        "template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}
        }
    },
}
_HOLD = [{"op": "add", "path": "/spec/suspend", "value": True}]


class Queue:
    """An admission webhook on loopback, and what Kueue's controller writes to a Job.

    `writes` has (operation, user) of every write to a Job with a queue that the API server asked it about.
    """

    def __init__(self, server: ApiServer) -> None:
        self.writes: list[tuple[str, str]] = []
        self._server = server
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        pair = server.authority.issue(_NAME, _NAME, hosts=["127.0.0.1"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._thread = Thread(target=self._http.serve_forever, daemon=True)

    def start(self) -> None:
        """Have the API server ask it about Jobs; returns when it does, a moment after it is told to."""
        self._thread.start()
        manifest = _configuration(self._http.server_address[1], self._server.authority)
        self._server.kubectl("apply", "-f", "-", stdin=dump_yaml(manifest))
        until("the API server to ask", self._holds)
        self.writes.clear()

    def _holds(self) -> bool:
        probe = ("create", "-f", "-", "--dry-run=server", "-o", "jsonpath={.spec.suspend}")
        return self._server.kubectl(*probe, stdin=dump_yaml(_PROBE)) == "true"

    def stop(self) -> None:
        """Have the API server forget it."""
        self._server.kubectl("delete", "mutatingwebhookconfiguration", _NAME)
        self._http.shutdown()
        self._http.server_close()

    def admit(self, studies: Studies, job: str, **selector: str) -> None:
        """Let the Job run, on nodes with these labels."""
        template = {"spec": {"nodeSelector": selector}}
        self._patch(studies, job, {"spec": {"template": template}})
        self._patch(studies, job, {"spec": {"suspend": False}})

    def evict(self, studies: Studies, job: str) -> None:
        """Take its place back."""
        self._patch(studies, job, {"spec": {"suspend": True}})

    def forget_start(self, studies: Studies, job: str) -> None:
        """Prepare an evicted Job, whose pods are gone, for other nodes: what has not started may change."""
        self._patch(studies, job, {"status": {"startTime": None}}, "--subresource=status")

    def _patch(self, studies: Studies, job: str, patch: dict[str, Any], *options: str) -> None:
        change = ("--type=merge", "-p", json.dumps(patch), "--field-manager=kueue")
        studies.kubectl("patch", "job", job, *change, *options)

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


def _configuration(port: int, authority: Authority) -> dict[str, Any]:
    bundle = base64.b64encode(Path(authority.certificate).read_bytes()).decode()
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": _NAME},
        "webhooks": [
            {
                "name": "jobs.queue.example.com",
                "clientConfig": {"url": f"https://127.0.0.1:{port}/", "caBundle": bundle},
                "rules": [
                    {
                        "apiGroups": ["batch"],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["jobs"],
                    }
                ],
                "objectSelector": {"matchExpressions": [{"key": LABEL, "operator": "Exists"}]},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "timeoutSeconds": 5,
            }
        ],
    }
