"""The proxy of the other tests: what it leaves behind when it ends."""

import gc
import http.client
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.proxy import Proxy


def test_it_ends_its_watches_while_the_api_server_does_not_answer(
    server: ApiServer, tmp_path: Path
) -> None:
    pid = server.apiserver.pid
    assert pid is not None
    try:
        with Proxy(server, tmp_path) as proxy:
            config = yaml.safe_load(proxy.kubeconfig.read_text())
            address = urlsplit(config["clusters"][0]["cluster"]["server"]).netloc
            connection = http.client.HTTPConnection(address)
            connection.request("GET", "/api/v1/namespaces?watch=true")
            answer = connection.getresponse()
            assert answer.readline()
            os.kill(pid, signal.SIGSTOP)
        gc.collect()  # Python warns of a connection that is still open, and a warning is an error
    finally:
        os.kill(pid, signal.SIGCONT)
    answer.close()
    connection.close()
