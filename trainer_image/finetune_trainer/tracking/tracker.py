"""The actor that tracks a study: it reads the records as they grow, and updates each tracker.

It has its own process beside the broker, so that neither the driver nor the search waits for it or has the
clients in memory. All it knows is in the records and in the trackers: it can die and restart at any time.
"""

import importlib.util
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from finetune_api.outputs import Tracking
from finetune_api.study import FineTuneStudy, StudySpec
from finetune_trainer.errors import SpecError
from finetune_trainer.records.log import Follower
from finetune_trainer.runtime.client import BrokerClient
from finetune_trainer.search.problem import problem_of
from finetune_trainer.storage.folder import Storage
from finetune_trainer.tracking.clients import settle
from finetune_trainer.tracking.journal import Journal
from finetune_trainer.tracking.reporter import Reporter
from finetune_trainer.tracking.runs import Tracker

POLL_SECONDS = 5.0
FINISH_SECONDS = 30.0
"""Time that trackers get at the end of a study to catch up."""

DRAIN_SECONDS = 5.0
"""The same when the pod was told to end: a part of its grace period."""

_RESTARTS = 5

Warn: TypeAlias = Callable[[str, str], None]
"""Called with (field of spec.tracking, a message for people); an empty message withdraws it."""

log = logging.getLogger("finetune.tracking")


def _wandb(tracking: Tracking, storage: Storage) -> Tracker:
    settle()
    from finetune_trainer.tracking.wandb_runs import WandbRuns

    assert tracking.wandb is not None  # the study asks for it
    return WandbRuns(tracking.wandb, storage)


def _mlflow(tracking: Tracking, _: Storage) -> Tracker:
    settle()
    from finetune_trainer.tracking.mlflow_runs import MlflowRuns

    assert tracking.mlflow is not None  # the study asks for it
    return MlflowRuns(tracking.mlflow)


def _tensorboard(_: Tracking, storage: Storage) -> Tracker:
    from finetune_trainer.tracking.event_files import EventFiles

    return EventFiles(storage)


_TRACKERS: dict[str, Callable[[Tracking, Storage], Tracker]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
}
"""Field of spec.tracking, which is also the module of its client → what makes the tracker, on the thread that
uses it: clients take seconds to import."""


def _wanted(tracking: Tracking) -> list[str]:
    return [field for field in _TRACKERS if getattr(tracking, field)]


def check_clients(spec: StudySpec) -> None:
    """Raises SpecError if the client of a tracker is not installed; looks for it without importing it."""
    for field in _wanted(spec.tracking) if spec.tracking else []:
        if importlib.util.find_spec(field) is None:
            raise SpecError(
                f"spec.tracking.{field}",
                f"needs its client in the trainer's image (no module {field}; the extra `tracking` "
                "of finetune-operator installs it)",
            )


class StudyTracker:
    """Follows the records of one term and keeps the trackers of the study up to date."""

    def __init__(self, study: FineTuneStudy, storage: Storage, term: int, warn: Warn) -> None:
        tracking = study.spec.tracking or Tracking()
        self._warn = warn
        self._broken = ""
        """Why the records are no longer read, if so; overrides what the trackers say."""

        self._wanted = _wanted(tracking)
        self._records = Follower(storage, term)
        self._study, self._storage = study, storage
        self._journal: Journal | None = None
        """Begun with the first records that could be read."""

        self._reporters = [
            Reporter(field, partial(_TRACKERS[field], tracking, storage), partial(self._say, field))
            for field in self._wanted
        ]
        self._unread = False
        """Whether the records could not be read the last time."""

        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    def start(self) -> None:
        """Begin to follow the records."""
        for reporter in self._reporters:
            reporter.start()
        self._thread.start()

    def finish(self, seconds: float) -> int:
        """Show everything in the records, within so many seconds; returns how many runs are still incomplete."""
        deadline = time.monotonic() + seconds
        self._ending.set()
        self._thread.join(seconds)
        return sum(reporter.finish(deadline) for reporter in self._reporters)

    def _say(self, field: str, message: str) -> None:
        self._warn(field, self._broken or message)

    def _loop(self) -> None:
        try:
            self._read()
            while not self._ending.wait(POLL_SECONDS):
                self._read()
            self._read()
        except (
            Exception
        ) as error:  # any: the study goes on, and its status says that tracking does not
            log.exception("tracking cannot go on")
            self._broken = f"stopped; the study goes on: {type(error).__name__}: {error}"
            for field in self._wanted:
                self._say(field, self._broken)

    def _read(self) -> None:
        try:
            if self._journal is None:
                self._journal = Journal(self._study, problem_of(self._study.spec, self._storage))
            events = self._records.more()
        except Exception as error:  # any: if it lasts, the broker ends the term
            if not self._unread:
                log.exception("the records cannot be read; tracking waits: %s", error)
            self._unread = True
            return
        self._unread = False
        runs = self._journal.take(events)
        for reporter in self._reporters:
            reporter.tell(runs)


class _Actor:
    """A StudyTracker in a process of its own."""

    def __init__(self, study: FineTuneStudy, storage: str, term: int, broker: BrokerClient) -> None:
        def warn(field: str, message: str) -> None:
            broker.warn(f"spec.tracking.{field}", message).get()

        self._tracker = StudyTracker(study, Storage.open(storage), term, warn)
        self._tracker.start()

    def finish(self, seconds: float) -> int:
        """See `StudyTracker.finish`."""
        return self._tracker.finish(seconds)


def start_tracker(
    study: FineTuneStudy,
    storage: str,
    term: int,
    broker: BrokerClient,
    place: NodeAffinitySchedulingStrategy,
) -> Any:
    """The actor that tracks the study, if it is tracked; it restarts if its process ends."""
    if study.spec.tracking is None:
        return None
    actor = ray.remote(_Actor).options(
        num_cpus=0, scheduling_strategy=place, max_restarts=_RESTARTS
    )
    return actor.remote(study, storage, term, broker)


def finish_tracker(actor: Any, seconds: float) -> None:
    """Give the tracker so many seconds to catch up, then end it. Never raises for it."""
    if actor is None:
        return
    try:
        ray.get(actor.finish.remote(seconds), timeout=seconds + 2)
    except ray.exceptions.RayError as error:
        log.warning("tracking broke off: %s", error)
    ray.kill(actor)
