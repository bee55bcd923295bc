"""Who may read the metrics of an operator with the chart's rights, as a real API server says it."""

import json
import os
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from urllib.error import HTTPError, URLError

import pytest

from tests.chart.helm import NAMESPACE, environment, render
from tests.chart.release import VALUES, api_server, groups, install
from tests.cluster.loopback import free_port
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import until

ACCOUNT = f"system:serviceaccount:{NAMESPACE}:finetune-finetune-operator"
LEASE = {
    "apiVersion": "coordination.k8s.io/v1",
    "kind": "Lease",
    "metadata": {"name": "finetune-finetune-operator", "namespace": NAMESPACE},
    "spec": {"holderIdentity": "another", "leaseDurationSeconds": 86400},
}
MONITORING = "monitoring"
READER = "--clusterrole=finetune-metrics-reader"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as started:
        # With the policy on the operator's own account in force, which must not stand in the way.
        install(started, {**VALUES, "policy.operator": "Enabled"})
        started.kubectl("create", "namespace", MONITORING)
        yield started


@pytest.fixture(scope="module")
def port(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The metrics of an operator that has the chart's rights, and stands by: another holds the Lease."""
    server.kubectl("create", "-f", "-", stdin=json.dumps(LEASE))
    port, log = free_port(), tmp_path_factory.mktemp("operator") / "log"
    env = {
        **os.environ,
        **environment(render(VALUES)),
        "KUBECONFIG": str(server.kubeconfig_for(ACCOUNT, groups(NAMESPACE))),
        "FINETUNE_METRICS_PORT": str(port),
        "FINETUNE_HEALTH_PORT": "0",
    }
    with log.open("w") as output:
        command = [sys.executable, "-m", "finetune_operator"]
        operator = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            until("TLS", lambda: operator.poll() is None and asked(port, "") == 401)
            yield port
            assert operator.poll() is None, log.read_text()
        finally:
            operator.terminate()
            operator.wait()


def asked(port: int, token: str) -> int:
    """Status of the answer to whoever has this token; 0 if there is none."""
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
    )
    url = f"https://127.0.0.1:{port}/metrics"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            assert b"finetune_leader" in answer.read()
            return int(answer.status)
    except HTTPError as error:
        return error.code if b"finetune_leader" not in error.read() else 0
    except URLError:
        return 0


def account(server: ApiServer, name: str, *arguments: str) -> str:
    """The token of a new account in the namespace of Prometheus."""
    place = f"--namespace={MONITORING}"
    server.kubectl("create", "serviceaccount", name, place)
    return server.kubectl("create", "token", name, place, *arguments)


def may_read(server: ApiServer, name: str) -> None:
    server.kubectl(
        "create", "clusterrolebinding", name, READER, f"--serviceaccount={MONITORING}:{name}"
    )


def test_nobody_without_a_token_reads_the_metrics(server: ApiServer, port: int) -> None:
    assert asked(port, "") == 401
    assert asked(port, "no-token-of-this-cluster") == 401
    for_others = account(server, "vault", "--audience=vault")
    may_read(server, "vault")
    assert asked(port, for_others) == 401, "a token for another audience"


def test_an_account_reads_them_from_when_it_has_the_right(server: ApiServer, port: int) -> None:
    token = account(server, "guest")
    assert asked(port, token) == 403
    may_read(server, "guest")
    # The API server itself learns of it from its own watch.
    until("the right", lambda: asked(port, token) == 200, 30)


def test_a_token_that_is_revoked_is_of_no_use_a_minute_later(server: ApiServer, port: int) -> None:
    token = account(server, "prometheus")
    may_read(server, "prometheus")
    until("the right", lambda: asked(port, token) == 200, 30)
    server.kubectl("delete", "serviceaccount", "prometheus", f"--namespace={MONITORING}")
    # The API server remembers a token for ten seconds.
    until("the end of it", lambda: asked(port, token) == 401, 90)
