"""Each alert of the chart, evaluated by Prometheus's own promtool: when it fires, what it says, when it does not."""

import json
import re
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.chart.helm import NAMESPACE, ROOT
from tests.chart.monitoring import alerts, program, write_rules

OF = f'namespace="{NAMESPACE}"'
TICKETS = 'namespace="nlp", name="tickets"'
REQUESTS = f'finetune_api_requests_total{{{OF}, verb="get", code='


@dataclass(frozen=True)
class Case:
    """Series with a value a minute (promtool's notation), and the alert that they are about."""

    alert: str
    series: dict[str, str]
    quiet_at: tuple[str, ...]
    """Times after the first value at which it does not fire."""

    fires_at: str = ""
    severity: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    description: str = ""


ABSENT = Case(
    "FinetuneOperatorAbsent",
    {},
    quiet_at=("4m",),
    fires_at="6m",
    severity="critical",
    labels={"namespace": NAMESPACE},
    summary=f"No replica of the finetune operator in {NAMESPACE} is scraped",
    description="Running studies go on, but nothing starts, resumes, retries or reports them.",
)

CASES = {
    "nothing is scraped": ABSENT,
    "only another release is scraped": replace(
        ABSENT, series={'finetune_leader{namespace="other"}': "1x10"}
    ),
    "a replica that waits is scraped": Case(
        "FinetuneOperatorAbsent", {f"finetune_leader{{{OF}}}": "0x10"}, quiet_at=("4m", "10m")
    ),
    "no replica leads": Case(
        "FinetuneOperatorNoLeader",
        {
            f'finetune_leader{{{OF}, pod="a"}}': "1x4 0x10",
            f'finetune_leader{{{OF}, pod="b"}}': "0x20",
        },
        quiet_at=("4m", "6m"),
        fires_at="7m",
        severity="critical",
        summary=f"No replica of the finetune operator in {NAMESPACE} leads",
        description="The replicas are up, but none holds the Lease. Running studies go on, but nothing looks after them.",
    ),
    "another replica takes over": Case(
        "FinetuneOperatorNoLeader",
        {
            f'finetune_leader{{{OF}, pod="a"}}': "1x4 0x10",
            f'finetune_leader{{{OF}, pod="b"}}': "0x5 1x10",
        },
        quiet_at=("5m", "7m", "14m"),
    ),
    "a replica has no watch of studies": Case(
        "FinetuneOperatorBlind",
        {
            f'finetune_watch_silent_seconds{{{OF}, kind="FineTuneStudy", pod="a"}}': "0x4 60+60x10",
            f'finetune_watch_silent_seconds{{{OF}, kind="FineTuneStudy", pod="b"}}': "0x20",
            f'finetune_watch_silent_seconds{{{OF}, kind="Pod", pod="a"}}': "0x20",
        },
        quiet_at=("5m", "7m"),
        fires_at="8m",
        severity="critical",
        labels={"kind": "FineTuneStudy"},
        summary="The finetune operator does not hear of FineTuneStudy objects",
        description="A replica has had no open watch of them for 240 s. What changes meanwhile is not noticed.",
    ),
    "a watch was away for a minute": Case(
        "FinetuneOperatorBlind",
        {f'finetune_watch_silent_seconds{{{OF}, kind="Pod", pod="a"}}': "0x4 30 90 0x20"},
        quiet_at=("5m", "7m", "9m"),
    ),
    "a reconciliation fails each minute": Case(
        "FinetuneReconcileErrors",
        {f"finetune_reconcile_errors_total{{{OF}}}": "0+1x40"},
        quiet_at=("20m",),
        fires_at="40m",
        severity="warning",
        summary="Reconciliations of studies keep failing",
        description="15 reconciliations failed in 15 minutes; each is retried, at most a minute apart.",
    ),
    "some reconciliations failed": Case(
        "FinetuneReconcileErrors",
        {f"finetune_reconcile_errors_total{{{OF}}}": "0+1x9 9x40"},
        quiet_at=("10m", "20m", "40m"),
    ),
    "reconciliations take 3 to 10 s": Case(
        "FinetuneReconcileSlow",
        {
            f'finetune_reconcile_seconds_bucket{{{OF}, le="3"}}': "0x40",
            f'finetune_reconcile_seconds_bucket{{{OF}, le="10"}}': "0+60x40",
            f'finetune_reconcile_seconds_bucket{{{OF}, le="+Inf"}}': "0+60x40",
        },
        quiet_at=("10m",),
        fires_at="30m",
        severity="warning",
        summary="Reconciliations of studies are slow",
        description="One in a hundred takes longer than 9.9 s.",
    ),
    "one reconciliation in 200 is slow": Case(
        "FinetuneReconcileSlow",
        {
            f'finetune_reconcile_seconds_bucket{{{OF}, le="0.1"}}': "0+199x40",
            f'finetune_reconcile_seconds_bucket{{{OF}, le="10"}}': "0+200x40",
            f'finetune_reconcile_seconds_bucket{{{OF}, le="+Inf"}}': "0+200x40",
        },
        quiet_at=("10m", "40m"),
    ),
    "101 studies wait": Case(
        "FinetuneQueueLong",
        {f"finetune_queue_depth{{{OF}}}": "101x20"},
        quiet_at=("14m",),
        fires_at="16m",
        severity="warning",
        summary="Studies wait for the finetune operator",
        description="101 studies wait to be reconciled.",
    ),
    "100 studies wait": Case(
        "FinetuneQueueLong", {f"finetune_queue_depth{{{OF}}}": "100x20"}, quiet_at=("14m", "20m")
    ),
    "a tenth of the requests is not answered well": Case(
        "FinetuneApiErrors",
        {
            f'{REQUESTS}"200"}}': "0+90x40",
            f'{REQUESTS}"503"}}': "0+4x40",
            f'{REQUESTS}"429"}}': "0+3x40",
            f'{REQUESTS}"error"}}': "0+3x40",
        },
        quiet_at=("14m",),
        fires_at="20m",
        severity="warning",
        summary="Many requests of the finetune operator to the API server fail",
        description="10% of its requests ended without an answer, or with 429 or 5xx.",
    ),
    "many requests are answered with a conflict": Case(
        "FinetuneApiErrors",
        {
            f'{REQUESTS}"200"}}': "0+48x40",
            f'{REQUESTS}"409"}}': "0+48x40",
            f'{REQUESTS}"503"}}': "0+4x40",
        },
        quiet_at=("14m", "40m"),
    ),
    "requests are denied": Case(
        "FinetuneApiDenied",
        {f'{REQUESTS}"403"}}': "0+1x40"},
        quiet_at=("20m",),
        fires_at="40m",
        severity="warning",
        summary="The API server denies requests of the finetune operator",
        description="15 were denied in 15 minutes: a quota, a policy or a missing right.",
    ),
    "requests find nothing": Case(
        "FinetuneApiDenied", {f'{REQUESTS}"404"}}': "0+9x40"}, quiet_at=("20m", "40m")
    ),
    "the watch of pods is lost each minute": Case(
        "FinetuneWatchRestarts",
        {
            f'finetune_watch_restarts_total{{{OF}, kind="Pod"}}': "0+1x40",
            f'finetune_watch_restarts_total{{{OF}, kind="Job"}}': "0+1x4 4x40",
        },
        quiet_at=("5m",),
        fires_at="40m",
        severity="warning",
        labels={"kind": "Pod"},
        summary="The finetune operator keeps losing its watch of Pod",
        description="All of them were listed again 30 times in 30 minutes.",
    ),
    "a study is stalled": Case(
        "FinetuneStudyStalled",
        {
            f"finetune_study_stalled{{{TICKETS}}}": "1x20",
            'finetune_study_stalled{namespace="nlp", name="other"}': "0x20",
        },
        quiet_at=("9m",),
        fires_at="11m",
        severity="warning",
        labels={"namespace": "nlp", "name": "tickets"},
        summary="Study nlp/tickets is stalled",
        description="Nothing happens until somebody acts. The message of its condition Stalled says what is needed.",
    ),
    "a study was stalled for a while": Case(
        "FinetuneStudyStalled",
        {f"finetune_study_stalled{{{TICKETS}}}": "1x8 0x20"},
        quiet_at=("8m", "11m", "20m"),
    ),
    "a study is pending, then starting": Case(
        "FinetuneStudyPending",
        {
            f'finetune_study_state{{{TICKETS}, state="Pending"}}': "1x15 stale",
            f'finetune_study_state{{{TICKETS}, state="Starting"}}': "_x15 1x30",
        },
        quiet_at=("29m",),
        fires_at="31m",
        severity="warning",
        labels={"namespace": "nlp", "name": "tickets"},
        summary="Study nlp/tickets has not started to run for half an hour",
        description="Its pods do not start, or preparing its data takes that long. The message in its status says why.",
    ),
    "a study came to run": Case(
        "FinetuneStudyPending",
        {
            f'finetune_study_state{{{TICKETS}, state="Starting"}}': "1x20 stale",
            f'finetune_study_state{{{TICKETS}, state="Running"}}': "_x20 1x30",
        },
        quiet_at=("20m", "31m", "50m"),
    ),
    "a study is queued for a day": Case(
        "FinetuneStudyQueued",
        {f'finetune_study_state{{{TICKETS}, state="Queued"}}': "1x1500"},
        quiet_at=("23h",),
        fires_at="24h1m",
        severity="info",
        labels={"namespace": "nlp", "name": "tickets"},
        summary="Study nlp/tickets has waited in its queue for a day",
        description="The queue of cluster.queueName has no room for it, or gives the room to others.",
    ),
    "two studies have failed": Case(
        "FinetuneStudiesFailed",
        {
            f'finetune_studies_finished_total{{{OF}, state="Failed"}}': "0x10 2x120",
            f'finetune_studies_finished_total{{{OF}, state="Complete"}}': "0+1x130",
        },
        quiet_at=("10m", "80m"),
        fires_at="30m",
        severity="info",
        summary="Studies have failed",
        description="2 in the last hour. kubectl get finetunestudies --all-namespaces shows which.",
    ),
}


HELD = "finetune_gpus_allocated"
CASES |= {
    "two classes of a namespace hold too many GPUs": Case(
        "FinetuneGpusAllocated",
        {
            f'{HELD}{{namespace="nlp", class="", pod="a"}}': "4x90",
            f'{HELD}{{namespace="nlp", class="large", pod="a"}}': "5x90",
            # Another replica that showed them for a moment too: they are no more than they are.
            f'{HELD}{{namespace="search", class="", pod="a"}}': "8x90",
            f'{HELD}{{namespace="search", class="", pod="b"}}': "8x90",
        },
        quiet_at=("59m",),
        fires_at="61m",
        severity="info",
        labels={"namespace": "nlp"},
        summary="Studies of nlp hold 9 GPUs",
        description="More than metrics.rules.gpusPerNamespace, for an hour.",
    ),
}


@pytest.fixture(scope="module")
def promtool() -> str:
    return program("promtool")


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = {"metrics.rules.gpusPerNamespace": 8}
    return write_rules(tmp_path_factory.mktemp("rules") / "rules.json", values)


def _looks(case: Case) -> list[dict[str, object]]:
    """What promtool is asked of a case."""
    looks: list[dict[str, object]] = [
        {"eval_time": time, "alertname": case.alert, "exp_alerts": []} for time in case.quiet_at
    ]
    if case.fires_at:
        expected = {
            "exp_labels": {**case.labels, "severity": case.severity},
            "exp_annotations": {"summary": case.summary, "description": case.description},
        }
        looks.append(
            {"eval_time": case.fires_at, "alertname": case.alert, "exp_alerts": [expected]}
        )
    return looks


def _verdict(promtool: str, rules: Path, case: Case) -> subprocess.CompletedProcess[str]:
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": of} for name, of in case.series.items()],
        "alert_rule_test": _looks(case),
    }
    wanted = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}
    path = rules.with_name("test.json")
    path.write_text(json.dumps(wanted))
    command = [promtool, "test", "rules", str(path)]
    return subprocess.run(command, check=False, text=True, capture_output=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_alert_fires_when_it_should(promtool: str, rules: Path, case: Case) -> None:
    found = _verdict(promtool, rules, case)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_wrong_expectation_is_noticed(promtool: str, rules: Path) -> None:
    series = {f"finetune_queue_depth{{{OF}}}": "101x20"}
    assert _verdict(promtool, rules, Case("FinetuneQueueLong", series, ("16m",))).returncode
    wrong = Case("FinetuneQueueLong", series, (), "16m", "warning", summary="Something else")
    assert "Studies wait for the finetune operator" in _verdict(promtool, rules, wrong).stderr


def test_every_alert_is_tried() -> None:
    tried = {case.alert for case in CASES.values() if case.fires_at}
    assert tried == {alert["alert"] for alert in alerts()}


def test_nobody_holds_too_many_gpus_where_no_number_is_said(promtool: str, tmp_path: Path) -> None:
    series = {f'{HELD}{{namespace="nlp", class=""}}': "1000000x90"}
    quiet = Case("FinetuneGpusAllocated", series, quiet_at=("61m", "90m"))
    assert _verdict(promtool, write_rules(tmp_path / "rules.json"), quiet).returncode == 0


def test_the_query_of_the_operations_page_gives_gpu_hours(promtool: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    (query,) = re.findall(r"^```promql\n(.*?)^```$", page, flags=re.M | re.S)
    nlp = f'{HELD}{{namespace="nlp", class="large", pod='
    test = {
        "interval": "1m",
        "input_series": [
            # 4 GPUs for two hours, 2 for one, the last half hour of them by another replica.
            {"series": f'{nlp}"a"}}', "values": "4x119 2x29 stale"},
            {"series": f'{nlp}"b"}}', "values": "_x150 2x29 stale"},
            {"series": f'{HELD}{{namespace="search", class=""}}', "values": "1x59 stale"},
        ],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "10h",
                "exp_samples": [
                    {"labels": '{namespace="nlp", class="large"}', "value": 10},
                    {"labels": '{namespace="search"}', "value": 1},
                ],
            }
        ],
    }
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"rule_files": [], "evaluation_interval": "1m", "tests": [test]}))
    command = [promtool, "test", "rules", str(path)]
    found = subprocess.run(command, check=False, text=True, capture_output=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_studies_of_other_namespaces_are_left_to_their_own_operator(
    promtool: str, tmp_path: Path
) -> None:
    rules = write_rules(tmp_path / "rules.json", {"watch.namespaces": ["search", "vision"]})
    stalled = CASES["a study is stalled"]
    quiet = Case(stalled.alert, stalled.series, (*stalled.quiet_at, stalled.fires_at))
    found = _verdict(promtool, rules, quiet)
    assert found.returncode == 0, found.stdout + found.stderr
