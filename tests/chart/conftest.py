"""Without helm, and without a way to build it, these tests are skipped with the reason; in CI they fail."""

import pytest

from tests.chart.helm import helm
from tests.cluster.onenode.access import skip_unless_ci
from tests.cluster.onenode.build import ToolMissing


@pytest.fixture(scope="session", autouse=True)
def helm_is_there() -> None:
    try:
        helm("version", "--short")
    except ToolMissing as missing:
        skip_unless_ci(missing)
