"""One platform for all end-to-end tests: the chart installed on a real node, a team's namespace with storage."""

from collections.abc import Iterator

import pytest

from tests.e2e.platform import Platform


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    found = Platform.reach()
    found.install()
    found.team()
    found.clear()  # what an earlier run may have left
    yield found
    found.clear()
