"""Follows the children that nobody has a reason to change, to put right what somebody changed all the same.

kopf follows the objects that studies live by. These are many, hardly ever change, and must only be compared
with what is known of them, which here costs microseconds an object and not a task each.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

from finetune_operator.kube import Kube, KubeError
from finetune_operator.metrics import WATCH_RESTARTS
from finetune_operator.names import STUDY_LABEL
from finetune_operator.observe import KEPT, ChildView, Key
from finetune_operator.store import Store

log = logging.getLogger("finetune.drift")

_EXPIRED = 410
_AGAIN_SECONDS = (1, 30)
"""The first pause after a watch that failed, and the longest."""


class DriftWatch:
    """Keeps the store's `KEPT` kinds up to date and tells whose child is not as it was.

    Args:
        kube: requests to the API server.
        store: where the views go.
        changed: called with each study that has a child which was changed, or is gone.
        namespaces: to follow; empty: all.
    """

    def __init__(
        self,
        kube: Kube,
        store: Store,
        changed: Callable[[Key], None],
        namespaces: tuple[str, ...] = (),
    ) -> None:
        self._kube = kube
        self._store = store
        self._changed = changed
        self._places: list[str | None] = list(namespaces) or [None]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, ended: Callable[[asyncio.Task[None]], None]) -> None:
        """Returns when every kind was listed once; `ended` is called with a task that should not have ended."""
        listed = []
        for kind in KEPT:
            WATCH_RESTARTS.labels(kind.kind)  # from 0 on, so that the first one is an increase
            for place in self._places:
                ready = asyncio.Event()
                task = asyncio.create_task(self._follow(kind, place, ready))
                task.add_done_callback(ended)
                self._tasks.append(task)
                listed.append(ready.wait())
        await asyncio.gather(*listed)

    async def stop(self) -> None:
        """End all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, kind: type[ChildView], place: str | None, ready: asyncio.Event) -> None:
        first, longest = _AGAIN_SECONDS
        pause = float(first)
        version = ""
        while True:
            try:
                if not version:
                    version = await self._list(kind, place)
                    if ready.is_set():
                        WATCH_RESTARTS.labels(kind.kind).inc()
                    ready.set()
                async for word, body in self._kube.watch(kind.kind, place, STUDY_LABEL, version):
                    version = body["metadata"]["resourceVersion"]
                    if word != "BOOKMARK":
                        self._see(kind, word == "DELETED", body)
                    pause = float(first)
                await asyncio.sleep(first)  # it has ended as it should: go on from where it was
            except KubeError as error:
                log.info("watch of %s broke off: %s", kind.kind, error)
                if error.status == _EXPIRED:
                    version = ""
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))
                pause = min(longest, 2 * pause)

    async def _list(self, kind: type[ChildView], place: str | None) -> str:
        items, version = await self._kube.list_all(kind.kind, place, STUDY_LABEL)
        there = set()
        for body in items:
            meta = body["metadata"]
            there.add(((meta["namespace"], meta["labels"][STUDY_LABEL]), meta["name"]))
            self._see(kind, False, body)
        for key, name in self._store.names(kind, place) - there:
            self._store.lost(key, kind, name)
            self._changed(key)
        return version

    def _see(self, kind: type[ChildView], gone: bool, body: Mapping[str, Any]) -> None:
        before = self._store.known(kind, body)
        namespace = body["metadata"]["namespace"]
        key = (self._store.remove if gone else self._store.put)(namespace, kind, body)
        if key is not None and before is not None and self._store.known(kind, body) != before:
            self._changed(key)
