"""A driver killed anywhere goes on where it was: the same trials, the same promotions, the same end."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from finetune_api.study import StudySpec
from finetune_trainer.records.log import read_history
from finetune_trainer.storage.folder import Storage
from finetune_trainer.worker.item import Item
from tests.trainer.crashes import Crash, Failing, crash_after, crash_before, crash_torn
from tests.trainer.search_studies import (
    ASHA,
    CONTINUOUS,
    Clock,
    Driver,
    distinct,
    replay,
    study_spec,
    summary,
)

pytestmark = pytest.mark.in_memory

STUDIES: dict[str, StudySpec] = {
    "random": study_spec(hyperparameters={"epochs": 2}, budget={"maxTrials": 6}),
    "asha": study_spec(search=ASHA),
    "grid": study_spec(
        hyperparameters={"epochs": 2},
        searchSpaces=[{"learningRate": {"values": [1e-4, 1e-3]}, "batchSize": {"values": [8, 16]}}],
        search={"algorithm": "Grid"},
        budget={},
    ),
    "target": study_spec(
        search=ASHA, searchSpaces=[CONTINUOUS], objective={"metric": "accuracy", "target": 0.6}
    ),
}


CONDITIONAL = {
    **CONTINUOUS,
    "batchSize": {"min": 4, "max": 64, "step": 4},
    "optimizer": {"values": ["AdamW", "SGD"]},
    "momentum": {"min": 0.1, "max": 0.9, "when": {"optimizer": ["SGD"]}},
}
MODELLED = {
    algorithm: study_spec(
        search={**ASHA, "algorithm": algorithm},
        searchSpaces=[CONDITIONAL, CONTINUOUS],
        budget={"maxTrials": 24},
    )
    for algorithm in ("QuasiRandom", "TPE", "GP", "Evolution")
} | {
    "CMAES": study_spec(
        search={**ASHA, "algorithm": "CMAES", "populationSize": 5},
        searchSpaces=[{**CONTINUOUS, "weightDecay": {"min": 0.0, "max": 0.1}}],
        budget={"maxTrials": 24},
    ),
    "PBT": study_spec(
        search={"algorithm": "PBT", "populationSize": 4, "perturbationInterval": 2}, budget={}
    ),
    "SuccessiveHalving": study_spec(
        search={**ASHA, "scheduler": {"type": "SuccessiveHalving"}}, budget={"maxTrials": 20}
    ),
}
"""Other ways to propose and to promote, with conditions, a list of spaces, and trials enough for a model."""


def _undisturbed(spec: StudySpec, root: Path) -> tuple[Driver, int]:
    """The study run in one go, and how many writes and deletes it took."""
    storage = Failing.of(root, crash_before, 0)
    driver = Driver(spec, storage, 1)
    driver.run()
    return driver, len(storage.count)


@pytest.mark.parametrize("fail", [crash_before, crash_torn, crash_after])
@pytest.mark.parametrize("name", STUDIES)
def test_killed_at_every_write_it_does_the_same(name: str, fail: Any, tmp_path: Path) -> None:
    spec = STUDIES[name]
    reference, writes = _undisturbed(spec, tmp_path / "reference")
    for at in range(1, writes + 1, 1 if fail is crash_torn else 3):
        root = tmp_path / str(at)
        items: list[Item] = []
        epochs: list[tuple[int, int, float]] = []
        clock = Clock()
        try:
            first = Driver(spec, Failing.of(root, fail, at), 1, clock, items, epochs)
            first.run()
        except Crash:
            pass
        second = Driver(spec, Storage.open(str(root)), 2, clock, items, epochs)
        outcome = second.run()
        assert outcome.reason == reference.state.ended.reason  # type: ignore[union-attr]  # it has ended
        assert summary(second.state) == summary(reference.state)
        assert distinct(items) == distinct(reference.items)
        # Repeated at most: the item that was in flight, from its last checkpoint.
        repeated = len(epochs) - len(reference.epochs)
        assert 0 <= repeated <= max(spec.max_epochs - 3, 2)


@pytest.mark.parametrize("fail", [crash_before, crash_torn, crash_after])
def test_killed_at_every_write_after_it_went_on_it_does_the_same(fail: Any, tmp_path: Path) -> None:
    strict, loose = (study_spec(search=ASHA, budget={"maxTrials": n}) for n in (5, 9))

    def ended(root: Path) -> Path:
        Driver(strict, Storage.open(str(root)), 1).run()
        return root

    whole = Failing.of(ended(tmp_path / "reference"), crash_before, 0)
    reference = Driver(loose, whole, 2)
    reference.run()
    assert reference.state.reopened == 1
    for at in range(1, len(whole.count) + 1, 1 if fail is crash_torn else 3):
        root = ended(tmp_path / str(at))
        items: list[Item] = []
        with suppress(Crash):
            Driver(loose, Failing.of(root, fail, at), 2, items=items).run()
        last = Driver(loose, Storage.open(str(root)), 3, items=items)
        last.run()
        assert last.state.reopened == 1
        assert summary(last.state) == summary(reference.state)
        assert distinct(items) == distinct(reference.items)


@pytest.mark.parametrize("name", ["asha", *MODELLED])
def test_killed_again_and_again_it_still_ends_the_same(name: str, tmp_path: Path) -> None:
    spec = {**STUDIES, **MODELLED}[name]
    reference, _ = _undisturbed(spec, tmp_path / "reference")
    items: list[Item] = []
    clock = Clock()
    for term in range(1, 200):
        storage = Failing.of(tmp_path / "killed", crash_torn, 24)
        try:
            last = Driver(spec, storage, term, clock, items)
            last.run()
            break
        except Crash:
            continue
    assert term > 4
    assert summary(last.state) == summary(reference.state)
    assert distinct(items) == distinct(reference.items)


def test_the_state_is_the_same_live_and_from_the_records(tmp_path: Path) -> None:
    spec = STUDIES["asha"]
    driver, _ = _undisturbed(spec, tmp_path)
    state = replay(spec, read_history(Storage.open(str(tmp_path))).events)
    assert summary(state) == summary(driver.state)
    assert state.elapsed(0) == driver.state.elapsed(0)
    assert state.gpu_seconds == driver.state.gpu_seconds
    assert state.refit == driver.state.refit


def test_a_finished_study_started_again_has_nothing_to_do(tmp_path: Path) -> None:
    spec = STUDIES["asha"]
    reference, _ = _undisturbed(spec, tmp_path)
    again = Driver(spec, Storage.open(str(tmp_path)), 2)
    assert again.run().reason == "SearchFinished"
    assert again.items == []
    assert summary(again.state) == summary(reference.state)
