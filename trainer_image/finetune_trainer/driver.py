"""The driver: prepares the data, runs the worker slots on Ray Tune, publishes progress, writes results.

`python -m finetune_trainer.driver` runs it in pod 0; `finetune run` calls the same function.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias, TypeVar

import ray

from finetune_api.manifest import ManifestError
from finetune_api.pods import DRAIN_FILE, EXIT_DRAINED, EXIT_FINISHED, EXIT_USER_ERROR
from finetune_api.status import Findings, Limits, StudyProgress
from finetune_api.study import FineTuneStudy, StudySpec
from finetune_trainer.environment import PodEnvironment, SlotResources, WorkerResources
from finetune_trainer.errors import (
    RayUnavailable,
    SpecError,
    StudyError,
    ToldToStop,
)
from finetune_trainer.records.claim import tries_defaults
from finetune_trainer.records.log import last_term, read_history
from finetune_trainer.report import Subject, write_report
from finetune_trainer.runtime.broker import Snapshot
from finetune_trainer.runtime.client import BrokerClient, Call
from finetune_trainer.runtime.preparation import Preparation, check_same_data, prepare_here
from finetune_trainer.runtime.progress import ConfigMapSink, Fenced, ProgressSink, document
from finetune_trainer.runtime.ray_tune import (
    run_slots,
    start_broker,
    start_ray,
    this_node,
)
from finetune_trainer.runtime.slot import make_trainer
from finetune_trainer.search.decisions import FAILURES
from finetune_trainer.search.items import AtWork
from finetune_trainer.search.problem import Problem, begin, problem_of
from finetune_trainer.search.proposals import Proposer
from finetune_trainer.search.warm_start import inherit
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import DATA_REPORT
from finetune_trainer.storage.locations import shown
from finetune_trainer.storage.retries import Retries, gist
from finetune_trainer.tracking.tracker import (
    DRAIN_SECONDS,
    FINISH_SECONDS,
    check_clients,
    finish_tracker,
    start_tracker,
)
from finetune_trainer.worker.item import Material

PUBLISH_SECONDS = 2.0

T = TypeVar("T")
Phase: TypeAlias = Literal["Preparing", "Searching", "Refitting", "Drained", "Finished", "Failed"]

_PREPARING = ("CreatingPods", "preparing the data")
"""Reason and message until the search begins."""

log = logging.getLogger("finetune.driver")


@dataclass(frozen=True)
class Workplace:
    """Where a study runs: its files, its storage, where it reports, and what Ray has."""

    study: FineTuneStudy
    base: Path
    storage: str
    sink: ProgressSink
    slots: int
    resources: SlotResources
    ray_address: str | None = None
    """None starts Ray on this machine."""

    retry: str = ""
    """The value with which somebody asked for a retry, if so."""

    latest: Callable[[], StudySpec] | None = None
    """Reads the study as it stands now; None if its budget and target cannot change."""

    watch: Callable[[Sequence[AtWork]], None] = lambda _: None
    """Called about twice a second with what slots are working on."""

    interrupted: Callable[[], None] = lambda: None
    """Called at the first Ctrl-C, before anything is saved."""


class Driver:
    """One start of the driver: one term of the study."""

    def __init__(self, workplace: Workplace) -> None:
        self._place = workplace
        self._spec = workplace.study.spec
        self._uid = workplace.study.metadata.uid or "local"
        self._term = workplace.sink.claim_term()
        self._told_to_end = threading.Event()
        self._broker: BrokerClient | None = None
        self._last = Findings()
        self._told: tuple[Phase, Findings, str] | None = None
        """Phase, findings and wait message of the last progress document of the search."""

    def drain(self, *_: int | FrameType | None) -> None:
        """Save what is in flight and stop; a signal handler."""
        self._told_to_end.set()
        if self._broker is not None:
            self._broker.drain()

    def _interrupt(self, *_: int | FrameType | None) -> None:
        """Save what is in flight and stop; the second time, stop at once. A signal handler."""
        if self._told_to_end.is_set():
            raise KeyboardInterrupt
        self._place.interrupted()
        self.drain()

    def _must_end(self) -> bool:
        """Whether it was told to end: by a signal or, under KubeRay, by a file."""
        if Path(os.environ.get(DRAIN_FILE, os.devnull + "/none")).exists():
            self.drain()
        return self._told_to_end.is_set()

    def run(self) -> StudyProgress:
        """Run the study as far as it goes, and return the last progress document. Unexpected errors are reported, then raised."""
        try:
            self._publish("Preparing", *_PREPARING)
            with self._ray():
                snapshot = self._search()
        except StudyError as error:
            return self._publish("Failed", error.reason, str(error))
        except ToldToStop as error:
            return self._drained(gist(error))
        except (Fenced, RayUnavailable):
            raise
        except Exception as error:  # any: it is reported, and raised again
            self._publish("Preparing", "AttemptFailed", f"the driver starts again: {_gist(error)}")
            raise
        if snapshot.outcome is None:
            return self._drained(snapshot.waiting, snapshot.findings)
        outcome = snapshot.outcome
        phase: Phase = "Failed" if outcome.reason in FAILURES else "Finished"
        found, judged_by = snapshot.findings, snapshot.judged_by
        return self._publish(phase, outcome.reason, outcome.message, found, judged_by)

    def _drained(self, waiting: str, findings: Findings | None = None) -> StudyProgress:
        message = f"told to end while {waiting}" if waiting else "saved and stopped as requested"
        return self._publish("Drained", "SuspendRequested", message, findings)

    @contextmanager
    def _ray(self) -> Iterator[None]:
        if self._place.ray_address is None:
            cpus = max(1, round(self._place.resources.cpus * self._place.slots))
            gpus = round(self._place.resources.gpus * self._place.slots)
            start_ray(cpus, gpus)
        else:
            ray.init(address=self._place.ray_address, log_to_driver=True, logging_level="WARNING")
        # Ray has replaced the handlers that were there.
        signal.signal(signal.SIGTERM, self.drain)
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            ray.shutdown()

    def _search(self) -> Snapshot:
        Proposer(Problem.of(self._spec)).check()
        check_clients(self._spec)
        self._place.resources.check()
        _check_precision(self._spec, self._place.resources)
        storage = self._opened()
        begin(storage, self._spec)
        problem = problem_of(self._spec, storage)
        self._outlive(storage)
        preparation, data = self._prepared(storage)
        if tries_defaults(storage):
            problem = replace(problem, recommended=preparation.recommended)
            Proposer(problem)  # its constraints may have no answer there
        broker = start_broker(
            problem,
            self._spec.budget,
            self._place.storage,
            self._term,
            preparation.warnings,
            releases=self._spec.cluster.scales,
            retry=self._place.retry,
        )
        self._broker = broker
        if self._must_end():
            broker.drain()
        if not self._await(broker, broker.begin()):
            raise ToldToStop(broker.waiting().get())
        if self._spec.search.warm_start and not broker.inherits().get():
            inherited = self._trusted(
                storage, "other studies", lambda: inherit(self._spec, self._place.base)
            )
            self._await(broker, broker.inherit(inherited))
        place, name = self._place, self._place.study.metadata.name
        material = Material(self._spec, place.storage, data, place.resources, name)
        tracker = start_tracker(
            self._place.study, self._place.storage, self._term, broker, this_node()
        )
        publisher = _Repeat(lambda: self._tell(broker))
        publisher.start()
        try:
            run_slots(broker, make_trainer, material, self._place.slots, self._place.resources)
            finish_tracker(tracker, DRAIN_SECONDS if self._must_end() else FINISH_SECONDS)
            broker.write_results().get()
            self._report(storage, preparation)
        finally:
            publisher.stop()
        snapshot = self._snapshot(broker)
        if snapshot.outcome is None and not self._must_end():
            raise RuntimeError("the slots ended before the study did")
        return snapshot

    def _outlive(self, storage: Storage) -> None:
        """Claim a term above those in the records, where this study's terms are behind them.

        They are when a study adopts other records, or when its progress ConfigMap was deleted.
        """
        last = last_term(storage)
        if self._term <= last:
            self._term = self._place.sink.claim_term(above=last)

    def _opened(self) -> Storage:
        """The study's storage, once it can be reached."""
        retries = Retries(self._waits, self._must_end)
        try:
            return Storage.open(self._place.storage, retries)
        except ValueError as error:
            why = shown(gist(error))
            raise SpecError(
                "spec.storage.uri", f"must be a location that pyarrow can open ({why})"
            ) from error

    def _prepared(self, storage: Storage) -> tuple[Preparation, Any]:
        """What is known of the data, and a reference to the data in this node's object store. Raises StudyError.

        No slot computes yet, so it may use the threads of all slots that this node will have.
        """
        place, own = self._place, self._spec.cluster.trials_per_worker
        slots = place.slots if place.ray_address is None else own
        threads = SlotResources(place.resources.cpus * slots, 0).threads
        events = read_history(storage).events

        def prepared() -> tuple[Preparation, Any]:
            preparation, data = prepare_here(self._spec, place.base, threads)
            check_same_data(events, preparation.fingerprint)
            return preparation, data

        preparation, data = self._trusted(storage, "the data", prepared)
        storage.write(DATA_REPORT, preparation.report)
        return preparation, data

    def _trusted(self, storage: Storage, what: str, read: Callable[[], T]) -> T:
        """What `read` returns. Its StudyError counts only if storage is there: without its files everything looks wrong."""

        def checked() -> T:
            try:
                return read()
            except StudyError:
                storage.check()
                raise

        retries = Retries(self._waits, self._must_end)
        return retries.persist(f"{what} cannot be read", checked)

    def _waits(self, message: str) -> None:
        """Report why the study cannot begin yet; an empty message says that it goes on."""
        reason, said = ("StorageUnavailable", message) if message else _PREPARING
        try:
            self._publish("Preparing", reason, said)
        except Fenced:
            raise
        except Exception:  # any: the same network may be gone
            log.exception("progress could not be published: %s", said)

    def _report(self, storage: Storage, preparation: Preparation) -> None:
        """Write the report of what there is. A study does not fail because of a picture."""
        try:
            subject = Subject.of(self._place.study, storage)
            write_report(subject, storage, time.time(), preparation.warnings)
        except Exception:  # any: `finetune report` can draw it at any time
            log.exception("the report could not be written; finetune report draws it again")

    def _await(self, broker: BrokerClient, call: Call[T]) -> T:
        """The result of a call to the broker; meanwhile reports what that waits for."""
        told = ""
        while not call.is_over(PUBLISH_SECONDS):
            self._must_end()
            waiting = broker.waiting().get()
            if waiting != told:
                self._waits(waiting)
                told = waiting
        if told:
            self._waits("")
        return call.get()

    def _snapshot(self, broker: BrokerClient) -> Snapshot:
        spec = self._place.latest() if self._place.latest else self._spec
        return broker.snapshot(spec.budget, spec.objective.target).get()

    def _tell(self, broker: BrokerClient) -> None:
        self._must_end()
        snapshot = self._snapshot(broker)
        self._place.watch(snapshot.at_work)
        phase: Phase = "Refitting" if snapshot.refitting else "Searching"
        if (phase, snapshot.findings, snapshot.waiting) != self._told:
            reason = "StorageUnavailable" if snapshot.waiting else "Running"
            self._publish(phase, reason, snapshot.waiting, snapshot.findings)
            self._told = phase, snapshot.findings, snapshot.waiting

    def _publish(
        self,
        phase: Phase,
        reason: str,
        message: str,
        findings: Findings | None = None,
        judged_by: Limits | None = None,
    ) -> StudyProgress:
        self._last = findings or self._last
        progress = document(
            self._place.sink,
            self._uid,
            self._term,
            self._last,
            phase=phase,
            reason=reason,
            message=message[:1024],
        )
        self._place.sink.publish(progress, judged_by)
        return progress


def _check_precision(spec: StudySpec, resources: SlotResources) -> None:
    if spec.compute.precision == "FP16" and not resources.gpus:
        raise SpecError(
            "spec.compute.precision",
            "must be FP32 or BF16 where slots have no GPU (got FP16)",
        )


def _gist(error: Exception) -> str:
    """The error in one line; Ray wraps what a task or actor raised in a traceback.

    The first line says what the error is; for an actor's death, only the last says why.
    """
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [""]
    line = lines[-1] if isinstance(cause, ray.exceptions.RayActorError) else lines[0]
    return f"{type(cause).__name__}: {line.strip()[:300]}"


class _Repeat:
    """Calls `act` every few seconds on a thread; an error that nothing can retry ends the process, visibly."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        failures = 0
        while not self._stop.wait(PUBLISH_SECONDS):
            try:
                self._act()
                failures = 0
            except (Fenced, ray.exceptions.RayActorError):
                # Another driver has taken over, or the broker could not write: nothing more may be
                # decided in this term, and the main thread is inside Ray Tune.
                log.exception("this driver ends")
                os._exit(1)
            except Exception:  # any: the search must survive a short outage of the API server
                failures += 1
                log.exception("progress could not be published (%s in a row)", failures)


def _mounted(pod: PodEnvironment, study: FineTuneStudy) -> Callable[[], StudySpec]:
    """Returns a reader of the mounted manifest, which follows edits of the study."""
    latest = study.spec

    def read() -> StudySpec:
        nonlocal latest
        try:
            latest = pod.study().spec
        except (OSError, ValueError, ManifestError) as error:  # while it is being updated
            log.warning(
                "the mounted study cannot be read; its last state stays in force: %s", error
            )
        return latest

    return read


def main() -> int:
    """Drive the study of this pod; the exit code says how it ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    pod = PodEnvironment.read()
    study = pod.study()
    cluster = study.spec.cluster
    worker = WorkerResources.of(cluster)
    driver = Driver(
        Workplace(
            study=study,
            base=pod.base,
            storage=pod.storage,
            sink=ConfigMapSink(pod),
            slots=cluster.slots,
            resources=worker.slot(cluster.trials_per_worker),
            ray_address="auto",
            retry=pod.retry,
            latest=_mounted(pod, study),
        )
    )
    signal.signal(signal.SIGTERM, driver.drain)
    started = time.monotonic()
    progress = driver.run()
    log.info("%s (%s) after %.0f s", progress.phase, progress.reason, time.monotonic() - started)
    return {"Finished": EXIT_FINISHED, "Failed": EXIT_USER_ERROR, "Drained": EXIT_DRAINED}[
        progress.phase
    ]


if __name__ == "__main__":
    sys.exit(main())
