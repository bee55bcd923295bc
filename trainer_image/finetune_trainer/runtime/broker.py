"""The broker: owns the records and decides what each free slot does next.

It runs as an actor without CPUs on Ray's head. A decision holds the turn until it is in storage, so every
decision sees all earlier ones, and a slot gets only what is already recorded. Writes run on a thread: while
one waits for storage, the broker still answers questions and takes reports.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.combinations import Params
from finetune_api.limits import limits_of
from finetune_api.search import Budget
from finetune_api.status import Findings, Limits
from finetune_trainer.errors import ToldToStop
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import RecordLog, last_term
from finetune_trainer.search.decisions import (
    most_at_work,
    next_item,
    reopening,
    search_ending,
    starting,
)
from finetune_trainer.search.items import (
    AtWork,
    Decision,
    End,
    RefitItem,
    Release,
    TrainItem,
    Wait,
)
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.results import findings, table, write_tables
from finetune_trainer.search.state import DRAINING, StudyState
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import CHECKPOINTS, REFIT_CHECKPOINT
from finetune_trainer.storage.locations import shown
from finetune_trainer.storage.retries import Retries, gist
from finetune_trainer.storage.waits import RECORDS, Waits

SLOW_SECONDS = 15.0
"""A request to storage that takes longer has no answer: a network disk hangs instead of refusing."""

TERM_SECONDS = 10.0
"""How often, at least, a driver checks whether a later one has begun."""

log = logging.getLogger("finetune.broker")


@dataclass(frozen=True)
class Snapshot:
    """Where the study stands; `outcome` once there is nothing left to do."""

    findings: Findings
    refitting: bool
    """Whether the winner is being trained again, or has been."""

    outcome: End | None
    torn: list[str]
    waiting: str = ""
    """Why the study, or part of it, waits for storage; empty if nothing does."""

    at_work: tuple[AtWork, ...] = ()
    """What slots are working on."""

    judged_by: Limits | None = None
    """The limits with which it was decided that the search is over; None while it goes on."""


class Broker:
    """Hands out items, takes reports, keeps the log."""

    _storage: Storage
    _log: RecordLog

    def __init__(
        self,
        problem: Problem,
        budget: Budget,
        storage: str,
        term: int,
        warnings: tuple[str, ...] = (),
        releases: bool = False,
        retry: str = "",
    ) -> None:
        """Nothing is read or written before `begin`; the folder at `storage` must be claimed.

        `releases` says whether a slot that is no longer needed gives up its place, `retry` the value with which
        somebody asked for a retry.
        """
        self._location, self._term = storage, term
        self._state = StudyState(problem)
        self._begun = False
        self._torn: list[str] = []
        self._warnings = warnings
        self._releases = releases
        self._asking: set[str] = set()
        """Slots that are asking what to do next."""

        self._progress: dict[str, str] = {}
        """Slot → what it is busy with until its next report."""

        self._troubles: dict[str, str] = {}
        """Field of the spec → what is wrong there now that does not harm the search."""

        self._waits = Waits()
        self._asked_storage: float | None = None
        """When the request that storage has not answered yet was made, by the monotonic clock."""

        self._abandoned = ""
        """What the broker was waiting for when it was told to end; from then on nothing is recorded."""

        self._looked_at_terms = -math.inf
        self._budget = budget
        self._retry = retry
        self._judged_by: Limits | None = None
        self._nothing_to_retry = False
        self._draining = False
        self._recalled = False
        self._outcome: End | None = None
        self._turn = asyncio.Lock()
        self._writer = ThreadPoolExecutor(1)
        self._changed = asyncio.Event()
        self._chores: set[asyncio.Task[None]] = set()

    async def begin(self) -> bool:
        """Read the records and begin the term; False if it was told to end before that was possible."""
        loop = asyncio.get_running_loop()

        def waits(message: str) -> None:
            loop.call_soon_threadsafe(self._hear, RECORDS, message)

        retries = Retries(waits, lambda: self._draining)
        try:
            async with self._turn:
                await self._on_storage(self._open, retries)
        except ToldToStop as error:
            self._abandon(error)
            return False
        self._begun = True
        return True

    def _open(self, retries: Retries) -> None:
        self._storage = Storage.open(self._location, retries)
        self._log, history = RecordLog.start(self._storage, self._term, time.time())
        now = time.time()
        self._state = StudyState.replayed(self._state.problem, history.events)
        reopened = reopening(self._state, history.events, self._budget, now, self._retry)
        if reopened is not None:
            self._storage.delete(
                CHECKPOINTS
            )  # of the last refit, if it was not deleted with the others
            self._log.append([reopened])
            self._state.apply(reopened)
        elif self._state.ended is not None:
            self._judged_by = self._limits()
            self._nothing_to_retry = bool(self._retry) and self._retry not in self._state.retries
        self._torn = history.torn
        self._sweep()

    def _limits(self) -> Limits:
        return limits_of(self._budget, self._state.problem.target)

    def _sweep(self) -> None:
        """Delete checkpoints that an earlier driver left and no trial needs."""
        needed = self._state.checkpoints()
        kept = (REFIT_CHECKPOINT, *needed)
        folders = {path.rpartition("/")[0] for path in self._storage.files(CHECKPOINTS)}
        for folder in folders:
            if not any(folder == path or folder.startswith(f"{path}/") for path in kept):
                self._delete(folder)

    def _delete(self, path: str) -> None:
        try:
            replace(self._storage, retries=None).delete(path)
        except OSError as error:  # only space is lost; the study goes on
            log.warning("could not delete %s: %s", path, error)

    async def _on_storage(self, act: Callable[..., None], *arguments: Any) -> None:
        """Run `act`, which uses storage, on the writer thread."""
        self._asked_storage = time.monotonic()
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, act, *arguments)
        finally:
            self._asked_storage = None
            self._hear(RECORDS, "")

    async def inherits(self) -> bool:
        """Whether the trials of earlier studies, for a warm start, are in the records."""
        return self._state.inherited is not None

    async def inherit(self, trials: list[tuple[Params, float]]) -> None:
        """Learn from other studies' trials, best first."""
        with suppress(ToldToStop):
            async with self._turn:
                await self._write([ev.Inherited(time.time(), trials=trials)])

    async def next(
        self, slot: str, report: list[ev.Event]
    ) -> TrainItem | RefitItem | Release | None:
        """Take the slot's report and give it its next item; None when everything is over.

        Waits while there is nothing to do yet but something in flight may change that.
        """
        self._hear(slot, "")
        self._asking.add(slot)
        try:
            while True:
                async with self._turn:
                    await self._take(slot, report)
                    if slot not in self._asking:  # lost while it waited
                        return Release()  # nobody would read or follow another answer
                    decision = await self._decide(slot)
                report = []
                if not isinstance(decision, Wait):
                    return decision
                await self._wait()
        except ToldToStop:  # what the slot would do now could not be recorded
            return None
        finally:
            self._asking.discard(slot)

    async def _take(self, slot: str, report: list[ev.Event]) -> None:
        self._progress.pop(slot, None)
        await self._write(event for event in report if self._owns(slot, event))

    async def _decide(self, slot: str) -> TrainItem | RefitItem | Release | Wait | None:
        """Decide what a slot does now, and record it; None when everything is over."""
        while True:
            if self._draining:
                decision: Decision = End("Drained")
            else:
                await self._end_if_due()
                worker = slot.partition("/")[0]
                decision = next_item(self._state, self._budget, self._waits.now(), worker)
            match decision:
                case TrainItem():
                    await self._start(slot, decision)
                    return decision
                case RefitItem():
                    self._recalled = False
                    await self._write(
                        [ev.RefitStarted(time.time(), trial=decision.trial, slot=slot)]
                    )
                    return decision
                case End() if self._state.ended is None and not self._draining:
                    continue  # the search has only just ended: record that first
                case End() if not self._in_flight():
                    if not self._draining:
                        self._outcome = self._told(decision)
                    self._wake()
                    return None
            if self._releases and not self._draining and await self._is_superfluous():
                return Release()
            return Wait()

    def _told(self, end: End) -> End:
        if not self._nothing_to_retry:
            return end
        return replace(
            end, message=f"{end.message}; nothing had failed that a retry could try again"
        )

    async def _is_superfluous(self) -> bool:
        """Whether there is one slot more than the study can use."""
        stopped = self._state.out_of_reach(self._budget)
        await self._write([ev.Stopped(time.time(), trial=number) for number in stopped])
        at_work = len(self._state.running) + (self._state.refit_slot is not None)
        there = at_work + len(self._asking)
        return there > most_at_work(self._state, self._budget, there)

    async def useful_slots(self, enough: int) -> float:
        """How many slots the study can use from here on, at most; of more than `enough`, at least that many."""
        if not self._releases:
            return math.inf
        return most_at_work(self._state, self._budget, enough)

    async def _start(self, slot: str, item: TrainItem) -> None:
        await self._write(starting(self._state, self._budget, item, slot, time.time()))

    def _in_flight(self) -> bool:
        return bool(self._state.running) or self._state.refit_slot is not None

    def _owns(self, slot: str, event: ev.Event) -> bool:
        if isinstance(event, ev.SlotReady):
            return True
        # A slot that was declared lost may still report; its trial belongs to another slot by now.
        if isinstance(event, ev.RefitDone | ev.RefitRequeued | ev.EnsembleJudged):
            return self._state.refit_slot == slot
        run = self._state.trials[getattr(event, "trial", -1)].runs[getattr(event, "run", 0)]
        return run.status == "Running" and run.slot == slot

    async def _write(self, events: Iterable[ev.Event]) -> None:
        """Store the events, then apply them to the state; only for the holder of the turn.

        Waits for storage. Raises ToldToStop if that wait, or an earlier one, was cut short.
        """
        written = list(events)
        if self._abandoned:
            raise ToldToStop(self._abandoned)
        if not written:
            return
        stood_still = self._waits.unrecorded
        if stood_still >= 1:
            written.insert(0, ev.Waited(time.time(), seconds=stood_still))
        try:
            await self._on_storage(self._append, written)
        except ToldToStop as error:
            self._abandon(error)
            raise
        except OSError:  # a lasting error; only a new term can tell what was written
            log.exception("the records cannot be written")
            os._exit(1)
        if stood_still >= 1:
            self._waits.unrecorded -= stood_still
        touched = self._touched(written)
        before = {path for number in touched for path in self._state.checkpoints_of(number)}
        for event in written:
            self._state.apply(event)
        after = {
            path for number in self._touched(written) for path in self._state.checkpoints_of(number)
        }
        saved = {event.path for event in written if isinstance(event, ev.Saved)}
        for path in (before | saved) - after:  # nobody will resume from them
            self._do(asyncio.to_thread(self._delete, path))
        self._hear(RECORDS, "")  # the set of slots at work has changed
        self._wake()

    def _append(self, events: list[ev.Event]) -> None:
        if time.monotonic() - self._looked_at_terms > TERM_SECONDS:
            self._look_at_terms()
        self._log.append(events)

    def _look_at_terms(self) -> None:
        """End this process if a later driver has begun.

        The later one's records count, not ours. But both share the checkpoints: it may need what we would delete.
        """
        self._looked_at_terms = time.monotonic()
        latest = last_term(self._storage)
        if latest > self._term:
            log.error("term %s is over: a driver of term %s has begun", self._term, latest)
            os._exit(1)

    def _abandon(self, error: ToldToStop) -> None:
        self._abandoned = gist(error)
        log.warning("told to end while %s", error)
        self._wake()

    def _touched(self, events: Iterable[ev.Event]) -> set[int]:
        """Trials whose checkpoints the events may make superfluous: their own, their parents' and, with PBT,
        the other steps of the same members: a step that begins releases the one before."""
        events, trials = list(events), self._state.trials
        known = len(trials)
        own = {n for event in events if (n := getattr(event, "trial", known)) < known}
        parents = {trials[number].parent for number in own}
        members = {trials[number].member for number in own}
        members |= {getattr(event, "member", None) for event in events}
        members.discard(None)
        # Only PBT looks at all trials, and it has few.
        steps = {trial.number for trial in trials if trial.member in members} if members else set()
        return own | steps | {number for number in parents if number is not None}

    def _do(self, chore: Coroutine[Any, Any, None]) -> None:
        """Run `chore` soon, in the background."""
        task = asyncio.get_running_loop().create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _end_if_due(self) -> None:
        """End the search if a budget is spent or nothing is left, and recall what is in flight."""
        if self._state.ended is None:
            ending = search_ending(self._state, self._budget, self._waits.now())
            if ending is not None:
                self._judged_by = self._limits()
                await self._write(
                    [ev.SearchEnded(time.time(), reason=ending.reason, message=ending.message)]
                )
                self._recalled = ending.reason not in DRAINING

    async def _end_between(self) -> None:
        """`_end_if_due`, as a chore."""
        with suppress(ToldToStop):
            async with self._turn:
                await self._end_if_due()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()

    async def epoch(self, slot: str, report: list[ev.Event]) -> None:
        """Take what a slot reports in the middle of an item."""
        with suppress(ToldToStop):
            async with self._turn:
                await self._take(slot, report)
                await self._end_if_due()

    async def recalled(self) -> None:
        """Return when slots should save their work and ask again."""
        while not (self._draining or self._recalled):
            await self._wait()

    async def lost(self, worker: str) -> None:
        """The process of a worker slot is gone: its work goes back into the queue."""
        self._waits.forget(worker)
        self._asking = {slot for slot in self._asking if not slot.startswith(f"{worker}/")}
        with suppress(ToldToStop):
            async with self._turn:
                await self._write(list(self._losses(worker)))

    def _losses(self, worker: str) -> Iterator[ev.Event]:
        now = time.time()
        for number, run in sorted(self._state.running):
            if self._state.trials[number].runs[run].slot.startswith(f"{worker}/"):
                yield ev.Requeued(now, trial=number, lost=True, run=run)
        if (self._state.refit_slot or "").startswith(f"{worker}/"):
            yield ev.RefitRequeued(now, lost=True)

    async def waits(self, slot: str, message: str) -> None:
        """A slot waits for storage; an empty message says that it goes on."""
        self._hear(slot, message)

    async def waiting(self) -> str:
        """Why the study, or part of it, waits for storage; empty if nothing does."""
        since = self._asked_storage
        hangs = since is not None and time.monotonic() - since > SLOW_SECONDS
        if hangs and RECORDS not in self._waits:
            self._hear(RECORDS, f"storage {shown(self._location)} does not answer; waiting")
        return self._abandoned or self._waits.message

    def _hear(self, who: str, message: str) -> None:
        running = self._state.running
        at_work = {self._state.trials[number].runs[run].slot for number, run in running}
        if self._state.refit_slot is not None:
            at_work.add(self._state.refit_slot)
        self._waits.hear(who, message, at_work)

    async def warn(self, field: str, message: str) -> None:
        """Show what is wrong at `field` of the spec without harm to the search; an empty message withdraws it."""
        self._troubles.pop(field, None)
        if message:
            self._troubles[field] = message

    async def drain(self) -> None:
        """Hand out nothing more; slots save and stop."""
        self._draining = True
        self._wake()

    async def snapshot(self, budget: Budget, target: float | None) -> Snapshot:
        """Where the study stands, with budget and target as they are now. Never waits for storage."""
        self._budget = budget
        self._state.problem = replace(self._state.problem, target=target)
        waiting = await self.waiting()
        if not self._begun:
            return Snapshot(Findings(), False, None, [], waiting)
        # The holder of the turn checks by itself whether the search is over.
        if not self._turn.locked() and search_ending(self._state, budget, self._waits.now()):
            self._do(self._end_between())
        self._wake()
        troubles = (f"{field}: {what}" for field, what in self._troubles.items())
        warnings = (*troubles, *self._looks(), *self._warnings)
        found = findings(self._state, budget, self._storage, self._waits.now(), warnings)
        refitting = self._state.refit_slot is not None or self._state.refit is not None
        outcome = None if self._abandoned else self._outcome
        judged_by = None if self._state.ended is None else self._judged_by
        return Snapshot(
            found, refitting, outcome, self._torn, waiting, self._at_work(), judged_by=judged_by
        )

    def _looks(self) -> Iterator[str]:
        """That test rows were seen before the search went on: their values are not those of a single look."""
        again = self._state.tests - (self._state.refit is not None)
        if again:
            times = "once" if again == 1 else f"{again} times"
            yield f"the search went on after its end: the test rows had been seen {times} before"

    def _at_work(self) -> tuple[AtWork, ...]:
        trials = self._state.trials
        return tuple(
            replace(one, doing=self._progress.get(trials[one.trial].runs[one.run].slot, ""))
            for one in self._state.at_work()
        )

    async def progress(self, slot: str, message: str) -> None:
        """What a slot is busy with until it reports."""
        self._progress[slot] = message

    async def write_results(self) -> None:
        """Write the tables of trials; when the study is over, remove what only a resume would need.

        Waits for storage. If told to end meanwhile, it leaves them to a later driver.
        """
        try:
            async with self._turn:
                await self._on_storage(self._write_results)
        except ToldToStop as error:
            self._abandon(error)

    def _write_results(self) -> None:
        self._look_at_terms()
        write_tables(self._storage, table(self._state))
        if self._outcome is not None:
            self._storage.delete(CHECKPOINTS)
