"""Argo CD's health of a study in each of its states, computed as Argo CD computes it: by a Lua interpreter."""

from pathlib import Path
from typing import Any, get_args

import pytest
from lupa import LuaRuntime

from finetune_api.status import State, StudyStatus
from finetune_operator.decide import decide
from finetune_operator.observe import Observed
from finetune_operator.settings import Settings
from tests.operator.studies import NOW, SETTINGS, job, observed, pod, progress, study

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "argocd" / "health.lua"


def health(status: StudyStatus | None, generation: int = 1) -> tuple[str, str]:
    """Health and message of a study of that status."""
    lua = LuaRuntime(unpack_returned_tuples=True)
    body: dict[str, Any] = {"metadata": {"name": "tickets", "generation": generation}}
    if status is not None:
        body["status"] = status.to_json()
    function = lua.execute(f"return function(obj)\n{SCRIPT.read_text()}\nend")
    found = function(lua.table_from(body, recursive=True))
    return found["status"], found["message"]


def judged(seen: Observed, settings: Settings = SETTINGS, **changes: Any) -> StudyStatus:
    return decide(study(**changes), seen, settings, NOW).status


DONE = progress("Finished", reason="SearchFinished", message="all 4 trials ended")
WRONG = progress("Failed", reason="DataError", message="spec.dataset.labelColumn: must be there")
REFIT = progress("Refitting")
STATES: dict[State, tuple[StudyStatus, str]] = {
    "Pending": (judged(Observed(), Settings()), "Degraded"),  # it has no storage
    "Queued": (judged(observed(job(held=True))), "Progressing"),
    "Starting": (judged(observed(job(), pod(running=False))), "Progressing"),
    "Running": (judged(observed(job(), pod(), document=progress())), "Healthy"),
    "Refitting": (judged(observed(job(), pod(), document=REFIT)), "Healthy"),
    "Suspending": (judged(observed(job(), pod()), suspend=True), "Progressing"),
    "Suspended": (judged(Observed(), suspend=True), "Suspended"),
    "Complete": (judged(observed(job(succeeded=True), document=DONE)), "Healthy"),
    "Failed": (judged(observed(job(failed="exit 42"), document=WRONG)), "Degraded"),
}


@pytest.mark.parametrize("state", STATES)
def test_each_state_has_its_health(state: State) -> None:
    status, expected = STATES[state]
    assert status.state == state
    found, message = health(status)
    assert found == expected
    assert message.endswith(status.message)


def test_no_state_is_forgotten() -> None:
    assert set(STATES) == set(get_args(State))


def test_it_says_how_far_the_search_is() -> None:
    assert health(STATES["Running"][0])[1].startswith("1/4 trials; ")


def test_what_the_operator_has_not_seen_is_progressing() -> None:
    for status, generation in ((None, 1), (StudyStatus(), 1), (STATES["Complete"][0], 2)):
        assert health(status, generation)[0] == "Progressing"
