"""Monitors, alerts and dashboard select, and ask for, what the operator shows."""

import json
import re

import promql_parser
import pytest
import yaml
from prometheus_client import REGISTRY

from finetune_api.status import Spending, StudyPlan, StudyStatus, TrialCounts, TrialResult
from finetune_api.study import ObjectMeta
from finetune_operator import metrics
from finetune_operator.gpus import GPUS_ALLOCATED
from tests.chart.helm import CHART, NAMESPACE, of_kind, render
from tests.chart.monitoring import DASHBOARD, alerts, panels
from tests.operator.studies import NOW

_TARGET = {"namespace", "pod", "job", "instance"}
"""Labels that both monitors give every series."""


@pytest.fixture(scope="module")
def shown() -> dict[str, set[str]]:
    """Every series of an operator that shows a study, by name, with its labels."""
    studies = metrics.StudyMetrics()
    best = TrialResult(trial=0, value=0.5, epoch=3)
    status = StudyStatus(
        state="Running",
        trials=TrialCounts(planned=4),
        best=best,
        plan=StudyPlan(expected_epochs=12),
        spending=Spending(epochs=3, epochs_saved=1, price=2),
    )
    meta = ObjectMeta(name="tickets", namespace="nlp", creation_timestamp=NOW)
    studies.show(meta, StudyStatus(), status, NOW)
    metrics.API_REQUESTS.labels("get", "200")
    metrics.WATCH_RESTARTS.labels("Pod")
    metrics.WATCH_SILENT.labels("Pod")
    GPUS_ALLOCATED.source = lambda: {("nlp", ""): 4}
    found: dict[str, set[str]] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    studies.clear()
    GPUS_ALLOCATED.source = dict
    return found


def test_alerts_ask_for_what_is_shown(shown: dict[str, set[str]]) -> None:
    for alert in alerts():
        _check(alert["expr"], shown)


def test_dashboard_asks_for_what_is_shown(shown: dict[str, set[str]]) -> None:
    found = panels()
    assert len(found) > 10
    for _, query in found:
        _check(query, shown)
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(
                r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["query"]["query"]
            )
            assert asked is not None, variable["query"]
            series, label = asked.groups()
            assert label in shown[series] | _TARGET


def test_everything_that_is_shown_of_studies_is_on_the_dashboard(
    shown: dict[str, set[str]],
) -> None:
    asked = {word for _, query in panels() for word in re.findall(r"\w+", query)}
    gauges = {name for name in shown if name.startswith("finetune_study_")}
    assert gauges - asked == {
        "finetune_study_queue_wait_seconds_count",
        "finetune_study_queue_wait_seconds_sum",
        "finetune_study_queue_wait_seconds_created",
    }


def test_a_query_for_what_is_not_shown_is_noticed(shown: dict[str, set[str]]) -> None:
    for wrong in (
        "sum(finetune_leaders)",
        "sum by (study) (finetune_study_epochs)",
        'finetune_study_epochs{study="x"}',
        "rate(finetune_leader)",
        "sum(finetune_leader",
    ):
        with pytest.raises((AssertionError, ValueError)):
            _check(wrong, shown)


def test_alerts_look_at_this_release_and_its_namespaces() -> None:
    for alert in alerts({"watch.namespaces": ["nlp", "search"]}):
        of_studies = re.search("finetune_(study|gpus)_", alert["expr"])
        place = '=~"nlp|search"' if of_studies else f'="{NAMESPACE}"'
        assert f"namespace{place}" in alert["expr"]
        assert "_NAMESPACE" not in json.dumps(alert)


def test_every_alert_says_how_bad_it_is_and_what_it_means() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names)
    for alert in alerts():
        assert alert["labels"]["severity"] in ("info", "warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description"}
        labels = set(re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"])))
        kept = set(re.findall(r"by \(([\w, ]+)\)", alert["expr"])) or {""}
        assert labels <= {label for group in kept for label in group.split(", ")}


@pytest.mark.parametrize(
    ("kind", "value", "endpoints", "selected"),
    [
        ("PodMonitor", "podMonitor", "podMetricsEndpoints", "Deployment"),
        ("ServiceMonitor", "serviceMonitor", "endpoints", "Service"),
    ],
)
def test_monitors_select_the_operator_and_keep_the_namespaces_of_studies(
    kind: str, value: str, endpoints: str, selected: str
) -> None:
    wanted = {"enabled": True, "labels": {"release": "prometheus"}, "interval": "15s"}
    manifests = render({f"metrics.{value}": wanted, "metrics.access": "Open"})
    (monitor,) = of_kind(manifests, kind)
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"][endpoints] == [
        {"port": "metrics", "interval": "15s", "honorLabels": True}
    ]
    (target,) = of_kind(manifests, selected)
    labels = target["metadata"]["labels"]
    if selected == "Deployment":
        labels = target["spec"]["template"]["metadata"]["labels"]
        (container,) = target["spec"]["template"]["spec"]["containers"]
        assert "metrics" in {port["name"] for port in container["ports"]}
    else:
        assert [port["name"] for port in target["spec"]["ports"]] == ["metrics"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()


SERVICE_MONITOR = {"metrics.serviceMonitor.enabled": True}
POD_MONITOR = {"metrics.podMonitor.enabled": True}
TOKEN = {"name": "prometheus", "key": "token"}


def test_service_monitor_sends_prometheus_own_token() -> None:
    (monitor,) = of_kind(render(SERVICE_MONITOR), "ServiceMonitor")
    assert monitor["spec"]["endpoints"] == [
        {
            "port": "metrics",
            "interval": "30s",
            "honorLabels": True,
            "scheme": "https",
            "tlsConfig": {"insecureSkipVerify": True},
            "bearerTokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token",
        }
    ]


@pytest.mark.parametrize("monitor", [SERVICE_MONITOR, POD_MONITOR], ids=["service", "pod"])
def test_monitors_verify_the_platforms_certificate_and_send_the_token_of_a_secret(
    monitor: dict[str, bool],
) -> None:
    values = {**monitor, "metrics.tokenSecret": TOKEN, "metrics.certificateSecret": "cert"}
    manifests = render(values)
    (made,) = of_kind(manifests, "ServiceMonitor", "PodMonitor")
    (endpoint,) = made["spec"].get("endpoints") or made["spec"]["podMetricsEndpoints"]
    (service,) = of_kind(manifests, "Service")
    assert endpoint == {
        "port": "metrics",
        "interval": "30s",
        "honorLabels": True,
        "scheme": "https",
        "tlsConfig": {
            "ca": {"secret": {"name": "cert", "key": "ca.crt"}},
            "serverName": f"{service['metadata']['name']}.{NAMESPACE}.svc",
        },
        "authorization": {"credentials": TOKEN},
    }


def test_dashboard_is_found_by_grafanas_sidecar() -> None:
    values = {
        "metrics.dashboard.enabled": True,
        "metrics.dashboard.annotations": {"grafana_folder": "ML"},
    }
    (config,) = of_kind(render(values), "ConfigMap")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["metadata"]["annotations"] == {"grafana_folder": "ML"}
    (text,) = config["data"].values()
    assert json.loads(text) == json.loads(DASHBOARD.read_text())


def test_panels_lie_beside_each_other() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_nothing_of_it_is_there_by_default() -> None:
    kinds = ("PodMonitor", "ServiceMonitor", "PrometheusRule", "ConfigMap")
    assert of_kind(render(), *kinds) == []
    assert yaml.safe_load((CHART / "values.yaml").read_text())["metrics"]["service"]["enabled"]


def _check(query: str, shown: dict[str, set[str]]) -> None:
    """Raises if the query is no PromQL, or if its series or labels are not shown."""
    promql_parser.parse(query)
    names = re.findall(r"\b(?:finetune|process)_\w+", query)
    assert names
    assert set(names) <= set(shown)
    labels = {label for name in names for label in shown[name]} | _TARGET
    groups = re.findall(r"\b(?:by|on|without|ignoring) \(([\w, ]+)\)", query)
    matchers = [m for part in re.findall(r"\{(.*?)\}", query) for m in part.split(", ")]
    used = {label for group in groups for label in group.split(", ")}
    used |= {re.split("[=!~]", matcher)[0] for matcher in matchers}
    assert used <= labels | {"le"}
