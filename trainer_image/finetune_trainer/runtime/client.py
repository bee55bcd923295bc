"""The broker as slots, driver, library and trackers see it: its calls by name, from any process of the Ray cluster."""

from typing import Any, Generic, TypeVar

import ray

from finetune_api.combinations import Params
from finetune_api.search import Budget
from finetune_trainer.records.events import Event
from finetune_trainer.runtime.broker import Snapshot
from finetune_trainer.search.items import RefitItem, Release, TrainItem

T = TypeVar("T")


class Call(Generic[T]):
    """A call on its way. Nobody has to wait for it."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def get(self) -> T:
        """Wait for its result. Raises what the broker raised, RayActorError if it is gone."""
        result: T = ray.get(self._reference)
        return result

    def is_over(self, seconds: float = 0.0) -> bool:
        """Whether it has returned, or does so within some seconds."""
        return bool(ray.wait([self._reference], timeout=seconds)[0])


class BrokerClient:
    """Each method begins the call of the same name; see `Broker`. Calls may overtake each other."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def _call(self, name: str, *arguments: object) -> Call[Any]:
        return Call(getattr(self._actor, name).remote(*arguments))

    def begin(self) -> Call[bool]:
        """Open the records; whether that succeeded before it was told to end."""
        return self._call("begin")

    def inherits(self) -> Call[bool]:
        """Whether the trials of earlier studies, for a warm start, are in the records."""
        return self._call("inherits")

    def inherit(self, trials: list[tuple[Params, float]]) -> Call[None]:
        """Learn from other studies' trials, best first."""
        return self._call("inherit", trials)

    def next(self, slot: str, report: list[Event]) -> Call[TrainItem | RefitItem | Release | None]:
        """Report, and what the slot does next; None when everything is over."""
        return self._call("next", slot, report)

    def epoch(self, slot: str, report: list[Event]) -> Call[None]:
        """Report in the middle of an item."""
        return self._call("epoch", slot, report)

    def recalled(self) -> Call[None]:
        """Returns when slots should save their work and ask again."""
        return self._call("recalled")

    def lost(self, worker: str) -> Call[None]:
        """The process of a slot is gone."""
        return self._call("lost", worker)

    def useful_slots(self, enough: int) -> Call[float]:
        """How many slots the study can use from here on, at most."""
        return self._call("useful_slots", enough)

    def waits(self, slot: str, message: str) -> Call[None]:
        """A slot waits for storage; an empty message says that it goes on."""
        return self._call("waits", slot, message)

    def waiting(self) -> Call[str]:
        """Why the study, or part of it, waits for storage; empty if nothing does."""
        return self._call("waiting")

    def progress(self, slot: str, message: str) -> Call[None]:
        """What a slot is busy with until it reports."""
        return self._call("progress", slot, message)

    def warn(self, field: str, message: str) -> Call[None]:
        """What is wrong at a field of the spec without harm to the search."""
        return self._call("warn", field, message)

    def snapshot(self, budget: Budget, target: float | None) -> Call[Snapshot]:
        """Where the study stands, with budget and target as they are now."""
        return self._call("snapshot", budget, target)

    def write_results(self) -> Call[None]:
        """Write the tables of trials."""
        return self._call("write_results")

    def drain(self) -> Call[None]:
        """Hand out nothing more; slots save and stop."""
        return self._call("drain")

    def end(self) -> None:
        """End the actor: Ray keeps a trainable's arguments, which would otherwise live as long as Ray does."""
        ray.kill(self._actor)
