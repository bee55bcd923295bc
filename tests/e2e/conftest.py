"""One platform for all end-to-end tests: the chart installed on a real node, a team's namespace with storage."""

from collections.abc import Iterator

import pytest

from tests.e2e.platform import TEAM, Platform


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    found = Platform.reach()
    found.install()
    found.team()
    yield found
    found.kubectl("delete", "fts", "--all", "-n", TEAM, "--wait")
