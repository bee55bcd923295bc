"""Every searcher with every scheduler and every feature: one test a cell of the table in docs/search.md."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.combinations import Params, key_of
from finetune_api.study import StudySpec
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.search.trials import Trial
from finetune_trainer.search.warm_start import inherit
from finetune_trainer.storage.folder import Storage
from finetune_trainer.worker.item import Item
from tests.trainer.crashes import Crash, Failing, crash_after, crash_before, crash_torn
from tests.trainer.search_studies import Clock, Driver, distinct, study_spec, summary

pytestmark = pytest.mark.in_memory

SEARCHERS = ("Grid", "Random", "QuasiRandom", "TPE", "GP", "Evolution", "CMAES", "PBT")
SCHEDULERS = ("None", "ASHA", "SuccessiveHalving", "Hyperband", "MedianStop", "PASHA")
FEATURES = ("conditions", "constraints", "points", "warm start", "resume")
TRIALS = 14
ROOT = Path(__file__).resolve().parents[2]

GRID: dict[str, Any] = {
    "learningRate": {"values": [1e-4, 3e-4, 1e-3, 3e-3]},
    "batchSize": {"values": [8, 16, 32]},
    "gradientAccumulation": {"values": [1, 2]},
}
SPACE: dict[str, Any] = {**GRID, "learningRate": {"min": 1e-5, "max": 1e-1, "scale": "Log"}}
CONDITIONS = {
    "optimizer": {"values": ["AdamW", "SGD"]},
    "momentum": {"values": [0.5, 0.9], "when": {"optimizer": ["SGD"]}},
}
CONSTRAINT = "batchSize * gradientAccumulation <= 32 && double(batchSize) * learningRate < 0.3"
POINTS: list[Params] = [
    {"learningRate": 1e-3, "batchSize": 32, "gradientAccumulation": 1},
    {"batchSize": 8, "gradientAccumulation": 2},
]


def changes(searcher: str, scheduler: str, **more: Any) -> dict[str, Any]:
    """A study of that searcher and scheduler."""
    space = GRID if searcher == "Grid" else SPACE
    search: dict[str, Any] = {
        "algorithm": searcher,
        "seed": 3,
        "populationSize": 4,
        "perturbationInterval": 3,
        "scheduler": {"type": scheduler},
    }
    return {
        "searchSpaces": [{**space, **more.pop("space", {})}],
        "search": {**search, **more},
        "budget": {"maxTrials": TRIALS},
    }


def run(folder: Path, spec: StudySpec) -> list[Trial]:
    """The trials of the study, run to its end by one slot."""
    storage = Storage.open(str(folder))
    claim(storage, parts_of(spec))
    driver = Driver(spec, storage, 1)
    assert driver.run().reason == "SearchFinished"
    planned = driver.state.planned(spec.budget)
    assert planned is not None
    # A member of PBT that takes over from one ahead of it skips the steps between.
    least = planned // 2 if spec.search.algorithm == "PBT" else planned
    assert least <= len(driver.state.trials) <= planned
    return driver.state.trials


def conditions(folder: Path, searcher: str, scheduler: str) -> None:
    """Momentum is there exactly where SGD is, and both optimizers are tried."""
    spec = study_spec(**changes(searcher, scheduler, space=CONDITIONS))
    trials = run(folder, spec)
    assert all(("momentum" in t.params) == (t.params["optimizer"] == "SGD") for t in trials)
    assert {t.params["optimizer"] for t in trials} == {"AdamW", "SGD"}


def constraints(folder: Path, searcher: str, scheduler: str) -> None:
    """Every trial fulfils the constraint, which half of the space does not."""
    spec = study_spec(**changes(searcher, scheduler, constraints=[CONSTRAINT]))
    trials = run(folder, spec)
    for trial in trials:
        size, rate = trial.params["batchSize"], trial.params["learningRate"]
        assert float(size) * float(trial.params["gradientAccumulation"]) <= 32
        assert float(size) * float(rate) < 0.3


def points(folder: Path, searcher: str, scheduler: str) -> None:
    """The named points are the first trials, completed where they leave something open."""
    first, second, *_ = run(folder, study_spec(**changes(searcher, scheduler, points=POINTS)))
    assert first.params == POINTS[0]
    assert set(second.params) == set(SPACE)
    assert POINTS[1].items() <= second.params.items()


def warm_start(folder: Path, searcher: str, scheduler: str) -> None:
    """The best of another study is tried again first, and the searcher learns from the others."""
    run(folder / "first", study_spec(**changes("Grid", "None")))
    changed = changes(searcher, scheduler, warmStart=[{"uri": "first"}])
    spec = study_spec(**changed)
    inherited = inherit(spec, folder)
    trials = run(folder / "second", spec)
    assert len(inherited) == TRIALS
    assert [t.params for t in trials[:3]] == [params for params, _ in inherited[:3]]
    # The other study had its best of these rates, so that a searcher that learns is there at once.
    if searcher in ("TPE", "GP", "Evolution", "CMAES"):
        cold = run(folder / "cold", study_spec(**changes(searcher, scheduler)))
        assert [key_of(t.params) for t in cold[:5]] != [key_of(t.params) for t in trials[3:8]]


def resume(folder: Path, searcher: str, scheduler: str) -> None:
    """Killed three times, before, in and after a write, it does the same as undisturbed."""
    spec = study_spec(**changes(searcher, scheduler))
    counted = Failing.of(folder / "undisturbed", crash_before, 0)
    reference = Driver(spec, counted, 1)
    reference.run()
    items: list[Item] = []
    clock = Clock()
    digest = hashlib.sha256(f"{searcher}/{scheduler}".encode()).digest()
    share = max(4, len(counted.count) // 4)
    for term, (fail, byte) in enumerate(
        zip((crash_before, crash_torn, crash_after), digest, strict=False), start=1
    ):
        storage = Failing.of(folder / "killed", fail, 2 + byte % share)
        with pytest.raises(Crash):
            Driver(spec, storage, term, clock, items).run()
    last = Driver(spec, Storage.open(str(folder / "killed")), 4, clock, items)
    last.run()
    assert summary(last.state) == summary(reference.state)
    assert distinct(items) == distinct(reference.items)


CHECKS: dict[str, Callable[[Path, str, str], None]] = {
    "conditions": conditions,
    "constraints": constraints,
    "points": points,
    "warm start": warm_start,
    "resume": resume,
}


def refusal(searcher: str, scheduler: str, feature: str) -> str | None:
    """What the schema says of the combination; None if it can be had."""
    if searcher == "PBT" and scheduler != "None":
        return "algorithm PBT must have scheduler None"
    if searcher == "CMAES" and feature == "conditions":
        return "algorithm CMAES must have one space, of numbers only"
    return None


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    "searcher",
    [  # GP takes half of the time of all, and `test_search_proposals` has it too
        pytest.param(name, marks=pytest.mark.slow) if name == "GP" else name for name in SEARCHERS
    ],
)
def test_cell(searcher: str, scheduler: str, feature: str, tmp_path: Path) -> None:
    refused = refusal(searcher, scheduler, feature)
    if refused is None:
        CHECKS[feature](tmp_path, searcher, scheduler)
        return
    space = CONDITIONS if feature == "conditions" else {}
    with pytest.raises(ValidationError, match=refused):
        study_spec(**changes(searcher, scheduler, space=space))


def as_markdown() -> str:
    """The table of docs/search.md."""
    lines = ["| | " + " | ".join(SCHEDULERS) + " |", "|---" * (len(SCHEDULERS) + 1) + "|"]
    for searcher in SEARCHERS:
        cells = [_cell(searcher, scheduler) for scheduler in SCHEDULERS]
        lines.append(f"| {searcher} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(searcher: str, scheduler: str) -> str:
    had = [feature for feature in FEATURES if refusal(searcher, scheduler, feature) is None]
    if len(had) == len(FEATURES):
        return "all"
    return "all but " + ", ".join(f for f in FEATURES if f not in had) if had else "—"


def test_the_documented_table_is_this_one() -> None:
    assert as_markdown() in (ROOT / "docs" / "search.md").read_text()
