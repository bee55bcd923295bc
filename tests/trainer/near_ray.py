"""The driver, the real broker and real slots in one process: calls between them are as Ray's, only without Ray."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from finetune_trainer import driver
from finetune_trainer.environment import SlotResources
from finetune_trainer.runtime import client, slot
from finetune_trainer.runtime.broker import Broker
from finetune_trainer.runtime.client import BrokerClient
from finetune_trainer.runtime.slot import Slot

SECONDS = 60.0
"""Nothing here takes so long."""


class _Method:
    def __init__(self, actor: "NearActor", name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *arguments: Any) -> "Future[Any]":
        """Begin the call; calls begin in order."""
        call = getattr(self._actor.actor, self._name)(*arguments)
        return asyncio.run_coroutine_threadsafe(call, self._actor.loop)


class NearActor:
    """A broker on a thread of its own, called as an actor of Ray."""

    def __init__(self, actor: Broker) -> None:
        self.actor = actor
        self.loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:  # cancels what is left
            runner.run(self._end.wait())

    def end(self) -> None:
        """Its process ends."""
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, name)


class NearSlot(Slot):
    """A slot without Ray Tune."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def trial_id(self) -> str:
        """Its name in Ray Tune."""
        return self._name


class NearRay:
    """What the driver, the slots and their work use of Ray's module."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.addresses: list[str] = []
        """Where it was told to find the cluster, once a start."""

        self.ends = 0
        self.starting: Callable[[], object] = lambda: None
        """Called while Ray starts."""

    def init(self, address: str, **_: Any) -> None:
        """Start it; as Ray does, take over the handlers of signals."""
        self.addresses.append(address)
        self.starting()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _overwritten)

    def shutdown(self) -> None:
        """End it."""
        self.ends += 1

    def get(self, call: Any) -> Any:
        """What a call returns."""
        return call.result(SECONDS) if isinstance(call, Future) else call

    def wait(self, calls: "list[Future[Any]]", timeout: float) -> tuple[list[Any], list[Any]]:
        """The calls that have returned, and the others."""
        found = wait_for(calls, timeout)
        return list(found.done), list(found.not_done)


def _overwritten(*_: object) -> None:
    raise AssertionError("Ray has got the signal")


@contextmanager
def near_ray(patch: pytest.MonkeyPatch) -> Iterator[NearRay]:
    """Ray replaced in the driver, the slots and their work, inside `with`."""
    near, brokers = NearRay(), []

    def start_broker(problem: Any, budget: Any, *rest: Any, **options: Any) -> BrokerClient:
        brokers.append(NearActor(Broker(problem, budget, *rest, **options)))
        return BrokerClient(brokers[-1])

    for module in (driver, client, slot):
        patch.setattr(module, "ray", near)
    patch.setattr(driver, "start_broker", start_broker)
    patch.setattr(driver, "run_slots", run_slots)
    patch.setattr(driver, "this_node", lambda: None)
    patch.setattr(driver, "start_tracker", lambda *_: None)
    patch.setattr(driver, "finish_tracker", lambda *_: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield near
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for broker in brokers:
            broker.end()


def run_slots(
    broker: BrokerClient,
    make_worker: Callable[[Any], Any],
    material: Any,
    count: int,
    resources: SlotResources,
) -> None:
    """Run as many slots on threads until each is told that it is over."""
    del resources
    raised: list[BaseException] = []

    def run(number: int) -> None:
        try:
            slot = NearSlot(f"worker{number}")
            slot.setup({}, broker=broker, make_worker=make_worker, material=material)
            assert slot.step()["done"]
        except BaseException as error:  # noqa: BLE001 (any: it is raised again below)
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # in pieces: signals are handled in between
            thread.join(0.05)
    for error in raised:
        raise error
