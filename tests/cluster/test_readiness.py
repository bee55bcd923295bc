"""An operator is ready while its watch of studies is open: not while nothing of them can be heard."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit

import pytest

from tests.cluster.loopback import free_port, page
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.cluster.proxy import Answer, Break, Call, Fault, Proxy, Watch

BROKEN: dict[str, Fault] = {
    "the API server cannot be reached": Break(),
    "studies must not be watched": Answer(403, "Forbidden"),
}


@dataclass
class Way:
    """The way to the API server, open or not; what does not concern studies passes unless `all`."""

    fault: Fault = field(default_factory=Break)
    all: bool = False
    closed: threading.Event = field(default_factory=threading.Event)

    def __call__(self, call: Call) -> Fault | None:
        if not self.all and not call.path.endswith("/finetunestudies"):
            return None
        if self.closed.is_set():
            return self.fault
        # A watch ends after its next event, so that closing the way ends it.
        return Watch(events=1) if call.watch else None


def ready(port: int) -> tuple[int, str]:
    try:
        return 200, page(port, "readyz")
    except HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


@pytest.fixture
def way(server: ApiServer, tmp_path: Path) -> Iterator[tuple[Way, Proxy]]:
    way = Way()
    with Proxy(server, tmp_path, way) as proxy:
        yield way, proxy


@pytest.mark.parametrize("what", BROKEN)
def test_operator_that_hears_of_no_study_is_alive_and_not_ready(
    what: str, way: tuple[Way, Proxy], server: ApiServer, studies: Studies, tmp_path: Path
) -> None:
    rule, proxy = way
    rule.fault, rule.all = BROKEN[what], isinstance(BROKEN[what], Break)
    ports = {"FINETUNE_HEALTH_PORT": free_port(), "FINETUNE_METRICS_PORT": free_port()}
    health, metrics = ports.values()
    operator = OperatorProcess(
        server,
        tmp_path / "operator.log",
        proxy.kubeconfig,
        **{name: str(port) for name, port in ports.items()},
    )

    def silent() -> float:
        (line,) = (
            line
            for line in page(metrics, "metrics").splitlines()
            if line.startswith('finetune_watch_silent_seconds{kind="FineTuneStudy"}')
        )
        return float(line.split()[-1])

    operator.start()
    try:
        until("readiness", lambda: ready(health) == (200, "ok\n"))
        until("the watch to be open", lambda: silent() == 0)
        rule.closed.set()
        studies.create("unheard")  # ends the watch
        until("silence", lambda: silent() > 0)
        assert ready(health)[0] == 200, "a watch may break off for a moment"
        code, why = until("blindness", lambda: (a := ready(health))[0] == 503 and a, 120)
        assert silent() >= 60
        assert why.startswith("no watch of finetunestudies for 6")
        assert page(health, "healthz") == "ok\n"
        rule.closed.clear()
        until("readiness again", lambda: ready(health) == (200, "ok\n"))
        until("its Job", lambda: studies.get("job", "unheard-1"))
        until("the watch to be open", lambda: silent() == 0)
    finally:
        operator.stop()
    assert code == 503


def test_operator_in_a_pod_finds_the_api_server_without_dns(
    server: ApiServer, studies: Studies, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=r"."):
        socket.getaddrinfo("kubernetes.default.svc", 443)
    account = ("serviceaccount", "operator")
    studies.kubectl("create", *account)
    to = f"--serviceaccount={studies.namespace}:operator"
    server.kubectl("create", "clusterrolebinding", "in-a-pod", "--clusterrole=cluster-admin", to)
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text(studies.kubectl("create", "token", "operator"))
    (folder / "namespace").write_text(studies.namespace)
    (folder / "ca.crt").write_bytes(server.authority.certificate.read_bytes())
    address, health = urlsplit(server.url), free_port()
    operator = OperatorProcess(
        server,
        tmp_path / "operator.log",
        Path("/dev/null"),
        module="tests.cluster.in_a_pod",
        ACCOUNT=str(folder),
        KUBERNETES_SERVICE_HOST=str(address.hostname),
        KUBERNETES_SERVICE_PORT=str(address.port),
        FINETUNE_HEALTH_PORT=str(health),
    )
    operator.start()
    try:
        until("readiness", lambda: ready(health) == (200, "ok\n"), 60)
        studies.create("seen")
        until("its Job", lambda: studies.get("job", "seen-1"))
    finally:
        operator.stop()
        server.kubectl("delete", "clusterrolebinding", "in-a-pod")
