"""What Flux and `helm --wait` make of a study in each of its states, computed by kstatus as they compute it."""

import json
import subprocess
from typing import Any, get_args

from finetune_api.status import State, StudyStatus
from finetune_operator.decide import decide, forbidden, unreadable
from finetune_operator.observe import Observed
from finetune_operator.settings import Settings
from tests.api.wrong_manifests import VALID, changed
from tests.cluster.onenode.build import program
from tests.cluster.operator_process import Studies
from tests.needs import ToolMissing, not_run
from tests.operator.studies import NOW, SETTINGS, job, later, observed, pod, progress, study


def kstatus(*objects: dict[str, Any]) -> list[str]:
    """What kstatus says of each."""
    try:
        command = program("kstatus")
    except ToolMissing as missing:
        not_run(missing)
    lines = "".join(f"{json.dumps(one)}\n" for one in objects)
    done = subprocess.run([command], input=lines, text=True, capture_output=True, check=True)
    return done.stdout.split()


def body(status: StudyStatus, generation: int = 1) -> dict[str, Any]:
    """The study as the API server would serve it."""
    return changed(VALID, {"metadata.generation": generation, "status": status.to_json()})


def judged(seen: Observed, settings: Settings = SETTINGS, **changes: Any) -> StudyStatus:
    return decide(study(**changes), seen, settings, NOW).status


FRESH = judged(Observed())
RUNNING = judged(observed(job(), pod(), document=progress()))
DONE = judged(observed(job(succeeded=True), document=progress("Finished", reason="SearchFinished")))
GONE = observed(job(failed="exit 42"), document=progress("Failed", reason="DataError"))

STATES: dict[str, tuple[StudyStatus, str]] = {
    "Pending": (judged(observed(pod(study_uid="namesake"))), "InProgress"),
    "Queued": (judged(observed(job(held=True))), "InProgress"),
    "Starting": (FRESH, "InProgress"),
    "Running": (RUNNING, "Current"),
    "Refitting": (judged(observed(job(), pod(), document=progress("Refitting"))), "Current"),
    "Suspending": (judged(observed(job(), pod()), suspend=True), "InProgress"),
    "Suspended": (judged(Observed(), suspend=True), "Current"),
    "Complete": (DONE, "Current"),
    "Failed": (judged(GONE), "Failed"),
}

CASES: dict[str, tuple[StudyStatus, str]] = {
    "without storage": (judged(Observed(), Settings()), "Failed"),
    "forbidden": (forbidden(study(), Observed(), NOW, "exceeded quota").status, "InProgress"),
    "between attempts": (judged(observed(job(failed="BackoffLimitExceeded"))), "InProgress"),
    "unreadable, new": (unreadable(StudyStatus(), 1, NOW, "spec.task"), "Failed"),
    "unreadable, starting": (unreadable(FRESH, 1, later(5), "spec.task"), "Failed"),
    "unreadable, complete": (unreadable(DONE, 1, later(5), "spec.task"), "Current"),
    "unreadable, running": (unreadable(RUNNING, 1, later(5), "spec.task"), "Failed"),
}


def test_no_state_is_forgotten() -> None:
    assert set(STATES) == set(get_args(State))
    assert {state: status.state for state, (status, _) in STATES.items()} == {
        state: state for state in STATES
    }


def test_each_state_has_its_health() -> None:
    cases = {**STATES, **CASES}
    found = kstatus(*(body(status) for status, _ in cases.values()))
    expected = {name: health for name, (_, health) in cases.items()}
    assert dict(zip(cases, found, strict=True)) == expected


def test_an_edit_that_the_operator_has_not_seen_is_in_progress() -> None:
    assert kstatus(body(RUNNING, generation=2), body(DONE, generation=2)) == ["InProgress"] * 2


def test_a_study_that_is_being_deleted_is_terminating() -> None:
    gone = changed(body(RUNNING), {"metadata.deletionTimestamp": "2026-11-23T12:00:00Z"})
    assert kstatus(gone) == ["Terminating"]


def test_a_study_that_nobody_has_seen_is_in_progress(studies: Studies) -> None:
    studies.apply("tickets")
    served = studies.get("fts", "tickets")
    assert served["status"] == {"observedGeneration": -1}
    assert kstatus(served) == ["InProgress"]
