"""The run's API server, studies of a test's own namespace, and a client that reaches them by a kubeconfig."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from finetune_client import Studies as ClientStudies
from tests.cluster.conftest import namespace_of
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import Studies
from tests.cluster.shared import shared_server
from tests.needs import ToolMissing, not_run


@pytest.fixture(scope="session")
def server() -> ApiServer:
    """The run's API server."""
    try:
        return shared_server()
    except ToolMissing as missing:
        not_run(missing)


@pytest.fixture
def studies(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[Studies]:
    """Studies of a namespace of the test's own, and what kubelet and driver would write about them."""
    made = Studies(server, namespace_of(request.node))
    yield made
    made.done("DELETE", "fts")
    made.close()


@pytest.fixture
def kubeconfig(server: ApiServer, studies: Studies, tmp_path: Path) -> Path:
    """The administrator's kubeconfig, with the test's namespace in its context."""
    return with_namespace(server.kubeconfig, studies.namespace, tmp_path / "kubeconfig")


@pytest.fixture
def client(kubeconfig: Path) -> Iterator[ClientStudies]:
    """The client as its users make it."""
    with ClientStudies(kubeconfig=kubeconfig) as made:
        yield made


def with_namespace(kubeconfig: Path, namespace: str, path: Path) -> Path:
    """A copy of the kubeconfig whose context has the namespace."""
    config = yaml.safe_load(kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = namespace
    path.write_text(yaml.safe_dump(config))
    return path
