"""The broker between slots: who is believed, who waits, what is deleted, and when it lets go."""

import asyncio
import math
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from finetune_api.limits import limits_of
from finetune_api.study import StudySpec
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.records.log import RecordLog
from finetune_trainer.runtime import broker as brokers
from finetune_trainer.runtime.broker import Broker
from finetune_trainer.search.items import RefitItem, Release, TrainItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import CHECKPOINTS, REFIT_CHECKPOINT
from tests.records import events_of
from tests.trainer.search_studies import ASHA, epoch_done, study_spec

T = TypeVar("T")

ONE_EPOCH = {"hyperparameters": {"epochs": 1}}
A, B = "worker1/aaaa", "worker2/bbbb"


async def begun(folder: Path, spec: StudySpec, term: int = 1, **options: Any) -> Broker:
    """The broker of that study, which has begun."""
    claim(Storage.open(str(folder)), parts_of(spec))
    broker = Broker(Problem.of(spec), spec.budget, str(folder), term, **options)
    assert await broker.begin()
    return broker


async def soon(awaited: Awaitable[T]) -> T:
    """What it returns; nothing here takes long."""
    return await asyncio.wait_for(awaited, 20)


async def train(broker: Broker, slot: str, report: list[ev.Event] | None = None) -> TrainItem:
    item = await soon(broker.next(slot, report or []))
    assert isinstance(item, TrainItem)
    return item


async def waits(call: "asyncio.Task[Any]") -> bool:
    """Whether it still waits after all that can be done was done."""
    await asyncio.sleep(0.05)
    return not call.done()


def reached(item: TrainItem, value: float = 0.5) -> list[ev.Event]:
    """The report of a slot that did all of it."""
    last = item.to_epoch
    return [
        epoch_done(item.trial, last, value, run=item.run),
        ev.Reached(0.0, trial=item.trial, finished=True, run=item.run),
    ]


def saved(folder: Path, item: TrainItem, name: str) -> ev.Saved:
    """A checkpoint, and that it is there."""
    path = f"{CHECKPOINTS}/{item.trial}/{name}"
    Storage.open(str(folder)).write(f"{path}/state.json", b"{}")
    return ev.Saved(0.0, trial=item.trial, epoch=item.to_epoch, path=path, run=item.run)


def kinds(folder: Path) -> list[str]:
    return [event.kind for event in events_of(folder)]


async def test_a_search_that_goes_on_after_its_end_says_that_the_test_rows_were_seen(
    tmp_path: Path,
) -> None:
    spec = study_spec(**ONE_EPOCH, budget={"maxTrials": 1})
    broker = await begun(tmp_path, spec)
    refit = await soon(broker.next(A, reached(await train(broker, A))))
    assert isinstance(refit, RefitItem)
    assert (
        await soon(
            broker.next(
                A, [ev.RefitDone(0.0, trial=0, path="model", test_metrics={"accuracy": 0.5})]
            )
        )
        is None
    )
    assert (await broker.snapshot(spec.budget, None)).findings.warnings == []
    Storage.open(str(tmp_path)).write(f"{REFIT_CHECKPOINT}/state.json", b"{}")

    more = study_spec(**ONE_EPOCH, budget={"maxTrials": 2})
    second = await begun(tmp_path, more, term=2)
    assert not Storage.open(str(tmp_path)).files(CHECKPOINTS)
    (warning,) = (await second.snapshot(more.budget, None)).findings.warnings
    assert "the test rows had been seen once before" in warning
    refit = await soon(second.next(A, reached(await train(second, A), 0.9)))
    assert isinstance(refit, RefitItem)
    assert refit.trial == 1
    assert (
        await soon(
            second.next(
                A, [ev.RefitDone(0.0, trial=1, path="model", test_metrics={"accuracy": 0.6})]
            )
        )
        is None
    )
    found = (await second.snapshot(more.budget, None)).findings
    assert found.trials.completed == 2
    assert len(found.warnings) == 1


async def test_broker_says_with_which_limits_the_search_ended(tmp_path: Path) -> None:
    """A budget that is raised while the winner is trained again comes too late."""
    spec = study_spec(**ONE_EPOCH, budget={"maxTrials": 1})
    more = study_spec(budget={"maxTrials": 2}).budget
    broker = await begun(tmp_path, spec)
    assert (await broker.snapshot(spec.budget, 0.99)).judged_by is None
    refit = await soon(broker.next(A, reached(await train(broker, A))))
    assert isinstance(refit, RefitItem)
    assert (await broker.snapshot(more, None)).judged_by == limits_of(spec.budget, 0.99)
    assert (
        await soon(broker.next(A, [ev.RefitDone(0.0, trial=0, path="model", test_metrics={})]))
        is None
    )
    assert (await broker.snapshot(more, None)).judged_by == limits_of(spec.budget, 0.99)

    same = await begun(tmp_path, study_spec(**ONE_EPOCH, budget={"maxTrials": 1}), term=2)
    assert (await same.snapshot(more, None)).judged_by == limits_of(spec.budget, None)


async def test_retry_with_nothing_to_try_again_is_told(tmp_path: Path) -> None:
    spec = study_spec(**ONE_EPOCH, budget={"maxTrials": 1}, refit=False)
    broker = await begun(tmp_path, spec)
    assert await soon(broker.next(A, reached(await train(broker, A)))) is None
    for retry, told in (("", False), ("1", True)):
        again = await begun(tmp_path, spec, term=2 + told, retry=retry)
        assert await soon(again.next(A, [])) is None
        outcome = (await again.snapshot(spec.budget, None)).outcome
        assert outcome is not None
        assert outcome.reason == "SearchFinished"
        assert ("nothing had failed" in outcome.message) == told


# Who is believed.

OF_A_RUN: list[ev.Event] = [
    epoch_done(0, 1, 0.9),
    ev.Saved(0.0, trial=0, epoch=1, path=f"{CHECKPOINTS}/0/late"),
    ev.Reached(0.0, trial=0, finished=True),
    ev.Requeued(0.0, trial=0),
    ev.Failed(0.0, trial=0, failure_class="UserError", message="why"),
]
OF_A_REFIT: list[ev.Event] = [
    ev.RefitDone(0.0, trial=0, path="model"),
    ev.RefitRequeued(0.0, message="Internal: why"),
    ev.EnsembleJudged(0.0, trials=[0, 1], method="Mean", value=0.9, best_single=0.5, kept=True),
]


@pytest.mark.parametrize("stranger", [B, "worker1/cccc"], ids=["worker", "process"])
@pytest.mark.parametrize("event", OF_A_RUN, ids=lambda event: event.kind)
async def test_only_the_slot_of_a_run_is_believed_about_it(
    event: ev.Event, stranger: str, tmp_path: Path
) -> None:
    """Another worker, and another process in the place of the one that has it."""
    broker = await begun(tmp_path, study_spec(**ONE_EPOCH))
    await train(broker, A)
    before = kinds(tmp_path)
    await soon(broker.epoch(stranger, [event]))
    assert kinds(tmp_path) == before
    await soon(broker.epoch(A, [event]))
    assert kinds(tmp_path) == [*before, event.kind]


async def test_a_slot_given_up_for_lost_is_not_believed_any_more(tmp_path: Path) -> None:
    """Its trial is with another slot, or waits for one."""
    broker = await begun(tmp_path, study_spec(**ONE_EPOCH))
    item = await train(broker, A)
    await soon(broker.lost("worker1"))
    await soon(broker.epoch(A, reached(item, 0.9)))
    again = await train(broker, B)
    assert (again.trial, again.seed) == (item.trial, item.seed)
    await soon(broker.epoch(A, reached(item, 0.9)))
    assert kinds(tmp_path) == ["term", "proposed", "started", "requeued", "started"]
    await train(broker, B, reached(again, 0.4))
    assert [e.value for e in events_of(tmp_path) if isinstance(e, ev.EpochDone)] == [0.4]


async def test_what_a_slot_had_to_say_after_its_run_ended_is_not_recorded(tmp_path: Path) -> None:
    broker = await begun(tmp_path, study_spec(**ONE_EPOCH))
    item = await train(broker, A)
    await train(broker, A, reached(item))
    before = kinds(tmp_path)
    await soon(broker.epoch(A, [epoch_done(item.trial, 1, 0.9)]))
    assert kinds(tmp_path) == before


@pytest.mark.parametrize("event", OF_A_REFIT, ids=lambda event: event.kind)
async def test_only_the_slot_of_the_refit_is_believed_about_it(
    event: ev.Event, tmp_path: Path
) -> None:
    broker = await begun(tmp_path, study_spec(**ONE_EPOCH, budget={"maxTrials": 1}))
    item = await train(broker, A)
    assert isinstance(await soon(broker.next(A, reached(item))), RefitItem)
    before = kinds(tmp_path)
    await soon(broker.epoch(B, [event]))
    assert kinds(tmp_path) == before
    await soon(broker.epoch(A, [event]))
    assert kinds(tmp_path) == [*before, event.kind]


async def test_any_slot_may_say_that_it_is_ready(tmp_path: Path) -> None:
    broker = await begun(tmp_path, study_spec())
    await soon(broker.epoch(B, [ev.SlotReady(0.0, slot=B, data="rows", setting={})]))
    assert kinds(tmp_path) == ["term", "slot"]


# Who waits.


async def test_what_is_handed_out_is_in_storage_before(tmp_path: Path) -> None:
    broker = await begun(tmp_path, study_spec(**ONE_EPOCH))
    item = await train(broker, A)
    started = events_of(tmp_path)[-1]
    assert isinstance(started, ev.Started)
    told = (started.trial, started.slot, started.to_epoch, started.run, started.seed)
    assert told == (item.trial, A, item.to_epoch, item.run, item.seed)


async def test_a_slot_without_work_waits_for_what_the_others_bring(tmp_path: Path) -> None:
    broker = await begun(tmp_path, study_spec(**ONE_EPOCH, budget={"maxTrials": 1}))
    item = await train(broker, A)
    waiting = asyncio.create_task(broker.next(B, []))
    assert await waits(waiting)
    assert isinstance(await soon(broker.next(A, reached(item))), RefitItem)
    assert await waits(waiting)
    await soon(broker.next(A, [ev.RefitDone(0.0, trial=item.trial, path="model")]))
    assert await soon(waiting) is None


async def test_what_a_lost_slot_did_goes_to_one_that_waits(tmp_path: Path) -> None:
    spec = study_spec(**ONE_EPOCH, budget={"maxTrials": 1})
    broker = await begun(tmp_path, spec)
    item = await train(broker, A)
    waiting = asyncio.create_task(broker.next(B, []))
    assert await waits(waiting)
    await soon(broker.lost("worker"))  # is no name of a worker, but the beginning of both
    assert await waits(waiting)
    await soon(broker.lost("worker1"))
    found = await soon(waiting)
    assert isinstance(found, TrainItem)
    assert found.trial == item.trial


async def test_a_lost_refit_goes_to_one_that_waits(tmp_path: Path) -> None:
    broker = await begun(tmp_path, study_spec(**ONE_EPOCH, budget={"maxTrials": 1}))
    item = await train(broker, A)
    assert isinstance(await soon(broker.next(A, reached(item))), RefitItem)
    waiting = asyncio.create_task(broker.next(B, []))
    assert await waits(waiting)
    await soon(broker.lost("worker1"))
    assert isinstance(await soon(waiting), RefitItem)
    requeued = [event for event in events_of(tmp_path) if isinstance(event, ev.RefitRequeued)]
    assert [event.lost for event in requeued] == [True]


async def test_a_slot_lost_while_it_waits_is_given_nothing(tmp_path: Path) -> None:
    spec = study_spec(**ONE_EPOCH, budget={"maxTrials": 1})
    broker = await begun(tmp_path, spec)
    await train(broker, A)
    waiting = asyncio.create_task(broker.next(B, []))
    assert await waits(waiting)
    await soon(broker.lost("worker2"))
    await soon(broker.lost("worker1"))
    assert isinstance(await soon(waiting), Release)
    assert kinds(tmp_path)[-1] == "requeued"


async def test_a_raised_limit_wakes_who_waits(tmp_path: Path) -> None:
    spec = study_spec(**ONE_EPOCH, budget={"maxTrials": 9, "maxParallelTrials": 1})
    broker = await begun(tmp_path, spec)
    await train(broker, A)
    waiting = asyncio.create_task(broker.next(B, []))
    assert await waits(waiting)
    await soon(broker.snapshot(spec.budget.model_copy(update={"max_parallel_trials": 2}), None))
    assert isinstance(await soon(waiting), TrainItem)


# When it lets go.


async def test_told_to_end_it_calls_back_and_hands_out_nothing_more(tmp_path: Path) -> None:
    broker = await begun(tmp_path, study_spec())
    item = await train(broker, A)
    recalled = asyncio.create_task(broker.recalled())
    waiting = asyncio.create_task(
        broker.next(B, [ev.SlotReady(0.0, slot=B, data="rows", setting={})])
    )
    other = await soon(waiting)
    assert isinstance(other, TrainItem)
    assert await waits(recalled)
    await soon(broker.drain())
    await soon(recalled)
    ending = asyncio.create_task(broker.next(B, [ev.Requeued(0.0, trial=other.trial)]))
    assert await waits(ending), "another may still save"
    assert await soon(broker.next(A, [ev.Requeued(0.0, trial=item.trial)])) is None
    assert await soon(ending) is None
    snapshot = await soon(broker.snapshot(study_spec().budget, None))
    assert snapshot.outcome is None, "told to end is no end of the study"


async def test_told_to_end_nobody_leaves_before_the_refit_is_saved(tmp_path: Path) -> None:
    """The first slot that is told that it is over ends all of them."""
    broker = await begun(tmp_path, study_spec(**ONE_EPOCH, budget={"maxTrials": 1}))
    item = await train(broker, A)
    assert isinstance(await soon(broker.next(A, reached(item))), RefitItem)
    waiting = asyncio.create_task(broker.next(B, []))
    assert await waits(waiting)
    await soon(broker.drain())
    assert await waits(waiting)
    assert await soon(broker.next(A, [ev.RefitRequeued(0.0)])) is None
    assert await soon(waiting) is None


async def test_a_target_calls_back_what_runs_and_a_budget_lets_it_go_on(tmp_path: Path) -> None:
    for name, spec, is_called_back in (
        ("target", study_spec(objective={"metric": "accuracy", "target": 0.5}), True),
        ("budget", study_spec(budget={"maxTrials": 9, "maxGpuHours": 0.5 / 3600}), False),
    ):
        broker = await begun(tmp_path / name, spec)
        item = await train(broker, A)
        recalled = asyncio.create_task(broker.recalled())
        await train(broker, B)
        await soon(broker.epoch(A, [epoch_done(item.trial, 1, 0.5)]))
        assert kinds(tmp_path / name)[-1] == "ended"
        if is_called_back:
            await soon(recalled)
        else:
            assert await waits(recalled)
            recalled.cancel()


async def test_a_refit_is_not_called_back_with_the_search(tmp_path: Path) -> None:
    broker = await begun(tmp_path, study_spec(objective={"metric": "accuracy", "target": 0.5}))
    item = await train(broker, A)
    await soon(broker.epoch(A, [epoch_done(item.trial, 1, 0.5)]))
    await soon(broker.recalled())
    assert isinstance(await soon(broker.next(A, [ev.Requeued(0.0, trial=item.trial)])), RefitItem)
    recalled = asyncio.create_task(broker.recalled())
    assert await waits(recalled)
    recalled.cancel()


@pytest.mark.parametrize("releases", [True, False])
async def test_a_slot_that_is_not_needed_any_more_gives_its_place_back_where_workers_go(
    releases: bool, tmp_path: Path
) -> None:
    spec = study_spec(**ONE_EPOCH, budget={"maxTrials": 2}, refit=False)
    broker = await begun(tmp_path, spec, releases=releases)
    assert await broker.useful_slots(9) == (2 if releases else math.inf)
    item = await train(broker, A)
    await train(broker, B)
    more = asyncio.create_task(broker.next("worker3/cccc", []))
    done = asyncio.create_task(broker.next(A, reached(item)))
    for call in (more, done):
        if releases:
            assert isinstance(await soon(call), Release)
        else:
            assert await waits(call)
            call.cancel()


# What is deleted.


async def test_a_checkpoint_goes_when_nobody_will_resume_from_it(tmp_path: Path) -> None:
    broker = await begun(tmp_path, study_spec())
    item = await train(broker, A)
    first, second = saved(tmp_path, item, "1"), saved(tmp_path, item, "2")
    await soon(broker.epoch(A, [first]))
    assert (tmp_path / first.path).exists()
    await soon(broker.epoch(A, [second]))
    await gone(tmp_path / first.path)
    assert (tmp_path / second.path).exists()
    await train(broker, A, reached(item))
    await gone(tmp_path / second.path)


async def test_a_checkpoint_that_comes_with_the_end_of_its_trial_goes_at_once(
    tmp_path: Path,
) -> None:
    broker = await begun(tmp_path, study_spec())
    item = await train(broker, A)
    late = saved(tmp_path, item, "late")
    await train(broker, A, [late, ev.Reached(0.0, trial=item.trial, finished=True)])
    await gone(tmp_path / late.path)


async def test_a_step_of_a_population_has_its_parents_checkpoint_until_it_has_its_own(
    tmp_path: Path,
) -> None:
    search = {"algorithm": "PBT", "seed": 7, "populationSize": 2, "perturbationInterval": 1}
    spec = study_spec(search=search, hyperparameters={"epochs": 3}, budget={})
    broker = await begun(tmp_path, spec)
    item = await train(broker, A)
    inherited: list[Path] = []
    while True:
        if item.checkpoint is not None:
            inherited.append(tmp_path / item.checkpoint)
            assert inherited[-1].exists()
        own = saved(tmp_path, item, "own")
        done = epoch_done(item.trial, item.to_epoch, item.trial / 10)
        report = [done, own, ev.Reached(0.0, trial=item.trial, finished=item.to_epoch == 3)]
        answer = await soon(broker.next(A, report))
        if not isinstance(answer, TrainItem):
            break
        item = answer
    assert len(inherited) >= 3
    for path in (inherited[-1], tmp_path / own.path):
        await gone(path)


async def test_a_member_that_takes_over_from_another_lets_go_of_its_own_step_before(
    tmp_path: Path,
) -> None:
    search = {"algorithm": "PBT", "seed": 7, "populationSize": 2, "perturbationInterval": 1}
    spec = study_spec(search=search, hyperparameters={"epochs": 4}, budget={})
    broker = await begun(tmp_path, spec)
    item = await train(broker, A)
    saves: dict[int, Path] = {}
    took_over = 0
    while True:
        own = saved(tmp_path, item, "own")
        saves[item.trial] = tmp_path / own.path
        # The first member is always the worse one.
        done = epoch_done(item.trial, item.to_epoch, item.trial % 2 + item.to_epoch / 10)
        report = [done, own, ev.Reached(0.0, trial=item.trial, finished=item.to_epoch == 4)]
        answer = await soon(broker.next(A, report))
        if not isinstance(answer, TrainItem):
            break
        item = answer
        took_over += item.checkpoint is not None and not item.checkpoint.startswith(
            f"{CHECKPOINTS}/{item.trial - 2}/"
        )
    assert took_over
    for path in saves.values():
        await gone(path)


async def test_a_paused_trial_keeps_its_checkpoint_until_it_is_out_of_reach(tmp_path: Path) -> None:
    broker = await begun(tmp_path, study_spec(search=ASHA, budget={"maxTrials": 3}))
    paths = []
    item = await train(broker, A)
    for value in (0.3, 0.5, 0.4):
        kept = saved(tmp_path, item, "kept")
        paths.append(tmp_path / kept.path)
        report = [epoch_done(item.trial, 1, value), kept, ev.Reached(0.0, trial=item.trial)]
        item = await train(broker, A, report)
    assert (item.trial, item.checkpoint) == (1, f"{CHECKPOINTS}/1/kept")
    for path in (paths[0], paths[2]):
        await gone(path)
    assert paths[1].exists()


async def test_on_rungs_of_rows_nothing_is_kept(tmp_path: Path) -> None:
    """On more rows a trial begins anew: what a drained slot has saved serves only to the end of its rung."""
    search = {
        "algorithm": "Random",
        "scheduler": {"type": "ASHA", "resource": "Samples", "minResource": 10},
    }
    broker = await begun(tmp_path, study_spec(search=search))
    item = await train(broker, A)
    assert item.rows == 10
    kept = saved(tmp_path, item, "drained")
    await soon(broker.epoch(A, [epoch_done(item.trial, 1, 0.5), kept]))
    assert (tmp_path / kept.path).exists()
    more: list[ev.Event] = [epoch_done(item.trial, 9, 0.6), ev.Reached(0.0, trial=item.trial)]
    other = await train(broker, A, more)
    assert other.trial != item.trial
    await gone(tmp_path / kept.path)


async def test_a_new_broker_sweeps_what_no_trial_needs(tmp_path: Path) -> None:
    spec = study_spec()
    broker = await begun(tmp_path, spec)
    item = await train(broker, A)
    needed = saved(tmp_path, item, "needed")
    await soon(broker.epoch(A, [needed]))
    storage = Storage.open(str(tmp_path))
    left = (f"{CHECKPOINTS}/0/left", f"{CHECKPOINTS}/0/needed-not", f"{CHECKPOINTS}/7/of-nobody")
    for path in (*left, f"{REFIT_CHECKPOINT}/0-rows/1", f"{needed.path}/deeper"):
        storage.write(f"{path}/weights", b"x")
    await begun(tmp_path, spec, term=2)
    assert not any((tmp_path / path).exists() for path in left)
    assert (tmp_path / needed.path / "deeper" / "weights").exists()
    assert (tmp_path / REFIT_CHECKPOINT / "0-rows" / "1").exists()


@pytest.mark.parametrize("is_over", [True, False])
async def test_checkpoints_go_with_the_end_of_the_study_only(is_over: bool, tmp_path: Path) -> None:
    broker = await begun(tmp_path, study_spec(**ONE_EPOCH, budget={"maxTrials": 1}, refit=False))
    item = await train(broker, A)
    kept = saved(tmp_path, item, "kept")
    await soon(broker.epoch(A, [kept]))
    if is_over:
        assert await soon(broker.next(A, reached(item))) is None
    else:
        await soon(broker.drain())
        assert await soon(broker.next(A, [ev.Requeued(0.0, trial=item.trial)])) is None
    await soon(broker.write_results())
    assert (tmp_path / "results" / "trials.csv").exists()
    assert (tmp_path / CHECKPOINTS).exists() is not is_over


async def gone(path: Path) -> None:
    """Wait until it is; deleting is a chore."""
    for _ in range(2000):
        if not await asyncio.to_thread(path.exists):
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{path} is still there")


# What it tells.


async def test_before_it_has_begun_it_tells_only_that_it_waits(tmp_path: Path) -> None:
    spec = study_spec()
    broker = Broker(Problem.of(spec), spec.budget, str(tmp_path), 1)
    snapshot = await broker.snapshot(spec.budget, None)
    assert (snapshot.outcome, snapshot.refitting) == (None, False)
    assert snapshot.findings.trials.planned is None


async def test_troubles_come_before_warnings_and_can_be_taken_back(tmp_path: Path) -> None:
    spec = study_spec()
    broker = await begun(tmp_path, spec, warnings=("rows are empty",))
    await broker.warn("spec.tracking.mlflow", "refused")
    found = (await broker.snapshot(spec.budget, None)).findings.warnings
    assert found == ["spec.tracking.mlflow: refused", "rows are empty"]
    await broker.warn("spec.tracking.mlflow", "")
    assert (await broker.snapshot(spec.budget, None)).findings.warnings == ["rows are empty"]


async def test_time_in_which_all_slots_wait_for_storage_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.time", clock)
    spec = study_spec(budget={"maxDurationSeconds": 100})
    broker = await begun(tmp_path, spec)
    first, second = await train(broker, A), await train(broker, B)
    clock.now += 10
    await broker.waits(A, "the disk is full; waiting")
    assert await broker.waiting() == "the disk is full; waiting"
    clock.now += 20  # the other one works
    await broker.waits(B, "the disk is full; waiting")
    clock.now += 1000
    assert (await broker.snapshot(spec.budget, None)).outcome is None
    await broker.waits(A, "")
    await soon(broker.epoch(A, [epoch_done(first.trial, 1, 0.5)]))
    (waited,) = [event for event in events_of(tmp_path) if isinstance(event, ev.Waited)]
    assert waited.seconds == 1000
    clock.now += 69
    await soon(broker.epoch(A, [epoch_done(first.trial, 2, 0.5)]))
    assert "ended" not in kinds(tmp_path)
    clock.now += 1
    await soon(broker.epoch(B, [epoch_done(second.trial, 1, 0.5)]))
    assert kinds(tmp_path)[-1] == "ended"


class Clock:
    """A time that stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_storage_that_does_not_answer_is_told_and_who_asks_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokers, "SLOW_SECONDS", 0.0)
    spec = study_spec()
    broker = await begun(tmp_path, spec)
    assert await broker.waiting() == ""
    answers = threading.Event()
    append = RecordLog.append

    def hang(log: RecordLog, events: list[ev.Event]) -> None:
        answers.wait(20)
        append(log, events)

    monkeypatch.setattr(RecordLog, "append", hang)
    call = asyncio.create_task(broker.next(A, []))
    assert await waits(call)
    told = (await broker.snapshot(spec.budget, None)).waiting
    assert told == f"storage {tmp_path} does not answer; waiting"
    answers.set()
    assert isinstance(await soon(call), TrainItem)
    assert await broker.waiting() == ""


async def test_what_a_slot_is_busy_with_is_told_until_its_next_report(tmp_path: Path) -> None:
    spec = study_spec(**ONE_EPOCH)
    broker = await begun(tmp_path, spec)
    item = await train(broker, A)
    await soon(broker.progress(A, "frozen layers: 64 of 600 rows"))

    async def doing() -> list[str]:
        snapshot = await soon(broker.snapshot(spec.budget, None))
        return [one.doing for one in snapshot.at_work]

    assert await doing() == ["frozen layers: 64 of 600 rows"]
    await soon(broker.epoch(A, [epoch_done(item.trial, 1, 0.9)]))
    assert await doing() == [""]
