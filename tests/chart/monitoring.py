"""What the chart gives to Prometheus and Grafana: alerts, and the queries of the dashboard."""

import json
from pathlib import Path
from typing import Any

from tests.chart.helm import CHART, of_kind, render
from tests.cluster.onenode.packages import unpacked
from tests.needs import ToolMissing, not_run

DASHBOARD = CHART / "files" / "dashboard.json"
_VARIABLES = {"$__rate_interval": "5m", "$operator": "finetune-system", "$namespace": ".*"}


def groups(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The groups of alerts that the chart renders."""
    (rule,) = of_kind(render({"metrics.rules.enabled": True, **(values or {})}), "PrometheusRule")
    return list(rule["spec"]["groups"])


def alerts(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The alerts of all groups."""
    return [alert for group in groups(values) for alert in group["rules"]]


def write_rules(path: Path, values: dict[str, Any] | None = None) -> Path:
    """The alerts as a file that Prometheus reads."""
    path.write_text(json.dumps({"groups": groups(values)}))
    return path


def panels() -> list[tuple[str, str]]:
    """Title and query of everything on the dashboard, with Grafana's variables filled in."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for variable, value in _VARIABLES.items():
                query = query.replace(variable, value)
            found.append((panel["title"], query.replace("$name", ".*")))
    return found


def program(name: str) -> str:
    """The path of Prometheus's `prometheus` or `promtool`; skips the test where it cannot be had, but not in CI."""
    try:
        return str(unpacked("prometheus") / "usr" / "bin" / name)
    except ToolMissing as missing:
        not_run(missing)
