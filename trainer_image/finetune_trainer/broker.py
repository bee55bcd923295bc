"""The broker: owns the records and decides what each free slot does next.

It runs as an actor without CPUs on Ray's head. Its methods run on one event loop, so every decision
sees all earlier ones. What it hands out is in storage before the slot has it.
"""

import asyncio
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.combinations import Params
from finetune_api.status import Findings
from finetune_api.study import Budget
from finetune_trainer.search import events as ev
from finetune_trainer.search.decisions import next_item, search_ending, starting
from finetune_trainer.search.items import End, RefitItem, TrainItem, Wait
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.records import RecordLog
from finetune_trainer.search.results import findings, table, write_tables
from finetune_trainer.search.state import DRAINING, StudyState
from finetune_trainer.search.storage import Storage

CHECKPOINTS = "checkpoints"
REFIT_CHECKPOINT = f"{CHECKPOINTS}/refit"

log = logging.getLogger("finetune.broker")


@dataclass(frozen=True)
class Snapshot:
    """Where the study stands; `outcome` once there is nothing left to do."""

    findings: Findings
    refitting: bool
    outcome: End | None
    torn: list[str]


class Broker:
    """Hands out items, takes reports, keeps the log."""

    def __init__(
        self,
        problem: Problem,
        budget: Budget,
        storage: str,
        term: int,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self._storage = Storage.open(storage)
        self._log, history = RecordLog.start(self._storage, term, time.time())
        self._state = StudyState.replayed(problem, history.events)
        self._torn = history.torn
        self._warnings = warnings
        self._troubles: dict[str, str] = {}
        """Field of the spec → what is wrong there now, without harm to the search."""

        self._budget = budget
        self._draining = False
        self._recalled = False
        self._outcome: End | None = None
        self._changed = asyncio.Event()
        self._sweep()
        self._chores: set[asyncio.Task[None]] = set()

    def _sweep(self) -> None:
        """Delete checkpoints that an earlier driver left and no trial needs."""
        needed = self._state.checkpoints()
        kept = (REFIT_CHECKPOINT, *needed)
        folders = {path.rpartition("/")[0] for path in self._storage.files(CHECKPOINTS)}
        for folder in folders:
            if not any(folder == path or folder.startswith(f"{path}/") for path in kept):
                self._storage.delete(folder)

    async def inherits(self) -> bool:
        """Whether what warm starts bring is in the records."""
        return self._state.inherited is not None

    async def inherit(self, trials: list[tuple[Params, float]]) -> None:
        """Learn from other studies' trials, best first."""
        self._write([ev.Inherited(time.time(), trials)])

    async def next(self, slot: str, report: list[ev.Event]) -> TrainItem | RefitItem | None:
        """Take the slot's report and give it its next item; None when everything is over.

        Waits while there is nothing to do but something in flight may change that.
        """
        self._write(event for event in report if self._owns(slot, event))
        while True:
            if self._draining:
                decision: object = End("Drained")
            else:
                self._end_if_due()
                worker = slot.partition("/")[0]
                decision = next_item(self._state, self._budget, time.time(), worker)
            match decision:
                case TrainItem():
                    self._start(slot, decision)
                    return decision
                case RefitItem():
                    self._recalled = False
                    self._write([ev.RefitStarted(time.time(), decision.trial, slot)])
                    return decision
                case End() if self._state.ended is None and not self._draining:
                    continue  # it has just come about: first into the records with it
                case End() if not self._in_flight():
                    if not self._draining:
                        self._outcome = decision
                    self._wake()
                    return None
                case End() | Wait():
                    await self._wait()

    def _start(self, slot: str, item: TrainItem) -> None:
        self._write(starting(self._state, self._budget, item, slot, time.time()))

    def _in_flight(self) -> bool:
        return bool(self._state.running) or self._state.refit_slot is not None

    def _owns(self, slot: str, event: ev.Event) -> bool:
        if isinstance(event, ev.SlotReady):
            return True
        # A slot that was given up for lost may still report; its trial is somebody else's by now.
        if isinstance(event, ev.RefitDone | ev.RefitRequeued | ev.EnsembleJudged):
            return self._state.refit_slot == slot
        run = self._state.trials[getattr(event, "trial", -1)].runs[getattr(event, "run", 0)]
        return run.status == "Running" and run.slot == slot

    def _write(self, events: Iterable[ev.Event]) -> None:
        """Make the events durable, then part of the state. Raises OSError if storage refuses."""
        written = list(events)
        if not written:
            return
        try:
            self._log.append(written)
        except OSError:
            # The write may or may not have landed: only a new term can tell. The driver sees us go.
            log.exception("the records cannot be written")
            os._exit(1)
        touched = self._touched(written)
        before = {path for number in touched for path in self._state.checkpoints_of(number)}
        for event in written:
            self._state.apply(event)
        after = {
            path for number in self._touched(written) for path in self._state.checkpoints_of(number)
        }
        saved = {event.path for event in written if isinstance(event, ev.Saved)}
        for path in (before | saved) - after:  # nobody will resume from them
            self._delete(path)
        self._wake()

    def _touched(self, events: Iterable[ev.Event]) -> set[int]:
        """Trials whose checkpoints the events may make superfluous: their own, and their parents'."""
        known = len(self._state.trials)
        own = {n for event in events if (n := getattr(event, "trial", known)) < known}
        parents = {self._state.trials[number].parent for number in own}
        return own | {number for number in parents if number is not None}

    def _delete(self, path: str) -> None:
        async def delete() -> None:
            try:
                await asyncio.to_thread(self._storage.delete, path)
            except OSError as error:  # only space is lost; the study goes on
                log.warning("could not delete %s: %s", path, error)

        task = asyncio.get_running_loop().create_task(delete())
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    def _end_if_due(self) -> None:
        """End the search if a budget is spent or nothing is left, and call back what is in flight."""
        if self._state.ended is None:
            ending = search_ending(self._state, self._budget, time.time())
            if ending is not None:
                self._write([ev.SearchEnded(time.time(), ending.reason, ending.message)])
                self._recalled = ending.reason not in DRAINING

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()

    async def epoch(self, slot: str, report: list[ev.Event]) -> None:
        """Take what a slot has to say in the middle of an item."""
        self._write(event for event in report if self._owns(slot, event))
        self._end_if_due()

    async def recalled(self) -> None:
        """Return when slots shall save what they do and ask again."""
        while not (self._draining or self._recalled):
            await self._wait()

    async def lost(self, worker: str) -> None:
        """The process of a worker slot is gone: what it did goes back into the queue."""
        now = time.time()
        self._write(
            ev.Requeued(now, number, lost=True, run=run)
            for number, run in sorted(self._state.running)
            if self._state.trials[number].runs[run].slot.startswith(f"{worker}/")
        )
        if (self._state.refit_slot or "").startswith(f"{worker}/"):
            self._write([ev.RefitRequeued(now, lost=True)])

    async def warn(self, field: str, message: str) -> None:
        """Something is wrong at `field` of the spec, without harm to the search; an empty message takes it back."""
        self._troubles.pop(field, None)
        if message:
            self._troubles[field] = message

    async def drain(self) -> None:
        """Hand out nothing more; slots save and stop."""
        self._draining = True
        self._wake()

    async def snapshot(self, budget: Budget) -> Snapshot:
        """Where the study stands, under the budget as it is now."""
        self._budget = budget
        self._end_if_due()
        self._wake()
        troubles = (f"{field}: {what}" for field, what in self._troubles.items())
        warnings = (*troubles, *self._warnings)
        found = findings(self._state, budget, self._storage, time.time(), warnings)
        return Snapshot(found, self._state.refit_slot is not None, self._outcome, self._torn)

    async def write_results(self) -> None:
        """Write the tables of trials; when the study is over, remove what only a resume would need."""
        write_tables(self._storage, table(self._state))
        if self._outcome is not None:
            self._storage.delete(CHECKPOINTS)
