"""The search over a Python function: Ray on this machine, a broker, slots, and what a person sees of it meanwhile."""

import _thread
import logging
import threading
from collections.abc import Callable

import ray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from finetune_api.combinations import Params
from finetune_api.search import Budget
from finetune_trainer.environment import SlotResources
from finetune_trainer.runtime.broker import Snapshot
from finetune_trainer.runtime.client import BrokerClient
from finetune_trainer.runtime.local_sink import LocalSink
from finetune_trainer.runtime.progress import document
from finetune_trainer.runtime.ray_tune import run_slots, start_broker, start_ray
from finetune_trainer.search.decisions import FAILURES
from finetune_trainer.search.problem import Problem
from finetune_trainer.worker.function_worker import Functions, FunctionWorker

_POLL_SECONDS = 1.0

log = logging.getLogger("finetune.library")


def search(
    problem: Problem,
    budget: Budget,
    functions: Functions,
    sink: LocalSink,
    term: int,
    slots: int,
    inherited: Callable[[], list[tuple[Params, float]]] | None,
    progress: bool,
    retry: str,
) -> None:
    """Search until there is nothing left to do, on a Ray that runs already or on one of its own.

    `inherited` makes the trials of a warm start, which a search asks for once. `retry` is what asks for another try.
    """
    own = not ray.is_initialized()
    if own:
        start_ray(slots)
    try:
        broker = start_broker(problem, budget, functions.storage, term, retry=retry)
        try:
            with _Watch(broker, budget, problem.target, progress, _Publisher(sink, term)):
                broker.begin().get()
                if inherited is not None and not broker.inherits().get():
                    broker.inherit(inherited()).get()
                share = SlotResources(1, functions.gpus)
                run_slots(broker, FunctionWorker, functions, slots, share)
                broker.write_results().get()
        finally:
            broker.end()
    finally:
        if own:
            ray.shutdown()


class _Publisher:
    """Says where the search stands, for `finetune ls` and the live page."""

    def __init__(self, sink: LocalSink, term: int) -> None:
        self._sink, self._term = sink, term
        self._said: object = None

    def publish(self, snapshot: Snapshot, last: bool) -> None:
        """Publish what has changed; `last` when nobody works any more."""
        outcome = snapshot.outcome
        reason, message = "Running", snapshot.waiting
        phase = "Refitting" if snapshot.refitting else "Searching"
        if last and outcome is None:
            phase, reason, message = "Drained", "SuspendRequested", "interrupted"
        elif last and outcome is not None:
            phase = "Failed" if outcome.reason in FAILURES else "Finished"
            reason, message = outcome.reason, outcome.message
        elif message:
            reason = "StorageUnavailable"
        said = (phase, reason, message, snapshot.findings)
        if said != self._said:
            self._said = said
            says = {"phase": phase, "reason": reason, "message": message[:1024]}
            self._sink.publish(document(self._sink, "local", self._term, snapshot.findings, **says))


class _Watch:
    """Shows how far the search has got, and what it waits for; interrupts it if the broker is gone."""

    def __init__(
        self,
        broker: BrokerClient,
        budget: Budget,
        target: float | None,
        shown: bool,
        publisher: "_Publisher",
    ) -> None:
        self._broker, self._limits, self._publisher = broker, (budget, target), publisher
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, disable=not shown)
        self._task = self._progress.add_task("trials", total=None)
        self._stop = threading.Event()
        self._shown = shown
        self._waiting = ""
        self._lost = ""
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> None:
        self._progress.start()
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.stop()
        if kind is KeyboardInterrupt and self._lost:
            raise RuntimeError(f"the records cannot be written: {self._lost}")

    def _loop(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(_POLL_SECONDS)
            try:
                snapshot = self._broker.snapshot(*self._limits).get()
            except ray.exceptions.RayError as error:
                self._lost = str(error)
                if not last:  # the main thread is inside Ray Tune
                    _thread.interrupt_main()
                return
            self._publisher.publish(snapshot, last)
            self._tell_wait(snapshot.waiting)
            counts, best = snapshot.findings.trials, snapshot.findings.best
            ended = counts.completed + counts.stopped + counts.diverged + counts.failed
            said = "refit" if snapshot.refitting else "trials"
            if best is not None:
                said += f", best {best.value:.6g} (trial {best.trial})"
            self._progress.update(
                self._task, completed=ended, total=counts.planned, description=said
            )

    def _tell_wait(self, waiting: str) -> None:
        if waiting == self._waiting:
            return
        self._waiting = waiting
        said = waiting or "storage is back, the search goes on"
        if self._shown:
            self._progress.console.print(said)
        else:
            log.warning(said)
