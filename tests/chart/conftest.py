"""Without helm, and without a way to build it, these tests are skipped with the reason; in CI they fail."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.chart.helm import helm
from tests.chart.release import MODES, api_server, install, uninstall
from tests.cluster.onenode.apiserver import ApiServer
from tests.needs import ToolMissing, not_run


@pytest.fixture(scope="session", autouse=True)
def helm_is_there() -> None:
    try:
        helm("version", "--short")
    except ToolMissing as missing:
        not_run(missing)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    # With this plugin, owner references that block deletion need a right of their own.
    plugin = "--enable-admission-plugins=OwnerReferencesPermissionEnforcement"
    with api_server(tmp_path_factory.mktemp("apiserver"), plugin) as started:
        yield started


@pytest.fixture(params=MODES)
def values(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Values of a release that is installed for the duration of the test."""
    chosen = MODES[request.param]
    install(server, chosen)
    yield chosen
    uninstall(server)
