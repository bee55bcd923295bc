"""Worker slots on a real Ray: what they hold, when they let it go, and what becomes of one that dies while it waits."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from finetune_api.search import Budget
from finetune_api.status import TrialCounts
from finetune_api.study import StudySpec
from finetune_trainer.environment import SlotResources
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.runtime.ray_tune import run_slots, start_broker, start_ray
from finetune_trainer.search.items import TrainItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.worker.item import Item, Listener
from tests.records import events_of
from tests.trainer.search_studies import epoch_done, study_spec

SLOTS = 2


class Quick:
    """Trains nothing, at once; what else it does, and when, its tests say."""

    def __init__(self, material: Any) -> None:
        self.material = material

    def work(self, item: Item, work: Listener) -> list[ev.Event]:
        if not isinstance(item, TrainItem):
            return [
                ev.RefitDone(time.time(), trial=item.trial, path="model", test_metrics=self.refit())
            ]
        self.train(item)
        now, last = time.time(), int(item.to_epoch)
        finished = ev.Reached(now, trial=item.trial, finished=last == 9)
        return [epoch_done(item.trial, last, item.trial / 10, now), finished]

    def train(self, item: TrainItem) -> None: ...

    def refit(self) -> dict[str, float]:
        return {}

    def trials(self, most: int) -> TrialCounts:
        """How they stand, of at most so many; the material is the broker."""
        counts: TrialCounts = (
            self.material.snapshot(Budget(max_trials=most), None).get().findings.trials
        )
        return counts


class Patient(Quick):
    """Its refit ends once another slot's place is free, or after so many seconds."""

    def refit(self) -> dict[str, float]:
        deadline = time.monotonic() + self.material
        while not free_places() and time.monotonic() < deadline:
            time.sleep(0.1)
        return {"free": free_places()}


class Editor(Quick):
    """Trains the first two of three trials side by side; during the third it waits until the other place is free, then
    asks for two trials more."""

    def train(self, item: TrainItem) -> None:
        if item.trial == 0:
            wait(lambda: self.trials(3).running == 2)
        if item.trial == 2:
            wait(free_places)
            wait(lambda: self.trials(5).completed == 4)


class Follower(Quick):
    """Trains two of three trials side by side while a third slot waits for a place, and the last one until none does."""

    def train(self, item: TrainItem) -> None:
        if item.trial == 0:
            wait(lambda: groups_without_a_place() and not free_places())
            wait(lambda: self.trials(3).running == 2)
        if item.trial == 2:
            wait(lambda: not groups_without_a_place())


class Killer(Quick):
    """While it trains the last trial of the first rung it kills the other slot, which waits, and lets it come again."""

    def __init__(self, material: Any) -> None:
        super().__init__(material)
        (self.material / str(os.getpid())).touch()

    def train(self, item: TrainItem) -> None:
        if item.trial == 5 and item.to_epoch == 1:
            time.sleep(3)  # the other one asks what to do next
            (other,) = self.others()
            os.kill(other, signal.SIGKILL)
            wait(lambda: self.others() - {other})

    def others(self) -> set[int]:
        return {int(path.name) for path in self.material.iterdir()} - {os.getpid()}


def free_places() -> float:
    return float(ray.available_resources().get("CPU", 0.0))


def groups_without_a_place() -> int:
    states = [group["state"] for group in ray.util.placement_group_table().values()]
    return states.count("PENDING")


def wait(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 600
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)


@pytest.fixture
def own_ray() -> Iterator[None]:
    start_ray(SLOTS, 0)
    yield
    ray.shutdown()


def run(
    folder: Path,
    spec: StudySpec,
    worker: type[Quick],
    material: Callable[[Any], Any],
    releases: bool = False,
    slots: int = SLOTS,
) -> list[ev.Event]:
    """Run the study with two slots; its records."""
    claim(Storage.open(str(folder)), parts_of(spec))
    problem = Problem.of(spec)
    broker = start_broker(problem, spec.budget, str(folder), 1, (), releases=releases)
    assert broker.begin().get()
    run_slots(broker, worker, material(broker), slots, SlotResources(1, 0))
    return events_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("releases", "seconds", "free"), [(True, 600.0, 1.0), (False, 5.0, 0.0)])
def test_slots_give_their_places_back_while_the_winner_is_trained_again(
    tmp_path: Path, own_ray: None, releases: bool, seconds: float, free: float
) -> None:
    spec = study_spec(hyperparameters={"epochs": 1}, budget={"maxTrials": 4})
    events = run(tmp_path, spec, Patient, lambda _: seconds, releases)
    (done,) = (event for event in events if isinstance(event, ev.RefitDone))
    assert done.test_metrics == {"free": free}


@pytest.mark.slow
def test_slots_give_their_places_back_as_the_search_drains_and_take_them_again_for_more_trials(
    tmp_path: Path, own_ray: None
) -> None:
    spec = study_spec(hyperparameters={"epochs": 1}, budget={"maxTrials": 3}, refit=False)
    events = run(tmp_path, spec, Editor, lambda broker: broker, releases=True)
    started = [event for event in events if isinstance(event, ev.Started)]
    assert [event.trial for event in started] == [0, 1, 2, 3, 4]
    assert len({event.slot for event in started}) == 3, (
        "one that went does not come back, another does"
    )


@pytest.mark.slow
def test_a_slot_that_waits_for_a_place_is_withdrawn_once_the_study_needs_it_no_more(
    tmp_path: Path, own_ray: None
) -> None:
    # On a cluster that scales, a node would be started for it.
    spec = study_spec(hyperparameters={"epochs": 1}, budget={"maxTrials": 3}, refit=False)
    events = run(tmp_path, spec, Follower, lambda broker: broker, releases=True, slots=3)
    started = [event for event in events if isinstance(event, ev.Started)]
    assert [event.trial for event in started] == [0, 1, 2]
    assert len({event.slot for event in started}) == 2


def test_a_slot_that_died_while_it_waited_is_given_nothing(tmp_path: Path, own_ray: None) -> None:
    search = {"algorithm": "Random", "scheduler": {"type": "SuccessiveHalving"}}
    pids, folder = tmp_path / "pids", tmp_path / "study"
    pids.mkdir()
    spec = study_spec(search=search, budget={"maxTrials": 6}, refit=False)
    events = run(folder, spec, Killer, lambda _: pids)
    assert len(list(pids.iterdir())) == 3
    assert not [event for event in events if isinstance(event, ev.Requeued)]
    promoted = [e for e in events if isinstance(e, ev.Reached)][6:]
    assert {event.trial for event in promoted} == {4, 5}
