"""A real Prometheus scrapes a real operator: every query of the dashboard has an answer, every alert is evaluated."""

import json
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.chart.helm import NAMESPACE
from tests.chart.monitoring import alerts, panels, program, write_rules
from tests.cluster import lives
from tests.cluster.loopback import free_port, page
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.processes import Service
from tests.cluster.operator_process import OperatorProcess, Studies, until

STORAGE = {"persistentVolumeClaim": {"claimName": "studies"}}


class Prometheus:
    """A server that scrapes one operator each second, as the chart's monitors would have it do."""

    def __init__(self, folder: Path, scraped: int) -> None:
        folder.mkdir()
        target = {
            "targets": [f"127.0.0.1:{scraped}"],
            "labels": {"namespace": NAMESPACE, "pod": "finetune-0"},
        }
        job = {"job_name": "finetune", "honor_labels": True, "static_configs": [target]}
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(write_rules(folder / "rules.json"))],
            "scrape_configs": [job],
        }
        (folder / "prometheus.json").write_text(json.dumps(config))
        self._port = free_port()
        command = [
            program("prometheus"),
            f"--config.file={folder}/prometheus.json",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        self._service = Service("prometheus", command, folder)

    def __enter__(self) -> "Prometheus":
        self._service.start()
        self._service.wait_until(self._ready)
        return self

    def __exit__(self, *error: object) -> None:
        self._service.stop()

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer. Raises HTTPError for a query that is wrong."""
        asked = f"api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        return json.loads(page(self._port, asked))["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now."""
        return list(self.ask("query", query=expression)["result"])

    def _ready(self) -> bool:
        try:
            return bool(page(self._port, "-/ready"))
        except OSError:
            return False


@pytest.fixture
def prometheus(server: ApiServer, tmp_path: Path) -> Iterator[Prometheus]:
    port = free_port()
    operator = OperatorProcess(
        server,
        tmp_path / "operator.log",
        FINETUNE_DEFAULT_STORAGE="",
        FINETUNE_METRICS_PORT=str(port),
    )
    operator.start()
    try:
        with Prometheus(tmp_path / "prometheus", port) as scraping:
            # What is counted must have been seen before it is counted up.
            until("the first scrape", lambda: scraping.query("finetune_leader"))
            yield scraping
    finally:
        operator.stop()


def _run(studies: Studies) -> None:
    """A study that stalls, one that ends, and one on its way with everything that a driver can tell."""
    studies.apply("homeless")
    best = {"trial": 2, "value": 0.5, "epoch": 3, "params": {"epochs": 9}}
    findings = {
        "trials": {"planned": 4, "completed": 1, "running": 2, "summary": "1/4"},
        "best": best,
        "gpuSeconds": 120.0,
        "spending": {"epochs": 9, "epochsSaved": 3, "price": 1.5},
    }
    for name in ("done", "tickets"):
        cluster = {"workers": 1, "resourcesPerWorker": {"nvidia.com/gpu": 2}}
        studies.apply(name, storage=STORAGE, cluster=cluster)
        lives.run(studies, name, findings=findings)
    studies.bind_pod("tickets-1", 0, "node-1")
    lives.complete(studies, "done", findings=findings)


def test_dashboard_and_alerts_on_a_real_prometheus(
    prometheus: Prometheus, studies: Studies
) -> None:
    _run(studies)
    for title, query in panels():
        until(f"{title}: {query}", partial(prometheus.query, query), 30)
    (held,) = prometheus.query("finetune_gpus_allocated")
    assert (held["metric"]["namespace"], held["value"][1]) == (studies.namespace, "2")
    stalled = prometheus.query("finetune_study_stalled == 1")
    assert [one["metric"]["name"] for one in stalled] == ["homeless"]
    # The study's own namespace, not that of the operator that shows it.
    assert stalled[0]["metric"]["namespace"] == studies.namespace
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {alert["alert"] for alert in alerts()}
    assert {rule["health"] for rule in rules} == {"ok"}
    pending = {rule["name"] for rule in rules if rule["state"] != "inactive"}
    assert pending == {"FinetuneStudyStalled", "FinetuneStudyPending"}
