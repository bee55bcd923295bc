"""A study of each kind on a real node: its head is lost, it is suspended, its budget is raised, and it ends right."""

from collections import Counter
from typing import Any

import pytest

from finetune_trainer.records import events as ev
from tests.e2e.platform import TEAM, Platform, condition
from tests.e2e.test_study import (
    Manifest,
    folder,
    patch,
    pod_of,
    study,
    term_of,
    wait_complete,
)
from tests.records import check_records, events_of

pytestmark = pytest.mark.extended

TRIALS = 5
NUMBERS = {
    "learningRate": {"min": 1e-4, "max": 6e-4, "scale": "Log"},
    "weightDecay": {"min": 0.0, "max": 0.1},
}
CONDITIONAL = {
    "learningRate": {"min": 1e-4, "max": 6e-4, "scale": "Log"},
    "optimizer": {"values": ["AdamW", "RMSprop"]},
    "momentum": {"values": [0.0, 0.5], "when": {"optimizer": ["RMSprop"]}},
}
GRID = {
    "learningRate": {"values": [1e-4, 3e-4, 6e-4]},
    "lrSchedule": {"values": ["Linear", "Cosine"]},
}


def kind(algorithm: str, scheduler: str = "None", space: Any = None, **more: Any) -> Manifest:
    """The fields of a study of that searcher and scheduler; `more` goes where its name belongs."""
    rungs: Manifest = {name: more.pop(name) for name in ("resource", "minResource") if name in more}
    search: Manifest = {"algorithm": algorithm, "seed": 7}
    search["scheduler"] = {"type": scheduler, **rungs}
    search |= {name: more.pop(name) for name in ("constraints", "populationSize") if name in more}
    return {"search": search, "searchSpaces": [space or CONDITIONAL], **more}


KINDS: dict[str, Manifest] = {
    "grid": kind("Grid", "SuccessiveHalving", GRID, resource="Samples", minResource=96),
    "quasi": kind(
        "QuasiRandom",
        "ASHA",
        resource="Folds",
        validation={"crossValidation": {"folds": 3}},
        hyperparameters={"epochs": 1, "maxLength": 16, "batchSize": 16},
    ),
    "tpe": kind("TPE", "Hyperband", constraints=["momentum < 0.5 || learningRate < 0.0005"]),
    "gp": kind("GP", "PASHA"),
    "evolution": kind(
        "Evolution",
        populationSize=2,
        objective={"metric": "accuracy", "secondary": [{"metric": "loss"}]},
    ),
    "cmaes": kind("CMAES", "MedianStop", NUMBERS, populationSize=3),
    "pbt": kind("PBT", "None", NUMBERS, populationSize=2),
    "seconds": kind("Random", "ASHA", resource="Seconds", minResource=2, validation={"repeats": 2}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_study_of_each_kind_ends_right_whatever_happens_to_it(
    platform: Platform, name: str
) -> None:
    changes = {"budget": {"maxTrials": TRIALS}, "refit": False, "cluster": {"workers": 1}}
    platform.apply(study(name, **{**changes, **KINDS[name]}))

    def reached() -> int:
        root = folder(platform, name)
        events = events_of(root) if (root / "records").is_dir() else []
        return sum(isinstance(event, ev.Reached) for event in events)

    platform.wait("a trial at its rung", reached, 240)
    plan = platform.study(name)["status"]["plan"]
    assert plan["trials"] == TRIALS
    platform.kubectl("delete", "pod", "-n", TEAM, pod_of(platform, name, 0), "--wait=false")
    before = reached()
    platform.wait("the next driver", lambda: term_of(platform, name) == 2, 180)
    platform.wait("more of it", lambda: reached() > before, 240)
    patch(platform, name, {"suspend": True})
    platform.wait("Suspended", lambda: condition(platform.study(name), "Suspended") == "True", 90)
    at_rest = reached()
    patch(platform, name, {"suspend": False, "budget": {"maxTrials": TRIALS + 1}})
    status = wait_complete(platform, name)["status"]

    assert status["attempts"] == 2
    assert status["plan"]["trials"] == TRIALS + 1
    proposed = sum(isinstance(e, ev.Proposed) for e in events_of(folder(platform, name)))
    # A member of PBT that takes over from one ahead of it skips the steps between.
    assert proposed == TRIALS + 1 or (name == "pbt" and proposed >= TRIALS - 1)
    assert status["trials"]["summary"] == f"{proposed}/{proposed}"
    assert status["trials"].get("failed", 0) == 0
    assert status["spending"]["epochs"] > 0
    assert reached() > at_rest
    check_records(folder(platform, name), proposed)
    _special(name, status, events_of(folder(platform, name)))


def _special(name: str, status: Manifest, events: list[ev.Event]) -> None:
    """What only this kind of study has."""
    best = status["best"]
    if name in ("quasi", "seconds"):
        assert len(best["splits"]) == {"quasi": 3, "seconds": 2}[name]
        assert best["deviation"] >= 0
    if name == "evolution":
        assert status["paretoFront"]
        assert {"accuracy", "loss"} <= set(status["paretoFront"][0]["metrics"])
    if name == "pbt":
        parents = [event.parent for event in events if isinstance(event, ev.Proposed)]
        assert any(parent is not None for parent in parents)
    if name == "grid":
        runs = Counter(event.run for event in events if isinstance(event, ev.Reached))
        assert runs[0] == TRIALS + 1 > runs[1] > 0
