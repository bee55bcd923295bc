"""The proxy of the other tests: what it leaves behind when it ends."""

import gc
import http.client
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import until
from tests.cluster.proxy import Call, Proxy


def test_it_ends_its_connections_while_the_api_server_does_not_answer(
    server: ApiServer, tmp_path: Path
) -> None:
    pid = server.apiserver.pid
    assert pid is not None
    asked: list[Call] = []
    try:
        with Proxy(server, tmp_path, asked.append) as proxy:
            config = yaml.safe_load(proxy.kubeconfig.read_text())
            address = urlsplit(config["clusters"][0]["cluster"]["server"]).netloc
            watch, request = (
                http.client.HTTPConnection(address),
                http.client.HTTPConnection(address),
            )
            watch.request("GET", "/api/v1/namespaces?watch=true")
            answer = watch.getresponse()
            assert answer.readline()
            request.request("GET", "/api/v1/namespaces")
            assert request.getresponse().read()  # the next one needs no new connection
            os.kill(pid, signal.SIGSTOP)
            request.request("GET", "/api/v1/namespaces")
            until("the proxy to ask", lambda: len(asked) == 3)
        gc.collect()  # Python warns of a connection that is still open, and a warning is an error
    finally:
        os.kill(pid, signal.SIGCONT)
    answer.close()
    watch.close()
    request.close()
