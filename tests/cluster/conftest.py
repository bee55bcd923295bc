"""A real API server with the CRD: one for all quick tests of a run, one for each module of the others."""

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies
from tests.cluster.shared import CONTROLLERS, CRD, STUDIES, shared_server
from tests.needs import ToolMissing, not_run


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiServer]:
    """The run's API server for modules of quick tests; others may do with theirs what they like."""
    try:
        if request.node.get_closest_marker("quick"):
            yield shared_server()
            return
        started = ApiServer(tmp_path_factory.mktemp("apiserver"), controllers=CONTROLLERS)
    except ToolMissing as missing:
        not_run(missing)
    with started:
        started.serve(CRD, STUDIES)
        yield started


@pytest.fixture
def operator(server: ApiServer, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator of all namespaces, where the server is the module's own."""
    process = OperatorProcess(server, tmp_path / "operator.log")
    process.start()
    yield process
    process.stop()


@pytest.fixture
def studies(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[Studies]:
    """Studies of a namespace of the test's own."""
    made = Studies(server, namespace_of(request.node))
    yield made
    made.done("DELETE", "fts")
    made.close()


def namespace_of(test: pytest.Item) -> str:
    """The name of a test's own namespace."""
    name = re.sub("[^a-z0-9]+", "-", test.name.removeprefix("test_"))
    return f"{name[:50].strip('-')}-{sha256(test.nodeid.encode()).hexdigest()[:6]}"
