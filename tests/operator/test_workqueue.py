"""The queue: one task a key, nothing lost, failures come back."""

import asyncio

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
    await asyncio.sleep(0.01)
    for _ in range(5):
        queue.add("a")
    release.set()
    await asyncio.sleep(0.05)
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
