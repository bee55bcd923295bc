"""What a slot gets to work with, what works on it, and who hears of it."""

import time
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from finetune_api.study import StudySpec
from finetune_trainer.environment import SlotResources
from finetune_trainer.records import events as ev
from finetune_trainer.search.items import RefitItem, TrainItem

Item: TypeAlias = TrainItem | RefitItem


def requeued(item: Item) -> ev.Event:
    """The event that `item` was interrupted, and goes on from its last checkpoint."""
    if isinstance(item, RefitItem):
        return ev.RefitRequeued(time.time())
    return ev.Requeued(time.time(), trial=item.trial, run=item.run)


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
