"""A worker slot: a warm process that trains whatever the broker hands it.

Ray Tune places one slot per share of a worker, and restarts it when its process or node is lost.
Weights, tokenised data and imports stay in the process from item to item.
"""

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray import tune

from finetune_api.pods import DRAIN_FILE
from finetune_trainer.records import events as ev
from finetune_trainer.runtime.client import BrokerClient, Call
from finetune_trainer.search.items import Release
from finetune_trainer.worker.item import ItemWorker, Material

_POLL_SECONDS = 0.25
_TELL_SECONDS = 1.0


def make_trainer(material: Material) -> ItemWorker:
    """The worker that trains real models. Only slots import torch: the driver stays small."""
    from finetune_trainer.worker.model_worker import ModelWorker

    return ModelWorker(material, ray.get(material.data))


class Slot(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """The trainable that Ray Tune runs, one per slot."""

    def setup(
        self,
        config: dict[str, Any],
        broker: BrokerClient,
        make_worker: Callable[[Any], ItemWorker],
        material: Any,
    ) -> None:
        """Load once what all items need; `make_worker(material)` makes what works on them."""
        del config
        self._broker = broker
        self._slot = f"{self.trial_id}/{uuid.uuid4().hex[:8]}"
        self._worker = make_worker(material)

    def step(self) -> dict[str, Any]:
        """Work on items until there are no more: a step of Ray Tune costs more than an item."""
        report: list[ev.Event] = []
        while True:
            item = self._broker.next(self._slot, report).get()
            if item is None or isinstance(item, Release):
                return {"over": item is None, "done": True}
            work = Work(self._broker, self._slot)
            report = self._worker.work(item, work)
            work.settle()
            if work.must_leave:
                self._leave(report)

    def _leave(self, report: list[ev.Event]) -> NoReturn:
        """Report, then block until the pod is gone, so that this slot gets no new item."""
        self._broker.epoch(self._slot, report).get()
        while True:
            time.sleep(1)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the study keeps the checkpoints of trials itself, and slots have no state worth keeping."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, as there is nothing saved."""


class Work:
    """One item in progress: reports to the broker, and knows when to stop."""

    def __init__(self, broker: BrokerClient, slot: str) -> None:
        self._broker, self.slot = broker, slot
        self._recalled: Call[None] | None = None
        self._said: Call[None] | None = None
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
            self._recalled = self._broker.recalled()
        return self._recalled.is_over()

    @property
    def must_leave(self) -> bool:
        """Whether this pod was told to end."""
        return self._drain_file.exists()

    def say(self, *events: ev.Event) -> None:
        """Send events to the broker in the middle of an item; they arrive in the order of the calls."""
        self.settle()
        self._said = self._broker.epoch(self.slot, list(events))

    def waits(self, message: str) -> None:
        """Tell the broker why this slot waits for storage; with an empty message that it goes on."""
        self._broker.waits(self.slot, message).get()

    def progress(self, message: str) -> None:
        """Tell the broker what this slot is busy with, about once a second; nobody waits for it to arrive."""
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            self._broker.progress(self.slot, message)

    def settle(self) -> None:
        """Wait until the broker has all reports: calls to an actor may overtake each other."""
        if self._said is not None:
            self._said.get()
            self._said = None
