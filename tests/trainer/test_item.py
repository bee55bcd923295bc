"""A slot and the broker it works for, without Ray between them: what it reports, when it pauses, and when it goes."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.pods import DRAIN_FILE
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.runtime import client as client_module
from finetune_trainer.runtime import slot as slot_module
from finetune_trainer.runtime.broker import Broker
from finetune_trainer.runtime.client import BrokerClient
from finetune_trainer.runtime.slot import Work
from finetune_trainer.search.items import RefitItem, TrainItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.worker.item import Item, Listener, requeued
from tests.records import events_of
from tests.trainer.near_ray import NearActor, NearRay, NearSlot
from tests.trainer.search_studies import epoch_done, study_spec


class Left(Exception):
    """A slot holds still, and would for ever."""


class Clock:
    """A time that stands still unless it is told to go on, and in which nobody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        raise Left


class Office:
    """A broker, and slots that can work for it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        spec = study_spec(
            hyperparameters={"epochs": 2}, budget={"maxTrials": 2}, refit=options.pop("refit", True)
        )
        self.spec = spec
        claim(Storage.open(str(folder)), parts_of(spec))
        broker = Broker(Problem.of(spec), spec.budget, str(folder), 1, **options)
        self.actor = NearActor(broker)
        self.broker = BrokerClient(self.actor)
        assert self.broker.begin().get()

    def slot(self, act: Callable[[Item, Work], list[ev.Event]], name: str = "worker") -> NearSlot:
        """A slot whose worker does that."""
        slot = NearSlot(name)
        slot.setup({}, broker=self.broker, make_worker=Acting, material=act)
        return slot

    def kinds(self) -> list[str]:
        return [event.kind for event in events_of(self.folder)]


class Acting:
    """A worker that does what its material says."""

    def __init__(self, act: Callable[[Item, Work], list[ev.Event]]) -> None:
        self._act = act

    def work(self, item: Item, work: Listener) -> list[ev.Event]:
        assert isinstance(work, Work)
        return self._act(item, work)


@pytest.fixture
def drain_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "drain"
    monkeypatch.setenv(DRAIN_FILE, str(path))
    return path


@pytest.fixture
def office(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    drain_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Office]:
    near = NearRay()
    for module in (slot_module, client_module):
        monkeypatch.setattr(module, "ray", near)
    monkeypatch.setattr(slot_module, "_POLL_SECONDS", 0.0)
    made = Office(tmp_path / "study", **getattr(request, "param", {}))
    yield made
    made.actor.end()


def does_all(item: Item, work: Work) -> list[ev.Event]:
    now = time.time()
    if isinstance(item, RefitItem):
        return [ev.RefitDone(now, trial=item.trial, path="model")]
    for epoch in (1, 2):
        work.say(epoch_done(item.trial, epoch, item.trial / 10 + epoch / 100, now))
    return [ev.Reached(now, trial=item.trial, finished=True)]


def test_a_slot_works_until_everything_is_over(office: Office) -> None:
    assert office.slot(does_all).step() == {"over": True, "done": True}
    trial = ["proposed", "started", "epoch", "epoch", "reached"]
    assert office.kinds() == ["term", *trial, *trial, "ended", "refit-started", "refit"]


@pytest.mark.parametrize("office", [{"releases": True, "refit": False}], indirect=True)
def test_a_slot_that_is_let_go_does_not_end_the_others(office: Office) -> None:
    """While the last trials run, no third slot is needed."""
    for name in ("a/1", "b/1"):
        assert isinstance(office.broker.next(name, []).get(), TrainItem)
    assert office.slot(does_all).step() == {"over": False, "done": True}


def test_what_is_said_in_the_middle_of_an_item_is_recorded_in_order_and_before_its_end(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls to an actor may overtake each other."""
    order: list[int] = []
    epoch = Broker.epoch

    async def slow(broker: Broker, slot: str, report: list[ev.Event]) -> None:
        order.append(len(report))
        await asyncio.sleep(0.05 if len(order) == 1 else 0)
        await epoch(broker, slot, report)

    monkeypatch.setattr(Broker, "epoch", slow)
    assert office.slot(does_all).step()["over"]
    epochs = [e.epoch for e in events_of(office.folder) if isinstance(e, ev.EpochDone)]
    assert epochs == [1, 2, 1, 2]


def test_a_slot_whose_pod_was_told_to_end_saves_reports_and_takes_nothing_more(
    office: Office, drain_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(item: Item, work: Work) -> list[ev.Event]:
        assert not work.should_pause()
        drain_file.touch()
        assert work.should_pause()
        assert isinstance(item, TrainItem)
        saved = ev.Saved(
            time.time(), trial=item.trial, epoch=1, path=f"checkpoints/{item.trial}/saved"
        )
        return [saved, requeued(item)]

    monkeypatch.setattr(slot_module, "time", Clock())
    with pytest.raises(Left):
        office.slot(act).step()
    assert office.kinds() == ["term", "proposed", "started", "saved", "requeued"]


def test_slots_that_are_called_back_pause(office: Office) -> None:
    def act(item: Item, work: Work) -> list[ev.Event]:
        assert not work.should_pause()
        office.broker.drain().get()
        deadline = time.monotonic() + 240
        while not work.should_pause():
            assert time.monotonic() < deadline
        assert not work.must_leave
        return [requeued(item)]

    assert office.slot(act).step() == {"over": True, "done": True}
    assert office.kinds()[-1] == "requeued"


def test_a_refit_that_is_called_back_is_requeued_as_one(office: Office) -> None:
    def act(item: Item, work: Work) -> list[ev.Event]:
        if isinstance(item, RefitItem):
            office.broker.drain().get()
            return [requeued(item)]
        return does_all(item, work)

    assert office.slot(act).step()["over"]
    assert office.kinds()[-1] == "refit-requeued"


def test_whether_to_pause_is_asked_before_every_batch_and_looked_at_four_times_a_second(
    office: Office, drain_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot_module, "_POLL_SECONDS", 0.25)
    clock = Clock()
    monkeypatch.setattr(slot_module, "time", clock)
    asked = Work(office.broker, "worker/1")
    assert not asked.should_pause()
    drain_file.touch()
    clock.now += 0.2
    assert not asked.should_pause()
    clock.now += 0.06
    assert asked.should_pause()


def test_two_processes_of_one_slot_have_different_names(office: Office) -> None:
    """What the first has to say late is not believed to be the second's."""
    names = {office.slot(does_all)._slot for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("worker/") for name in names)


def test_waits_of_a_slot_are_heard(office: Office) -> None:
    def act(item: Item, work: Work) -> list[ev.Event]:
        if isinstance(item, TrainItem) and item.trial == 0:
            work.waits("the disk is full; waiting")
            assert office.broker.waiting().get() == "the disk is full; waiting"
            work.waits("")
            assert office.broker.waiting().get() == ""
        return does_all(item, work)

    assert office.slot(act).step()["over"]
