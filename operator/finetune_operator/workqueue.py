"""A keyed work queue: each study is worked on by one task at a time, failures come back with backoff."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

log = logging.getLogger("finetune.queue")

Key = TypeVar("Key")

FIRST_BACKOFF = 0.5
MAX_BACKOFF = 60.0


class WorkQueue(Generic[Key]):
    """Calls `work(key)` for every added key; a key added while it is worked on is worked on again.

    `work` returns the seconds after which to look again, or None. Its errors are logged and retried. If an
    error has `retry_after` seconds, the key is not worked on before they have passed, whoever adds it.
    """

    def __init__(
        self, work: Callable[[Key], Awaitable[float | None]], on_error: Callable[[], None]
    ) -> None:
        self._work = work
        self._on_error = on_error
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._busy: set[Key] = set()
        self._dirty: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._not_before: dict[Key, float] = {}
        """Key → until when, by the loop's clock, the API server asks to be left alone about it."""

        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, workers: int) -> None:
        """Start that many tasks."""
        self._tasks = [
            asyncio.create_task(self._serve(), name=f"worker-{i}") for i in range(workers)
        ]

    async def stop(self) -> None:
        """End all tasks, in the middle of their work if need be; their keys must be added again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        while self._timers:
            self._timers.popitem()[1].cancel()

    def add(self, key: Key, after: float = 0.0) -> None:
        """Have `key` worked on after so many seconds, or as soon as possible."""
        wait = self._not_before.get(key, 0.0) - asyncio.get_running_loop().time()
        if after > 0:
            self._add_later(key, after)
        elif key in self._busy:
            self._dirty.add(key)
        elif wait > 0:
            self._add_later(key, wait)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    @property
    def depth(self) -> int:
        """How many keys wait to be worked on."""
        return len(self._waiting)

    def forget(self, key: Key) -> None:
        """Drop the timer and the failures of a key that is gone."""
        self._failures.pop(key, None)
        self._not_before.pop(key, None)
        self._cancel_timer(key)

    async def _serve(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._busy.add(key)
            self._cancel_timer(key)
            try:
                again = await self._work(key)
                self._failures.pop(key, None)
                self._not_before.pop(key, None)
            except Exception as error:  # noqa: BLE001  # any: one study's trouble must not end the worker
                again = self._back_off(key, error)
            finally:
                self._busy.discard(key)
            if key in self._dirty:
                self._dirty.discard(key)
                self.add(key)
            elif again is not None:
                self._add_later(key, again)

    def _add_later(self, key: Key, seconds: float) -> None:
        """Add `key` after so many seconds, unless it will be added sooner."""
        loop = asyncio.get_running_loop()
        known = self._timers.get(key)
        if known is None or known.when() > loop.time() + seconds:
            self._cancel_timer(key)
            self._timers[key] = loop.call_later(seconds, self._add_now, key)

    def _add_now(self, key: Key) -> None:
        del self._timers[key]
        self.add(key)

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _back_off(self, key: Key, error: Exception) -> float:
        self._on_error()
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** (failures - 1))
        asked = getattr(error, "retry_after", 0.0)
        self._not_before[key] = asyncio.get_running_loop().time() + asked
        delay = max(delay, asked) * random.uniform(1, 1.5)
        log.warning(
            "%s failed (%s in a row); trying again in %.1f s: %s",
            key,
            failures,
            delay,
            error,
            exc_info=failures == 1,
            extra={"study": "/".join(key) if isinstance(key, tuple) else key},
        )
        return float(delay)
