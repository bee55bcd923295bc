"""docs/values.md is what values.yaml says."""

from typing import Any

import yaml

from tests.chart.helm import CHART
from tests.chart.values_page import PAGE, page, values


def test_page_is_generated_from_the_values() -> None:
    assert PAGE.read_text() == page()


def test_every_default_is_on_the_page() -> None:
    found = {value.path: yaml.safe_load(value.default) for value in values() if value.default}
    groups = {value.path for value in values() if not value.default}
    real = yaml.safe_load((CHART / "values.yaml").read_text())
    assert {path: _at(real, path) for path in found} == found
    assert set(_leaves(real, found)) == set(found)
    assert all(isinstance(_at(real, path), dict) for path in groups)


def _at(tree: dict[str, Any], path: str) -> Any:
    node: Any = tree
    for name in path.split("."):
        node = node[name]
    return node


def _leaves(tree: dict[str, Any], known: dict[str, Any], prefix: str = "") -> list[str]:
    """Paths of everything below `tree` that is no group; what is inside of a known value belongs to it."""
    found: list[str] = []
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and path not in known:
            found += _leaves(value, known, f"{path}.")
        else:
            found.append(path)
    return found
