"""A whole study in this process: the real broker and the trainer of one slot, only without Ray between them."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from finetune_api.study import StudySpec
from finetune_trainer.data import PreparedData
from finetune_trainer.environment import SlotResources
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.runtime.broker import Broker
from finetune_trainer.search.items import Release
from finetune_trainer.search.problem import Problem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.worker.item import Material
from finetune_trainer.worker.model_worker import ModelWorker
from tests.records import events_of

SLOT = "worker/slot"


class Line:
    """What is said in the middle of an item goes to the broker after it."""

    slot = SLOT

    def __init__(self, should_pause: Callable[[], bool]) -> None:
        self.should_pause = should_pause
        self.said: list[ev.Event] = []
        self.told: list[str] = []

    def waits(self, message: str) -> None:
        raise AssertionError(message)

    def progress(self, message: str) -> None:
        self.told.append(message)

    def say(self, *events: ev.Event) -> None:
        self.said.extend(events)


def run_study(
    spec: StudySpec,
    data: PreparedData,
    folder: Path,
    should_pause: Callable[[], bool] = lambda: False,
) -> list[ev.Event]:
    """Run the study from its beginning to its end; what is in its records then."""
    claim(Storage.open(str(folder)), parts_of(spec))

    async def run() -> None:
        broker = Broker(Problem.of(spec), spec.budget, str(folder), 1)
        assert await broker.begin()
        trainer = ModelWorker(Material(spec, str(folder), None, SlotResources(1, 0)), data)
        report: list[ev.Event] = []
        while (item := await broker.next(SLOT, report)) is not None:
            assert not isinstance(item, Release)
            line = Line(should_pause)
            report = trainer.work(item, line)
            await broker.epoch(SLOT, line.said)
        await broker.write_results()

    asyncio.run(run())
    return events_of(folder)
