"""A worker slot: a warm process that trains whatever the broker hands it.

Ray Tune places one slot a share of a worker and starts it again when its process or node is lost.
Weights, tokenised data and imports stay in the process from item to item.
"""

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune

from finetune_api.study import StudySpec
from finetune_trainer.environment import DRAIN_FILE, SlotResources
from finetune_trainer.search import events as ev
from finetune_trainer.search.state import RefitItem, TrainItem

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Material:
    """What every slot of a study gets; `data` refers to the PreparedData in Ray's object store."""

    spec: StudySpec
    storage: str
    data: Any
    resources: SlotResources


class ItemWorker(Protocol):
    """What does the work of a slot."""

    def work(self, item: "TrainItem | RefitItem", work: "Work") -> list[ev.Event]:
        """Do `item`; the events that tell how it ended."""
        ...


class Work:
    """One item being worked on: reports to the broker, and knows when to stop."""

    def __init__(self, broker: Any, slot: str) -> None:
        self._broker, self._slot = broker, slot
        self._recalled: Any = None
        self._asked = 0.0
        self._drain_file = Path(os.environ.get(DRAIN_FILE, os.devnull + "/none"))

    def should_pause(self) -> bool:
        """Whether the broker calls its slots back, or this pod was told to end."""
        now = time.monotonic()
        if (
            now - self._asked < _POLL_SECONDS
        ):  # asked before every batch, so most answers must be free
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
        """Tell the broker in the middle of an item."""
        self._broker.epoch.remote(self._slot, list(events))


def make_trainer(material: Material) -> ItemWorker:
    """The worker that trains real models. Only slots import torch: the driver stays small."""
    from finetune_trainer.trainer import Trainer

    return Trainer(material, ray.get(material.data))


class Slot(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """The trainable that Ray Tune runs, once a slot; one step is one item."""

    def setup(
        self,
        config: dict[str, Any],
        broker: Any,
        make_worker: Callable[[Any], ItemWorker],
        material: Any,
    ) -> None:
        """Load once what all items need: `make_worker(material)` works on them."""
        del config
        self._broker = broker
        self._slot = f"{self.trial_id}/{uuid.uuid4().hex[:8]}"
        self._report: list[ev.Event] = []
        self._worker = make_worker(material)

    def step(self) -> dict[str, Any]:
        """Fetch one item, work on it, keep the report for the next call."""
        item = ray.get(self._broker.next.remote(self._slot, self._report))
        self._report = []
        if item is None:
            return {"over": True, "done": True}
        work = Work(self._broker, self._slot)
        self._report = self._worker.work(item, work)
        if work.must_leave:
            self._leave()
        return {"over": False}

    def _leave(self) -> None:
        """Report, then hold still until the pod is gone, so that no new item comes here."""
        ray.get(self._broker.epoch.remote(self._slot, self._report))
        self._report = []
        while True:
            time.sleep(1)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: checkpoints of trials are ours, and slots have no state worth keeping."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, as there is nothing saved."""
