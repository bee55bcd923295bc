"""What a slot gets to work with, and how it talks to the broker while it works."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import ray

from finetune_api.pods import DRAIN_FILE
from finetune_api.study import StudySpec
from finetune_trainer.environment import SlotResources
from finetune_trainer.records import events as ev
from finetune_trainer.search.items import RefitItem, TrainItem

Item: TypeAlias = TrainItem | RefitItem

_POLL_SECONDS = 0.25
_TELL_SECONDS = 1.0


def requeued(item: Item) -> ev.Event:
    """The event that `item` was interrupted, and goes on from its last checkpoint."""
    if isinstance(item, RefitItem):
        return ev.RefitRequeued(time.time())
    return ev.Requeued(time.time(), item.trial, run=item.run)


@dataclass(frozen=True)
class Material:
    """What every slot of a study gets; `data` refers to the PreparedData in Ray's object store."""

    spec: StudySpec
    storage: str
    data: Any
    resources: SlotResources
    name: str = ""
    """Of the study, for the card of its model."""


class ItemWorker(Protocol):
    """Does the work of a slot, item by item."""

    def work(self, item: Item, work: "Listener") -> list[ev.Event]:
        """Do `item`; returns the events that report how it ended."""
        ...


class Listener(Protocol):
    """Receives what a slot reports while it works on an item."""

    slot: str

    def should_pause(self) -> bool:
        """Whether to save the work and leave it; asked before every batch."""
        ...

    def say(self, *events: ev.Event) -> None:
        """Take in events."""
        ...

    def waits(self, message: str) -> None:
        """Take in why the work waits for storage; an empty message says that it goes on."""
        ...

    def progress(self, message: str) -> None:
        """Take in what the work is busy with before its next report; told often."""
        ...


class Work:
    """One item in progress: reports to the broker, and knows when to stop."""

    def __init__(self, broker: Any, slot: str) -> None:
        self._broker, self.slot = broker, slot
        self._recalled: Any = None
        self._said: Any = None
        self._asked = 0.0
        self._told = 0.0
        self._drain_file = Path(os.environ.get(DRAIN_FILE, os.devnull + "/none"))

    def should_pause(self) -> bool:
        """Whether the broker recalls its slots, or this pod was told to end."""
        now = time.monotonic()
        if (
            now - self._asked < _POLL_SECONDS
        ):  # asked before every batch, so most answers must cost nothing
            return False
        self._asked = now
        if self.must_leave:
            return True
        if self._recalled is None:
            self._recalled = self._broker.recalled.remote()
        done, _ = ray.wait([self._recalled], timeout=0)
        return bool(done)

    @property
    def must_leave(self) -> bool:
        """Whether this pod was told to end."""
        return self._drain_file.exists()

    def say(self, *events: ev.Event) -> None:
        """Send events to the broker in the middle of an item; they arrive in the order of the calls."""
        self.settle()
        self._said = self._broker.epoch.remote(self.slot, list(events))

    def waits(self, message: str) -> None:
        """Tell the broker why this slot waits for storage; with an empty message that it goes on."""
        ray.get(self._broker.waits.remote(self.slot, message))

    def progress(self, message: str) -> None:
        """Tell the broker what this slot is busy with, about once a second; nobody waits for it to arrive."""
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            self._broker.progress.remote(self.slot, message)

    def settle(self) -> None:
        """Wait until the broker has all reports: calls to an actor may overtake each other."""
        if self._said is not None:
            ray.get(self._said)
            self._said = None
