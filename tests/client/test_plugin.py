"""`kubectl finetune`, against a real API server."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.manifest import load_yaml, parse_study
from finetune_client.plugin import main
from tests.api.wrong_manifests import VALID, changed
from tests.client.conftest import with_namespace
from tests.client.found import FOUND, PARAMS, failed, status, write
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import program
from tests.cluster.operator_process import Studies

STUDIES_ALONE = [
    {
        "apiGroups": ["finetune.dev"],
        "resources": ["finetunestudies"],
        "verbs": ["get", "list", "patch"],
    }
]
"""Rights over studies and nothing else."""


@pytest.fixture
def plugin(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command as the administrator."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    return lambda *arguments: main(arguments)


@pytest.fixture
def tickets(studies: Studies) -> Studies:
    """A namespace with a study that is complete."""
    studies.create("tickets")
    write(studies, "tickets", status())
    return studies


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, with one blank between words."""
    return " ".join(capsys.readouterr().out.split())


def test_ls_has_the_columns_of_kubectl(
    tickets: Studies, plugin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plugin("ls") == 0
    header, row = (line.split() for line in capsys.readouterr().out.splitlines() if "─" not in line)
    assert header == ["NAME", "STATE", "REASON", "TRIALS", "BEST", "WORKERS", "AGE"]
    assert row[:5] == ["tickets", "Complete", "SearchFinished", "4/4", "0.9123"]
    assert plugin("ls", "-A", "-o", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [tickets.namespace, "tickets"] in [[each["namespace"], each["name"]] for each in rows]
    tickets.done("DELETE", "fts", "tickets")
    assert plugin("ls") == 0
    assert capsys.readouterr().err == f"no studies in the namespace {tickets.namespace}\n"


def test_status_says_all_there_is(
    tickets: Studies, plugin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plugin("status", "tickets") == 0
    page = said(capsys)
    for part in (
        "state: Complete (SearchFinished)",
        "message: all 4 trials ended",
        "trials: 4/4: 3 trained to the end, 1 stopped early",
        "━━━━",
        "time: 12 min",
        "GPU hours: 0.5",
        "best: f1_macro 0.9123 ± 0.0040 (trial 1, with its standard error)",
        "2.5e-05 AdamW",
        "Complete True SearchFinished all 4 trials ended",
        "3 rows without a label were dropped",
        "All trials: /storage/nlp/tickets/results",
    ):
        assert part in page
    assert plugin("status", "tickets", "-o", "yaml") == 0
    facts = load_yaml(capsys.readouterr().out)
    assert facts["best"]["standardError"] == 0.004
    assert len(facts["topTrials"]) == len(FOUND["topTrials"])


def test_a_failed_study_is_told_by_the_exit_code(
    studies: Studies, plugin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    studies.create("tickets")
    write(studies, "tickets", {**failed(), "best": None})
    assert plugin("status", "tickets") == 1
    assert plugin("why", "tickets") == 1
    assert capsys.readouterr().out.endswith("DataError: spec.dataset: no such column\n")
    assert plugin("best", "tickets") == 1
    told = "tickets failed (DataError): spec.dataset: no such column"
    assert capsys.readouterr().err == f"kubectl finetune: {told}\n"


def test_why_has_the_warnings(
    studies: Studies, plugin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    studies.create("tickets")
    new = failed()
    write(studies, "tickets", new)
    uid = studies.get("fts", "tickets")["metadata"]["uid"]
    about = {"kind": "FineTuneStudy", "name": "tickets", "uid": uid, "namespace": studies.namespace}
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "tickets.1", "namespace": studies.namespace},
        "involvedObject": {"apiVersion": "finetune.dev/v1alpha1", **about},
        "type": "Warning",
        "reason": "OutOfMemory",
        "message": "worker 0 \x1b[2J was killed",
        "lastTimestamp": "2026-11-23T12:00:00Z",
    }
    studies.done("POST", "event", body=event)
    assert plugin("why", "tickets", "-o", "json") == 1
    lines = json.loads(capsys.readouterr().out)["why"]
    assert lines[1:] == ["OutOfMemory: worker 0 \x1b[2J was killed"]
    plugin("why", "tickets")
    assert "OutOfMemory: worker 0 \\x1b[2J was killed" in capsys.readouterr().out


def test_best_can_be_pasted_into_a_manifest(
    tickets: Studies, plugin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plugin("best", "tickets", "-o", "yaml") == 0
    block = load_yaml(capsys.readouterr().out)
    assert block == {"spec": {"hyperparameters": PARAMS}}
    spaces = [{"batchSize": {"values": [16, 32]}}]
    parse_study(
        changed(
            VALID,
            {**{f"spec.{k}": v for k, v in block["spec"].items()}, "spec.searchSpaces": spaces},
        )
    )
    assert plugin("best", "tickets") == 0
    assert "learningRate: 2.5e-05" in said(capsys)


def test_changes_say_what_was_done(
    tickets: Studies, plugin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plugin("suspend", "tickets") == 0
    assert capsys.readouterr().out.startswith("tickets: spec.suspend is true; ")
    assert tickets.get("fts", "tickets")["spec"]["suspend"] is True
    assert plugin("resume", "tickets", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tickets"
    assert tickets.get("fts", "tickets")["spec"]["suspend"] is False
    assert plugin("retry", "tickets") == 0
    assert "finetune.dev/retry" in tickets.get("fts", "tickets")["metadata"]["annotations"]


def test_rights_over_studies_alone_are_enough_and_missing_ones_are_named(
    tickets: Studies, server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = tickets.namespace
    user = f"user-{namespace[-6:]}"
    path = with_namespace(server.kubeconfig_for(user), namespace, tmp_path / "user")
    access = ("--kubeconfig", str(path))
    assert main(["ls", *access]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert 'cannot list resource "finetunestudies"' in told
    roles = "rbac.authorization.k8s.io"
    meta = {"name": "studies", "namespace": namespace}
    role = {"apiVersion": f"{roles}/v1", "kind": "Role", "metadata": meta, "rules": STUDIES_ALONE}
    tickets.done("POST", "role", body=role)
    binding = {
        **role,
        "kind": "RoleBinding",
        "roleRef": {"apiGroup": roles, "kind": "Role", "name": "studies"},
        "subjects": [{"apiGroup": roles, "kind": "User", "name": user}],
    }
    del binding["rules"]
    tickets.done("POST", "rolebinding", body=binding)
    for words in (["ls"], ["status", "tickets"], ["best", "tickets"], ["suspend", "tickets"]):
        assert main([*words, *access]) == 0, words
    capsys.readouterr()
    assert main(["logs", "tickets", *access]) == 1
    assert 'cannot list resource "pods"' in capsys.readouterr().err


def test_wrong_input_ends_with_2(
    studies: Studies, plugin: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert plugin("status", "nobody") == 2
    assert 'finetunestudies.finetune.dev "nobody" not found' in capsys.readouterr().err
    assert plugin("status", "../nodes") == 2
    assert plugin("ls", "--context", "nowhere") == 2
    assert plugin("ls", "--kubeconfig", str(tmp_path / "gone")) == 2
    with pytest.raises(SystemExit) as error:
        plugin("delete", "tickets")
    assert error.value.code == 2


def test_it_is_a_plugin_of_kubectl(
    tickets: Studies, kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "kubectl-finetune"
    script.write_text(
        f"#!{sys.executable}\nfrom finetune_client.plugin import main\nraise SystemExit(main())\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    command = [str(program("kubectl")), "finetune", "best", "tickets", "--output", "yaml"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert load_yaml(done.stdout)["spec"]["hyperparameters"] == PARAMS
