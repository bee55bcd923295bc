"""The CRD changes over live studies: those of each released one go on under ours, and back again.

`released/` has the CRD of each release, as `<version>.yaml`; a release adds its own. `preview` is what was there
before the first. An upgrade applies the CRD server-side, as Helm does; a rollback applies the older one.
"""

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.manifest import dump_yaml, parse_study
from finetune_api.study import PLURAL
from tests.api.wrong_manifests import VALID, changed
from tests.cluster import lives
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.cluster.shared import CRD

RELEASED = sorted((Path(__file__).parent / "released").glob("*.yaml"))
STATES = {
    "running": "Running",
    "suspended": "Suspended",
    "finished": "Complete",
    "failed": "Failed",
}


@pytest.fixture
def operator(operator: OperatorProcess, server: ApiServer) -> Iterator[OperatorProcess]:
    """Ours, throughout: an upgrade replaces it when the CRD is there, and it must not mind before."""
    yield operator
    server.serve(CRD, f"finetune.dev/v1alpha1/{PLURAL}")


@pytest.mark.parametrize("released", RELEASED, ids=lambda path: path.stem)
def test_studies_go_on_under_a_new_crd_and_under_the_old_one_again(
    released: Path, server: ApiServer, operator: OperatorProcess, studies: Studies
) -> None:
    serve(server, released, studies)
    live_in_each_state(studies)
    before = {name: studies.get("fts", name) for name in STATES}
    process = operator.process

    serve(server, CRD, studies)
    still_there(studies, before, CRD)
    work_goes_on(studies, attempt=1, trials=5)
    studies.apply("newer", refitRows="Train")
    lives.run(studies, "newer")
    before = {name: studies.get("fts", name) for name in (*STATES, "newer")}

    serve(server, released, studies)
    still_there(studies, before, released)
    work_goes_on(studies, attempt=2, trials=6)
    ended_study_is_told_to_go_on(studies, released)
    lives.complete(studies, "newer")
    lives.complete(studies, "running", attempt=3)
    lives.resume(studies, "suspended")
    lives.run(studies, "suspended", attempt=2)
    lives.complete(studies, "suspended", attempt=2)
    assert operator.process is process
    assert process is not None
    assert process.poll() is None


def live_in_each_state(studies: Studies) -> None:
    for name in STATES:
        studies.apply(name)
    for name in STATES:
        lives.run(studies, name)
    lives.suspend(studies, "suspended")
    lives.complete(studies, "finished")
    lives.fail(studies, "failed")


def serve(server: ApiServer, crd: Path, studies: Studies) -> None:
    """Apply the CRD; returns when studies get its defaults."""
    server.serve(crd, f"finetune.dev/v1alpha1/{PLURAL}")
    until(f"{crd.stem} to be served", lambda: _filled_in(studies) == _defaults(crd))


def _fields(crd: Path) -> dict[str, Any]:
    """Schemas of the fields of a spec."""
    (version,) = yaml.safe_load(crd.read_text())["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return dict(spec["properties"])


def _defaults(crd: Path) -> set[str]:
    """Fields of the spec that the CRD fills in where a study leaves them open."""
    return {name for name, field in _fields(crd).items() if "default" in field} - set(VALID["spec"])


def _filled_in(studies: Studies) -> set[str]:
    manifest = changed(VALID, {"metadata.name": "probe", "metadata.namespace": studies.namespace})
    probe = ("create", "-f", "-", "--dry-run=server", "-o", "json")
    answer = json.loads(studies.kubectl(*probe, stdin=dump_yaml(manifest)))
    return set(answer["spec"]) - set(VALID["spec"])


def still_there(studies: Studies, before: dict[str, dict[str, Any]], crd: Path) -> None:
    """Every study is the same object, with all of it that the CRD knows, and in the same state."""
    found = {study["metadata"]["name"]: study for study in studies.all("fts")}
    assert set(found) == set(before)
    for name, old in before.items():
        new = found[name]
        parse_study(new)
        assert new["metadata"]["uid"] == old["metadata"]["uid"]
        assert _told(new) == _told(old)
        for field in set(old["spec"]) & set(_fields(crd)):
            assert new["spec"][field] == old["spec"][field], (name, field)


def _told(study: dict[str, Any]) -> dict[str, Any]:
    """The status but for what is made anew at every look, of which each CRD lets through as much as it knows."""
    anew = ("plan", "workers", "bestShown", "storage")
    told = {name: what for name, what in study["status"].items() if name not in anew}
    conditions = [each for each in told["conditions"] if each["type"] != "Running"]
    return {**told, "conditions": conditions}


def work_goes_on(studies: Studies, attempt: int, trials: int) -> None:
    """Status, budget and suspension of studies of before; what must not change still must not."""
    findings = {"trials": {"planned": 9, "completed": trials, "summary": f"{trials}/9"}}
    studies.report("running", f"running-{attempt}", "Searching", findings=findings)
    until("the status", lambda: _completed(studies, "running") == trials)

    more = {"budget": {"maxTrials": trials + 10}}
    for name, state in STATES.items():
        ended = state in ("Complete", "Failed")
        lives.edit(
            studies, name, **({"ttlSecondsAfterFinished": 10**6 + trials} if ended else more)
        )
        until(f"{name} to be seen", partial(_observed, studies, name))
    assert {name: studies.state(name) for name in STATES} == STATES
    spec = studies.get("configmap", "running-spec")["data"]["study.json"]
    assert json.loads(spec)["spec"]["budget"]["maxTrials"] == trials + 10

    with pytest.raises(subprocess.CalledProcessError) as refused:
        studies.kubectl("patch", "fts", "running", "--type=merge", "-p", '{"spec":{"refit":false}}')
    assert "must not change after creation" in refused.value.stderr
    assert "refit" in refused.value.stderr

    lives.suspend(studies, "running")
    lives.resume(studies, "running")
    lives.run(studies, "running", attempt + 1, findings=findings)
    assert _completed(studies, "running") == trials


def ended_study_is_told_to_go_on(studies: Studies, crd: Path) -> None:
    """It does, if the CRD can remember what for; else it says why not, and stays ended."""
    studies.kubectl("annotate", "fts", "finished", "finetune.dev/retry=1")
    if "lastEnd" in crd.read_text():
        lives.run(studies, "finished", attempt=2)
        lives.complete(studies, "finished", attempt=2)
        return

    def words() -> str:
        return str(studies.condition("finished", "Reconciling")["message"])

    until("its words", lambda: "CRD of this cluster is older than the operator" in words())
    assert studies.state("finished") == "Complete"


def _completed(studies: Studies, name: str) -> int:
    return int(studies.get("fts", name)["status"]["trials"]["completed"])


def _observed(studies: Studies, name: str) -> bool:
    study = studies.get("fts", name)
    return bool(study["status"]["observedGeneration"] == study["metadata"]["generation"])
