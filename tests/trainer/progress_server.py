"""The one ConfigMap that a study's pods may read and patch, as an API server has it: by HTTP, with its two kinds of patch."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kubernetes import client

from finetune_api.status import StudyProgress

PATH = "/api/v1/namespaces/nlp/configmaps/study-progress"


class ProgressServer:
    """The progress ConfigMap, and all documents that were written to it."""

    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        self.told: list[StudyProgress] = []
        self.before_patch: Callable[[], None] = lambda: None
        """Called before each patch, as if somebody else came first."""

        self.failures = 0
        """So many patches are answered with 500."""

        self._version = 1
        self._lock = threading.Lock()

    @property
    def last(self) -> StudyProgress | None:
        """The latest document."""
        return self.told[-1] if self.told else None

    def phases(self) -> list[str]:
        """The phases that were told, each once in a row."""
        found: list[str] = []
        for document in self.told:
            if found[-1:] != [document.phase]:
                found.append(document.phase)
        return found

    def another_driver(self) -> None:
        """Somebody else claims a term."""
        self.data["term"] = str(int(self.data.get("term", "0")) + 1)
        self._version += 1

    def get(self) -> dict[str, Any]:
        """The ConfigMap."""
        metadata = {"name": "study-progress", "resourceVersion": str(self._version)}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": self.data}

    def patch(self, body: Any) -> int:
        """Take a patch in; the status of the answer."""
        with self._lock:
            self.before_patch()
            if self.failures:
                self.failures -= 1
                return 500
            if isinstance(body, dict):
                if body["metadata"]["resourceVersion"] != str(self._version):
                    return 409
                self.data |= body["data"]
            else:
                test, *adds = body
                assert (test["op"], test["path"]) == ("test", "/data/term")
                assert {add["op"] for add in adds} == {"add"}
                if self.data.get("term") != test["value"]:
                    return 422
                self.data |= {add["path"].removeprefix("/data/"): add["value"] for add in adds}
                self.told.append(StudyProgress.model_validate_json(self.data["progress"]))
            self._version += 1
            return 200

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The address where it answers, inside `with`."""
        progress = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200 if self.path == PATH else 404)

            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(progress.patch(body) if self.path == PATH else 404)

            def _answer(self, status: int) -> None:
                text = json.dumps(progress.get() if status == 200 else {"code": status}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def logged_in(url: str) -> Iterator[Callable[[], None]]:
    """What makes that address the one of Kubernetes' client, inside `with`."""

    def login() -> None:
        client.Configuration.set_default(client.Configuration(host=url))

    try:
        yield login
    finally:
        client.Configuration.set_default(None)
