"""Worker slots on a real Ray: what they hold, and when they let it go."""

import time
from pathlib import Path
from typing import Any

import pytest
import ray

from finetune_trainer.driver import run_slots, start_broker, start_ray
from finetune_trainer.environment import SlotResources
from finetune_trainer.search import events as ev
from finetune_trainer.search.identity import claim, parts_of
from finetune_trainer.search.items import TrainItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.storage import Storage
from finetune_trainer.work import Item, Listener
from tests.records import events_of
from tests.trainer.search_studies import epoch_done, study_spec

SLOTS = 2


class Patient:
    """Its refit ends once another slot's place is free, or after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def work(self, item: Item, work: Listener) -> list[ev.Event]:
        if isinstance(item, TrainItem):
            now = time.time()
            return [epoch_done(item.trial, 1, 0.5, now), ev.Reached(now, item.trial, True)]
        deadline = time.monotonic() + self._seconds
        while not (free := ray.available_resources().get("CPU", 0.0)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return [ev.RefitDone(time.time(), item.trial, "model", {"free": free})]


@pytest.mark.parametrize(("releases", "seconds", "free"), [(True, 120.0, 1.0), (False, 5.0, 0.0)])
def test_slots_give_their_places_back_while_the_winner_is_trained_again(
    tmp_path: Path, releases: bool, seconds: float, free: float
) -> None:
    spec = study_spec(hyperparameters={"epochs": 1}, budget={"maxTrials": 4})
    folder = str(tmp_path)
    claim(Storage.open(folder), parts_of(spec))
    start_ray(SLOTS, 0)
    try:
        broker: Any = start_broker(Problem.of(spec), spec.budget, folder, 1, (), releases=releases)
        assert ray.get(broker.begin.remote())
        run_slots(broker, Patient, seconds, SLOTS, SlotResources(1, 0))
    finally:
        ray.shutdown()
    (done,) = (event for event in events_of(tmp_path) if isinstance(event, ev.RefitDone))
    assert done.test_metrics == {"free": free}
