"""A node of which only the logs work: the API server asks it for them as it asks a kubelet."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.cluster.onenode.apiserver import ApiServer


class _Logs(BaseHTTPRequestHandler):
    """Answers with what was asked for."""

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        text = f"{asked.path}\nfollow: {'follow=true' in asked.query}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing to standard error."""


@contextmanager
def kubelet(server: ApiServer, name: str) -> Iterator[str]:
    """A node of that name; its pods log the path that was asked for, and whether it is followed."""
    pair = server.authority.issue(f"node-{name}", "node", hosts=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Logs) as logs:
        logs.socket = context.wrap_socket(logs.socket, server_side=True)
        thread = threading.Thread(target=logs.serve_forever)
        thread.start()
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": logs.server_port}},
            },
        }
        try:
            server.kubectl("create", "-f", "-", stdin=json.dumps(node))
            yield name
        finally:
            server.kubectl("delete", "node", name, "--ignore-not-found")
            logs.shutdown()
            thread.join()
