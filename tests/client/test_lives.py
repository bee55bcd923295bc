"""The client with the real operator: whole lives of studies. kubelet and driver are played."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune_client import Studies as ClientStudies
from finetune_client import StudyFailed
from tests.api.wrong_manifests import VALID
from tests.client.found import FOUND, PARAMS
from tests.cluster import lives
from tests.cluster.conftest import namespace_of
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.cluster.shared import ROOT

NOTEBOOK = ROOT / "examples" / "cluster.ipynb"


@pytest.fixture(scope="module")
def operator(
    server: ApiServer, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """One for the namespaces of all tests here."""
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    watched = [namespace_of(item) for item in request.session.items if item.path == request.path]
    process = OperatorProcess(server, log, FINETUNE_NAMESPACES=",".join(watched))
    process.start()
    yield process
    process.stop()


def work(studies: Studies, name: str) -> None:
    """What kubelet and driver do in the life of a study that ends well."""
    until("the study", lambda: studies.get("fts", name))
    lives.run(studies, name)
    lives.complete(studies, name, message="all 4 trials ended", findings=FOUND)


@contextmanager
def at_work(studies: Studies, name: str) -> Iterator[None]:
    """Do that meanwhile."""
    thread = threading.Thread(target=work, args=(studies, name))
    thread.start()
    yield
    thread.join()


def test_the_notebook_runs_from_a_study_to_its_trials(
    operator: OperatorProcess,
    studies: Studies,
    kubeconfig: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names: dict[str, Any] = {"__name__": "notebook"}
    with at_work(studies, "library"):
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    study = names["study"]
    assert study.best.params == PARAMS
    assert list(study.trials().index) == [1, 0]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Complete: 4/4 trials, best accuracy 0.9123 ± 0.0040 (trial 1)"
    assert any(line.startswith("Running: 4/4 trials") for line in lines)
    names["studies"].close()


def test_failed_study_goes_on_by_a_retry_and_a_complete_one_by_a_larger_budget(
    operator: OperatorProcess, studies: Studies, client: ClientStudies
) -> None:
    study = client.create(VALID["spec"], name="tickets")
    lives.run(studies, "tickets")
    lives.fail(studies, "tickets")
    with pytest.raises(StudyFailed, match="no such column"):
        study.wait(progress=False)
    study.retry()
    assert not study.last.is_over
    lives_on(studies, 2)
    lives.complete(studies, "tickets", 2, findings=FOUND)
    assert study.wait(progress=False).last.state == "Complete"
    study.edit_budget(max_trials=8)
    assert not study.last.is_over
    lives_on(studies, 3)
    lives.complete(studies, "tickets", 3, findings=FOUND)
    assert study.wait(progress=False).status.attempts == 3


def lives_on(studies: Studies, attempt: int) -> None:
    """Let the pods of the last attempt go, and the next one search."""

    def begun() -> bool:
        studies.remove_pods()
        return bool(studies.get("job", f"tickets-{attempt}"))

    until(f"attempt {attempt}", begun)
    lives.run(studies, "tickets", attempt)


def test_suspended_study_says_so_and_resumes(
    operator: OperatorProcess, studies: Studies, client: ClientStudies
) -> None:
    study = client.create(VALID["spec"], name="tickets")
    lives.run(studies, "tickets")
    assert study.why() == []
    study.suspend()
    until("Suspended", lambda: study.state == "Suspended", meanwhile=studies.remove_pods)
    assert study.why()[0].startswith("SuspendRequested: ")
    study.resume()
    until("the next attempt", lambda: study.status.attempts == 2)
    assert "AttemptStarted" in {event.reason for event in study.events()}
