"""The queue: one task a key, nothing lost, failures come back."""

import asyncio
from itertools import pairwise

import pytest

from finetune_operator import workqueue
from finetune_operator.kube import KubeError
from finetune_operator.workqueue import WorkQueue


async def test_key_added_while_it_is_worked_on_is_worked_on_again_and_never_twice_at_once() -> None:
    running, most, done = 0, 0, 0
    release = asyncio.Event()

    async def work(_: str) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1
        done += 1

    queue = WorkQueue(work, lambda: None)
    queue.start(4)
    queue.add("a")
    async with asyncio.timeout(240):
        while not running:  # noqa: ASYNC110  # nothing says when
            await asyncio.sleep(0.005)
        for _ in range(5):
            queue.add("a")
        release.set()
        while done < 2:  # noqa: ASYNC110  # nothing says when
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)  # no third time
    await queue.stop()
    assert (most, done) == (1, 2)


async def test_failure_is_counted_and_comes_back() -> None:
    errors, calls = 0, 0
    finished = asyncio.Event()

    def count() -> None:
        nonlocal errors
        errors += 1

    async def work(_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("no answer")
        finished.set()

    queue = WorkQueue(work, count)
    queue.start(1)
    queue.add("a")
    await asyncio.wait_for(finished.wait(), 10 * workqueue.FIRST_BACKOFF)
    await queue.stop()
    assert (errors, calls) == (1, 2)


async def test_key_is_left_alone_for_as_long_as_the_api_server_asks() -> None:
    asked = 1.0
    loop = asyncio.get_running_loop()
    times: list[float] = []
    finished = asyncio.Event()

    async def work(_: str) -> None:
        times.append(loop.time())
        if len(times) == 1:
            queue.add("a")  # an event while it is worked on
            raise KubeError(429, "slow down", retry_after=asked)
        finished.set()

    queue = WorkQueue(work, lambda: None)
    queue.start(2)
    queue.add("a")
    await asyncio.sleep(0.2)
    queue.add("a")  # an event while it waits
    await asyncio.wait_for(finished.wait(), 10 * asked)
    await asyncio.sleep(0.1)
    await queue.stop()
    assert len(times) == 2
    assert times[1] - times[0] >= asked


async def test_key_is_looked_at_again_when_it_asks_for_it() -> None:
    calls = 0
    finished = asyncio.Event()

    async def work(_: str) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 3:
            finished.set()
            return None
        return 0.01

    queue = WorkQueue(work, lambda: None)
    queue.start(1)
    queue.add("a")
    await asyncio.wait_for(finished.wait(), 5)
    await queue.stop()
    assert calls == 3


async def test_key_that_is_added_for_later_is_worked_on_once_and_sooner_if_something_else_is_up() -> (
    None
):
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def work(_: str) -> None:
        times.append(loop.time())

    queue = WorkQueue(work, lambda: None)
    queue.start(1)
    begun = loop.time()
    for _ in range(3):
        queue.add("a", 0.2)
    await asyncio.sleep(0.5)
    assert len(times) == 1
    assert times[0] - begun >= 0.19
    queue.add("a", 60.0)
    queue.add("a")
    await asyncio.sleep(0.1)
    await queue.stop()
    assert len(times) == 2


async def test_key_that_is_added_for_later_while_it_is_worked_on_is_not_lost() -> None:
    calls = 0
    again = asyncio.Event()

    async def work(_: str) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            queue.add("a", 0.05)
            return 60.0
        again.set()
        return None

    queue = WorkQueue(work, lambda: None)
    queue.start(1)
    queue.add("a")
    await asyncio.wait_for(again.wait(), 5)
    await queue.stop()
    assert calls == 2


class Failing:
    """Work that fails so many times in a row, each time by that error."""

    def __init__(self, *errors: KubeError | None) -> None:
        self.errors = list(errors)
        self.times: list[float] = []
        self.done = asyncio.Event()

    async def __call__(self, _: str) -> None:
        self.times.append(asyncio.get_running_loop().time())
        error = self.errors.pop(0) if self.errors else None
        if not self.errors and error is None:
            self.done.set()
        if error is not None:
            raise error

    @property
    def waits(self) -> list[float]:
        """Seconds between one try and the next."""
        return [after - before for before, after in pairwise(self.times)]


async def test_each_failure_in_a_row_waits_twice_as_long_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workqueue, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(workqueue, "MAX_BACKOFF", 0.04)
    work = Failing(*[KubeError(500, "no")] * 7)
    queue = WorkQueue(work, lambda: None)
    queue.start(1)
    queue.add("a")
    await asyncio.wait_for(work.done.wait(), 5)
    await queue.stop()
    assert all(wait >= least for wait, least in zip(work.waits, (0.01, 0.02, 0.04), strict=False))
    assert work.waits[-1] < 2**6 * 0.01


@pytest.mark.parametrize("gone", [False, True], ids=["success", "another of its name"])
async def test_failures_of_the_past_do_not_count(
    gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workqueue, "FIRST_BACKOFF", 0.01)
    failure = KubeError(500, "no")
    work = Failing(*[failure] * 6, *([] if gone else [None]), failure)
    queue = WorkQueue(work, lambda: None)
    queue.start(1)
    queue.add("a")
    while len(work.times) < (6 if gone else 7):  # noqa: ASYNC110  # nothing says when
        await asyncio.sleep(0.005)
    if gone:
        queue.forget("a")
    queue.add("a")
    await asyncio.wait_for(work.done.wait(), 5)
    await queue.stop()
    assert work.waits[-1] < 2**6 * 0.01


async def test_key_that_is_gone_leaves_nothing_behind_for_one_of_its_name() -> None:
    work = Failing(KubeError(429, "slow down", retry_after=60.0))
    queue = WorkQueue(work, lambda: None)
    queue.start(1)
    queue.add("a")
    await asyncio.sleep(0.02)
    queue.forget("a")
    queue.add("a")
    await asyncio.wait_for(work.done.wait(), 20)
    queue.add("a", 0.02)
    queue.forget("a")
    await asyncio.sleep(0.05)
    await queue.stop()
    assert len(work.times) == 2


async def test_queue_that_was_stopped_works_on_nothing_until_it_is_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Failing()
    queue = WorkQueue(work, lambda: None)
    queue.start(1)
    queue.add("a", 0.02)
    await queue.stop()
    queue.start(1)
    await asyncio.sleep(0.05)
    assert (work.times, caplog.records) == ([], [])
    queue.add("a")
    await asyncio.wait_for(work.done.wait(), 1)
    await queue.stop()


async def test_key_is_worked_on_at_the_earliest_of_its_times() -> None:
    work = Failing()
    queue = WorkQueue(work, lambda: None)
    queue.start(1)
    queue.add("a", 0.02)
    queue.add("a", 60.0)
    await asyncio.wait_for(work.done.wait(), 1)
    await queue.stop()


async def test_key_that_was_added_several_times_is_worked_on_once() -> None:
    work = Failing()
    queue = WorkQueue(work, lambda: None)
    queue.add("a", 0.03)
    for _ in range(3):
        queue.add("a")
    assert queue.depth == 1
    queue.start(2)
    await asyncio.sleep(0.08)
    await queue.stop()
    assert (len(work.times), queue.depth) == (1, 0)
