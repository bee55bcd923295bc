"""The live page of a cluster's studies, on a real API server, with the rights of whoever started it."""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from urllib.parse import urlencode

import pytest

from finetune_client import ClientError
from finetune_client import Studies as ClientStudies
from finetune_client.view import StudyView
from finetune_trainer.cli import main
from finetune_ui.cluster import ClusterStudies, refuse_strange_hosts
from finetune_ui.source import SourceError
from tests.api.wrong_manifests import VALID, changed
from tests.client.found import failed, status, write
from tests.cluster.operator_process import Studies
from tests.reports.hostile import HOSTILE
from tests.ui.serving import Served, served


@pytest.fixture
def page(client: ClientStudies) -> Iterator[Served]:
    with served(ClusterStudies(client)) as found:
        yield found


@pytest.fixture
def study(client: ClientStudies, page: Served) -> str:
    """Where the page of a study is."""
    made = client.create(
        changed(VALID, {"metadata": {"name": "tickets"}, "spec.budget.maxTrials": 4})
    )
    return f"/studies/{made.namespace}.tickets"


def test_a_study_is_followed_from_its_creation_to_its_report(
    page: Served, study: str, studies: Studies
) -> None:
    assert "the operator has not seen the study yet" in page.ask(study).text
    with page.changes(f"{study}/changes") as events, page.changes("/changes") as of_list:
        assert [next(events)[0], next(of_list)[0]] == ["hello", "hello"]
        write(studies, "tickets", status())
        assert [next(events)[0], next(of_list)[0]] == ["changed", "changed"]
    shown = page.ask(study).text
    assert "0.9123" in shown
    assert "/storage/nlp/tickets/results/report.html" in shown, "where the rest is"
    assert "3 rows without a label were dropped" in shown
    assert "0.9123" in page.ask("/").text


def test_why_it_failed_stands_first_and_it_can_be_tried_again(
    page: Served, study: str, studies: Studies, client: ClientStudies
) -> None:
    write(studies, "tickets", failed())
    shown = page.ask(study).text
    assert "DataError: spec.dataset: no such column" in shown
    asked = page.ask(f"{study}/retry", "POST", "")
    assert (asked.status, "Are you sure?" in asked.text) == (200, True)
    assert "finetune.dev/retry" not in str(client.get("tickets").last.body["metadata"])
    done = page.ask(f"{study}/retry", "POST", "sure=yes")
    assert (done.status, done.headers["location"]) == (303, study)
    assert client.get("tickets").last.body["metadata"]["annotations"]["finetune.dev/retry"]


def test_suspend_and_resume_ask_first(page: Served, study: str, client: ClientStudies) -> None:
    for action, then in (("suspend", True), ("resume", False)):
        asked = page.ask(f"{study}/{action}", "POST", "")
        assert "Are you sure?" in asked.text
        assert client.get("tickets").last.spec.get("suspend", False) is not then
        assert page.ask(f"{study}/{action}", "POST", "sure=yes").status == 303
        assert client.get("tickets").last.spec["suspend"] is then


def test_what_cannot_be_done_now_is_said(page: Served, study: str, client: ClientStudies) -> None:
    for action in ("resume", "retry", "delete", "edit_budget", "_edit"):
        refused = page.ask(f"{study}/{action}", "POST", "sure=yes")
        assert refused.status == 502
        assert "cannot be done" in refused.text
    assert client.get("tickets").last.body["metadata"]["generation"] == 1


def test_the_budget_is_edited_by_the_rules_of_the_api_server(
    page: Served, study: str, client: ClientStudies
) -> None:
    def edit(**given: str) -> tuple[int, str]:
        found = page.ask(f"{study}/budget", "POST", urlencode(given))
        return found.status, found.text

    kept = {"maxTrials": "4"}
    for wrong, why in (
        ({"maxTrials": "0"}, "maxTrials"),
        ({"maxTrials": "many"}, "must be a number"),
        ({"maxTrials": "4.5"}, "maxTrials"),
        ({"maxTrials": ""}, "budget"),
        ({**kept, "maxDurationSeconds": "-1"}, "maxDurationSeconds"),
        (kept, "Nothing is changed"),
    ):
        code, text = edit(**wrong)
        assert (code, why in text) == (502, True), (wrong, text)
    code, asked = edit(maxTrials="9", maxDurationSeconds="3600")
    assert code == 200
    assert "maxTrials from 4 to 9" in asked
    assert client.get("tickets").last.spec["budget"]["maxTrials"] == 4
    hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="(\w*)"', asked))
    assert hidden.keys() == {"maxTrials", "maxDurationSeconds", "version", "sure"}, "no others"
    assert edit(**hidden)[0] == 303
    budget = client.get("tickets").last.spec["budget"]
    assert (budget["maxTrials"], budget["maxDurationSeconds"]) == (9, 3600)
    code, text = edit(**{**hidden, "maxTrials": "10"})
    assert (code, "edited meanwhile" in text) == (502, True)
    client.get("tickets").edit_budget(max_duration_seconds=1234567)
    assert 'name="maxDurationSeconds" value="1234567"' in page.ask(study).text


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_the_ten_best_of_many_trials_are_shown_as_what_they_are(
    page: Served, client: ClientStudies, studies: Studies, metric: str
) -> None:
    made = client.create(
        changed(VALID, {"metadata": {"name": metric}, "spec.objective": {"metric": metric}})
    )
    top = [
        {
            "trial": number,
            "value": 0.9 - number / 100,
            "epoch": 3,
            "params": {"learningRate": 1e-5 * (number + 1), "optimizer": "AdamW"},
        }
        for number in range(10)
    ]
    said = status()
    said["topTrials"] = top
    said["trials"] = {"planned": 48, "completed": 18, "stopped": 30, "summary": "48/48"}
    write(studies, metric, said)
    shown = page.ask(f"/studies/{made.namespace}.{metric}")
    assert shown.status == 200
    assert f"{'minimize' if metric == 'loss' else 'maximize'} <b>{metric}</b>" in shown.text
    assert "<strong>48</strong>" in shown.text
    assert "The best 10 of 48 trials" in shown.text
    assert "trained to the end" not in shown.text
    assert 'id="plot-history"' not in shown.text, "ten of 48 are no search"


def test_a_study_of_a_newer_operator_does_not_hide_the_others(
    page: Served, study: str, client: ClientStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create(changed(VALID, {"metadata": {"name": "newer"}}))
    read = StudyView.__dict__["status"].func

    def status_of(view: StudyView) -> object:
        if view.name == "newer":
            raise ClientError("newer: status.state is not known to this version")
        return read(view)

    status_property = cached_property(status_of)
    status_property.__set_name__(StudyView, "status")
    monkeypatch.setattr(StudyView, "status", status_property)
    shown = page.ask("/")
    assert shown.status == 200
    assert "Not readable" in shown.text
    assert study in shown.text
    told = page.ask(study.replace("tickets", "newer"))
    assert (told.status, "not known to this version" in told.text) == (502, True)


STRANGE = [
    "s3://corp/x?endpoint_override=evil.example",
    "gs://corp/x?endpoint_override=evil.example&scheme=http",
    "s3://corp/x?scheme=http",
    "abfs://c@account.dfs.core.windows.net/x?dfs_storage_authority=evil.example",
]


@pytest.mark.parametrize("uri", STRANGE)
def test_credentials_go_to_no_host_that_a_study_names(uri: str) -> None:
    with pytest.raises(SourceError, match="your credentials"):
        refuse_strange_hosts(uri, [])
    allowed = ["evil.example", "http"]
    refuse_strange_hosts(uri, allowed)
    refuse_strange_hosts("s3://corp/x?region=eu-west-1", [])
    refuse_strange_hosts("s3://corp/x", [])


def test_another_namespace_is_not_shown(page: Served, study: str) -> None:
    assert page.ask("/studies/default.tickets").status == 404
    assert page.ask(f"{study}x").status == 404


def test_a_log_says_if_nothing_runs(page: Served, study: str) -> None:
    assert "nothing runs" in page.ask(f"{study}/log").text


def test_what_others_wrote_is_text(
    page: Served, study: str, studies: Studies, client: ClientStudies
) -> None:
    said = status()
    said["message"] = said["conditions"][0]["message"] = " ".join(HOSTILE)
    said["warnings"] = list(HOSTILE)[:10]
    write(studies, "tickets", said)
    shown = page.ask(study).text
    assert "<script>window.harm" not in shown
    assert "<img" not in shown
    assert "&lt;img" in shown


def test_where_no_cluster_is_that_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("{}")
    for kubeconfig in (tmp_path / "none", broken):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        assert main(["ui", "--kube", "--no-browser"]) == 2
        assert main(["ui", "--kube", "--no-browser", "--kubeconfig", str(kubeconfig)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert [line.startswith("finetune: --kube: must lead to a cluster") for line in said] == [
            True,
            True,
        ]


def test_an_api_server_that_is_away_is_told_on_the_page(kubeconfig: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    text = re.sub(r"server: https://[^\n]+", "server: https://127.0.0.1:1", kubeconfig.read_text())
    away.write_text(text)
    with ClientStudies(kubeconfig=away) as client, served(ClusterStudies(client)) as page:
        found = page.ask("/")
        assert found.status == 502
        assert "does not answer" in found.text
