"""One real API server with the CRD, shared by the tests of this folder."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.onenode.access import skip_unless_ci
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import ToolMissing
from tests.cluster.operator_process import Studies

CRD = Path(__file__).resolve().parents[2] / "crds" / "finetunestudies.yaml"
CONTROLLERS = (
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "serviceaccount-controller",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    try:
        started = ApiServer(tmp_path_factory.mktemp("apiserver"), controllers=CONTROLLERS)
    except ToolMissing as missing:
        skip_unless_ci(missing)
    with started:
        started.serve(CRD, "finetune.dev/v1alpha1/finetunestudies")
        yield started


@pytest.fixture
def studies(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[Studies]:
    """Studies of a namespace of the test's own."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))
    made = Studies(server, name[:60].strip("-"))
    yield made
    made.kubectl("delete", "fts", "--all")
    made.close()
