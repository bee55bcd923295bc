"""`helm test`, and the commands under "Day two" in docs/operations.md, run one after another as they stand there."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from finetune_api.manifest import dump_yaml
from tests.cluster.onenode.build import program
from tests.e2e.platform import RELEASE, ROOT, SYSTEM, TEAM, Platform, condition
from tests.e2e.test_study import running_trials, study, wait_complete

pytestmark = pytest.mark.extended

NAME = "runbook"


def blocks() -> dict[str, list[str]]:
    """Heading → the shell blocks below it."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (body,) = re.findall(r"^## Day two$(.*?)(?=^## |\Z)", page, flags=re.M | re.S)
    _, *parts = re.split(r"^### (.*)$", body, flags=re.M)
    return {
        title: re.findall(r"^```sh\n(.*?)^```$", text, flags=re.M | re.S)
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


class Shell:
    """Runs blocks as a person would, in a folder of theirs."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        assert platform.cluster is not None
        tools = folder / "bin"
        tools.mkdir()
        for name in ("kubectl", "helm"):
            (tools / name).symlink_to(program(name))
        (folder / "charts").symlink_to(ROOT / "charts")
        self.folder = folder
        self._env = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "KUBECONFIG": str(platform.kubeconfig),
            "NAMESPACE": TEAM,
            "STUDY": NAME,
            "STORAGE": str(platform.cluster.server().folder / "volumes" / TEAM),
        }

    def run(self, title: str, *numbers: int) -> str:
        """The blocks of a heading (all, or these); what they print. Fails with the first command that does."""
        found = blocks()[title]
        chosen = [found[number] for number in numbers] if numbers else found
        printed = ""
        for block in chosen:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block],
                cwd=self.folder,
                env=self._env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
            printed += done.stdout
        return printed


def test_helm_test_runs_a_study(platform: Platform) -> None:
    spec = study("any", refit=False, budget={"maxTrials": 1}, cluster={"workers": 1})["spec"]
    values = {"watch.namespaces": [TEAM], "test.enabled": True, "test.study": spec}
    options = [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]
    of_release = ("--namespace", SYSTEM)
    chart = str(ROOT / "charts" / "finetune-operator")
    platform.helm(
        "upgrade", RELEASE, chart, *of_release, "--wait", "--reset-then-reuse-values", *options
    )
    before = platform.kubectl("get", "fts", "-n", TEAM, "-o", "name")
    try:
        said = platform.helm("test", RELEASE, *of_release, "--logs", "--timeout", "10m")
        assert "Complete: all 1 trials" in said
        assert "passed" in said.splitlines()
        assert platform.kubectl("get", "fts", "-n", TEAM, "-o", "name") == before, "it stays behind"
    finally:
        platform.clear()
        platform.install()


def test_every_command_of_the_runbook(platform: Platform, tmp_path: Path) -> None:
    if platform.cluster is None:
        pytest.skip("a foreign cluster is not ours to empty")
    shell = Shell(platform, tmp_path)
    manifest = study(NAME, refit=False, budget={"maxTrials": 3}, cluster={"workers": 1})
    platform.apply(manifest)
    platform.wait("a trial at its rung", lambda: running_trials(platform, NAME), 240)

    shell.run("Back up")
    assert NAME in (tmp_path / "studies.yaml").read_text()
    assert list((tmp_path / "backup").rglob("*.jsonl"))

    told = shell.run("Debug a study that stands still", 0)
    assert "SearchStarted" in told
    shell.run("Debug a study that stands still", 1)

    manifest["spec"]["onExisting"] = "Adopt"
    (tmp_path / "study.yaml").write_text(dump_yaml(manifest))
    platform.wait("its second attempt", lambda: running_trials(platform, NAME), 240)
    shell.run("Move a study")
    done = wait_complete(platform, NAME)
    assert done["status"]["attempts"] == 1, "it is another study by now"
    assert done["status"]["trials"]["summary"] == "3/3"
    assert "/adopted/" in done["status"]["resultsUri"]

    shell.run("Upgrade")
    assert condition(platform.study(NAME), "Complete") == "True"

    shell.run("Remove everything")
    assert "finetune" not in platform.kubectl("get", "crds", "-o", "name")
    platform.wait(
        "the operator to go",
        lambda: "finetune" not in platform.kubectl("get", "all", "-n", SYSTEM, "-o", "name"),
        60,
    )
    platform.install()
    platform.team()
