"""A whole study of an imaginary model with checkpoints of some size, for tests of storage: all is real but Ray."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.study import StudySpec
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.records.log import read_history
from finetune_trainer.runtime.broker import Broker
from finetune_trainer.search.items import Release
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from finetune_trainer.worker.function_worker import Functions, FunctionWorker, Resource
from tests.trainer.search_studies import ASHA, accuracy, study_spec

STUDY = study_spec(search=ASHA)
SLOT = "worker/slot"
CHECKPOINT_BYTES = 200_000


@dataclass
class Fault:
    """Something that happens to storage at the epoch of that number, or in the refit, until it is mended."""

    happen: Callable[[], None] = lambda: None
    mend: Callable[[], None] = lambda: None
    says: str = ""
    """What the study must say while it waits."""

    at: int = -1
    """Number of the epoch; 0 for the refit."""

    seconds: float = 1.0
    """How long the study waits before it is mended."""

    happened: threading.Event = field(default_factory=threading.Event)
    _epochs: int = 0

    def at_epoch(self) -> None:
        self._epochs += 1
        if self._epochs == self.at:
            self._happen()

    def at_refit(self) -> None:
        if self.at == 0:
            self._happen()

    def _happen(self) -> None:
        self.happen()
        self.happened.set()


class Line:
    """What a slot says goes to the broker at once."""

    slot = SLOT

    def __init__(self, broker: Broker) -> None:
        self._broker, self._loop = broker, asyncio.get_running_loop()
        self.told_to_end = False

    def should_pause(self) -> bool:
        return self.told_to_end

    def say(self, *events: ev.Event) -> None:
        told = self._broker.epoch(SLOT, list(events))
        asyncio.run_coroutine_threadsafe(told, self._loop).result()

    def waits(self, message: str) -> None:
        told = self._broker.waits(SLOT, message)
        asyncio.run_coroutine_threadsafe(told, self._loop).result()

    def progress(self, message: str) -> None:
        told = self._broker.progress(SLOT, message)
        asyncio.run_coroutine_threadsafe(told, self._loop).result()


def worker(spec: StudySpec, location: str, fault: Fault) -> FunctionWorker:
    """The worker of an imaginary model, whose checkpoints have some size."""

    def train(config: dict[str, Any], resource: Resource, checkpoint: Path) -> Iterator[float]:
        for epoch in range(int(resource.begun) + 1, int(resource.epochs) + 1):
            fault.at_epoch()
            (checkpoint / "weights").write_bytes(bytes(CHECKPOINT_BYTES))
            yield accuracy(config, epoch)

    def refit(config: dict[str, Any], resource: Resource) -> dict[str, Any]:
        fault.at_refit()
        return config

    functions = Functions(train, refit, location, spec.objective.metric, 9, None, 0.0)
    return FunctionWorker(functions)


async def until_said(broker: Broker, spec: StudySpec, words: str) -> str:
    """What the study says, with these words, while it waits."""
    async with asyncio.timeout(300):
        while True:
            said = (await broker.snapshot(spec.budget, None)).waiting
            if said:
                assert words in said, said
                return said
            await asyncio.sleep(0.05)


async def one_term(
    spec: StudySpec, location: str, term: int = 1, fault: Fault | None = None, drain: bool = False
) -> None:
    """A term of the study with one slot, up to its end or, if it shall `drain`, until the fault has come."""
    fault = fault or Fault()
    claim(Storage.open(location), parts_of(spec))
    broker = Broker(Problem.of(spec), spec.budget, location, term)
    assert await broker.begin()
    line, at_work = Line(broker), worker(spec, location, fault)

    async def slot() -> None:
        report: list[ev.Event] = []
        while (item := await broker.next(SLOT, report)) is not None:
            assert not isinstance(item, Release)
            report = await asyncio.to_thread(at_work.work, item, line)

    async def disturb() -> None:
        await asyncio.to_thread(fault.happened.wait)
        await until_said(broker, spec, fault.says)
        if drain:
            line.told_to_end = True
            await broker.drain()
            return
        before = await broker.snapshot(spec.budget, None)
        await asyncio.sleep(fault.seconds)
        assert await broker.snapshot(spec.budget, None) == before, "it waits"
        fault.mend()

    working = asyncio.create_task(slot())
    try:
        if fault.at >= 0:
            await disturb()
        async with asyncio.timeout(300):
            await working
    except BaseException:  # nobody shall wait for the slot's thread
        line.told_to_end = True
        await broker.drain()
        raise
    await broker.write_results()
    assert not (await broker.snapshot(spec.budget, None)).waiting or drain


def history(location: str) -> list[ev.Event]:
    return read_history(Storage.open(location)).events


def decisions(spec: StudySpec, events: list[ev.Event]) -> list[Any]:
    """All that was decided and found, and how the study ended."""
    state = StudyState.replayed(Problem.of(spec), events)
    trials = [
        (t.number, t.params, t.status, t.level, [(e.epoch, e.value) for e in t.evaluations])
        for t in state.trials
    ]
    started = [(e.trial, e.to_epoch, e.seed) for e in events if isinstance(e, ev.Started)]
    assert state.ended is not None
    assert state.refit is not None
    return [trials, started, state.ended.reason, state.refit.trial]


def counted(events: list[ev.Event]) -> dict[str, int]:
    """Events of each kind, but those of waiting."""
    kinds = [event.kind for event in events if not isinstance(event, ev.Waited)]
    return {kind: kinds.count(kind) for kind in kinds}


def check_same(location: str, undisturbed: list[ev.Event]) -> None:
    events = history(location)
    assert decisions(STUDY, events) == decisions(STUDY, undisturbed)
    assert counted(events) == counted(undisturbed), "nothing was lost, nothing done twice"
    storage = Storage.open(location)
    assert storage.read("results/trials.csv").count(b"\n") == 13
    assert storage.read("model/estimator.pkl")
    left = [path for path in storage.files("") if "/." in path or path.startswith("checkpoints")]
    assert not left
