"""A plain client of the API server for tests: many requests at a time, answers as they come."""

import base64
import json
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from threading import local
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.cluster.onenode.apiserver import ApiServer

STUDIES = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunestudies"
MERGE = "application/merge-patch+json"


class Client:
    """Speaks HTTPS with the certificate of a kubeconfig."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        config = yaml.safe_load(server.kubeconfig.read_text())
        user, cluster = config["users"][0]["user"], config["clusters"][0]["cluster"]
        paths = {}
        for name, value in (
            ("ca", cluster["certificate-authority-data"]),
            ("cert", user["client-certificate-data"]),
            ("key", user["client-key-data"]),
        ):
            paths[name] = folder / f"{name}.pem"
            paths[name].write_bytes(base64.b64decode(value))
        self._context = ssl.create_default_context(cafile=str(paths["ca"]))
        self._context.load_cert_chain(paths["cert"], paths["key"])
        self._host = urlsplit(server.url).netloc
        self._threads = local()
        self._connections: list[HTTPSConnection] = []

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """Status and JSON answer of one request; it is sent again if the API server has broken the connection."""
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        connection = self._connection()
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
        except (HTTPException, ConnectionError):
            connection.close()  # it connects again by itself
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def _connection(self) -> HTTPSConnection:
        if not hasattr(self._threads, "connection"):
            self._threads.connection = HTTPSConnection(
                self._host, context=self._context, timeout=60
            )
            self._connections.append(self._threads.connection)
        connection: HTTPSConnection = self._threads.connection
        return connection

    def close(self) -> None:
        """Close every thread's connection."""
        for connection in self._connections:
            connection.close()

    def dry_run(self, manifest: Any) -> tuple[int, Any]:
        """The answer to creating the study, without creating it."""
        return self.request("POST", f"{STUDIES}?dryRun=All&fieldValidation=Strict", manifest)

    def dry_runs(self, manifests: Iterable[Any]) -> list[tuple[int, Any]]:
        """The answers to many, four at a time."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(self.dry_run, manifests))
