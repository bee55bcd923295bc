"""A worker slot: a warm process that trains whatever the broker hands it.

Ray Tune places one slot per share of a worker, and restarts it when its process or node is lost.
Weights, tokenised data and imports stay in the process from item to item.
"""

import time
import uuid
from collections.abc import Callable
from typing import Any, NoReturn

import ray

from finetune_trainer.records import events as ev
from finetune_trainer.runtime.quiet_tune import tune
from finetune_trainer.search.items import Release
from finetune_trainer.worker.item import ItemWorker, Material, Work


def make_trainer(material: Material) -> ItemWorker:
    """The worker that trains real models. Only slots import torch: the driver stays small."""
    from finetune_trainer.worker.model_worker import ModelWorker

    return ModelWorker(material, ray.get(material.data))


class Slot(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """The trainable that Ray Tune runs, one per slot."""

    def setup(
        self,
        config: dict[str, Any],
        broker: Any,
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
            item = ray.get(self._broker.next.remote(self._slot, report))
            if item is None or isinstance(item, Release):
                return {"over": item is None, "done": True}
            work = Work(self._broker, self._slot)
            report = self._worker.work(item, work)
            work.settle()
            if work.must_leave:
                self._leave(report)

    def _leave(self, report: list[ev.Event]) -> NoReturn:
        """Report, then block until the pod is gone, so that this slot gets no new item."""
        ray.get(self._broker.epoch.remote(self._slot, report))
        while True:
            time.sleep(1)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the study keeps the checkpoints of trials itself, and slots have no state worth keeping."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, as there is nothing saved."""
