"""Follows the studies' children: every change goes into the store, and the study it concerns is reported.

kopf follows the studies. There are many children, and most of their changes mean nothing; here an event costs a
comparison, where kopf starts a task for each child and waits for all of them at startup.
"""

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from finetune_api.classes import CLASS_KIND, CLASS_LABEL
from finetune_operator.alive import Watches
from finetune_operator.belief import document
from finetune_operator.kube import Expired, Gone, Kube, KubeError
from finetune_operator.metrics import WATCH_RESTARTS
from finetune_operator.names import STUDY_LABEL
from finetune_operator.observe import ChildView, ConfigView, Key, View, number
from finetune_operator.platform import Classes
from finetune_operator.store import Store

log = logging.getLogger("finetune.watch")

_PAUSE_SECONDS = (0.2, 10.0)
"""Pause after a watch that ended or failed, and the longest after several failures."""

_UNSERVED_SECONDS = 300.0
"""Time until a kind that is not served is requested again, unless it is reported as served earlier."""


PLATFORM = (CLASS_KIND, "Namespace")
"""Kinds that say which class a study has."""

Kind = TypeVar("Kind")


class SetBack(Exception):
    """The API server is at an earlier version than before: etcd was restored, and what is known here never happened."""


class Watch(ABC, Generic[Kind]):
    """Follows kinds of objects with requests of its own: lists each, then watches it, and lists again where it must.

    Args:
        kube: requests to the API server.
        watches: learn which of the watches are open.
        kinds: the kinds to follow.
        namespaces: where to follow them; empty: everywhere.
    """

    def __init__(
        self,
        kube: Kube,
        watches: Watches,
        kinds: Sequence[Kind],
        namespaces: tuple[str, ...] = (),
    ) -> None:
        self._kube = kube
        self._watches = watches
        self._kinds = kinds
        self._places: list[str | None] = list(namespaces) or [None]
        self._served = {kind: asyncio.Event() for kind in kinds}
        """Set while the kind is known to be served."""

        self._found: set[Kind] = set()
        """The kinds that the API server served when last asked."""

        self._tasks: list[asyncio.Task[None]] = []

    @abstractmethod
    def _name(self, kind: Kind) -> str:
        """What Kubernetes calls the kind."""

    @abstractmethod
    def _labels(self, kind: Kind) -> str:
        """Selector of the objects to follow."""

    @abstractmethod
    def _see(self, kind: Kind, gone: bool, body: Mapping[str, Any]) -> None:
        """An object came, changed or is gone."""

    @abstractmethod
    def _take(
        self, kind: Kind, place: str | None, items: Sequence[Mapping[str, Any]], version: str
    ) -> None:
        """Take these for all objects of the kind at that version; a kind that is not served has none."""

    async def start(self, ended: Callable[[asyncio.Task[None]], None]) -> None:
        """Returns when every kind has been listed once; `ended` is called with a task that should not have ended."""
        listed = []
        for kind in self._kinds:
            WATCH_RESTARTS.labels(
                self._name(kind)
            )  # start at 0, so that the first one is an increase
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

    def serves(self, kind: Kind) -> bool:
        """Whether the API server serves the kind, as its listing or an event showed."""
        return kind in self._found

    def serve(self, kind: Kind, served: bool) -> None:
        """The kind has come, and is to be listed, or it goes."""
        if served:
            self._served[kind].set()
        else:
            self._served[kind].clear()
            self._found.discard(kind)

    async def _follow(self, kind: Kind, place: str | None, ready: asyncio.Event) -> None:
        """List, then watch, for ever. Raises SetBack if nothing in this process can be trusted any more."""
        first, longest = _PAUSE_SECONDS
        pause, version, listed, anew = first, "", False, True
        name = self._name(kind)
        while True:
            self._watches.expect(name, place)
            try:
                if anew:
                    version = await self._list(kind, place, version)
                    anew = False
                    self._found.add(kind)
                    if listed:
                        WATCH_RESTARTS.labels(name).inc()
                    listed = True
                    ready.set()
                with self._watches.following(name, place) as opened:
                    news = self._kube.watch(name, place, self._labels(kind), version, opened)
                    async for word, body in news:
                        version = body["metadata"]["resourceVersion"]
                        pause = first
                        if word != "BOOKMARK":
                            self._see(kind, word == "DELETED", body)
                await asyncio.sleep(first)  # it ended as it should: continue from there
            except Gone:
                self._found.discard(kind)
                self._watches.forget(name, place)
                self._take(kind, place, [], "")
                version, listed, anew = "", False, True
                ready.set()
                await self._until_served(kind, pause)
                pause = min(longest, 2 * pause)
            except KubeError as error:
                log.info("watch of %s broke off: %s", name, error)
                anew = anew or isinstance(error, Expired)
                await asyncio.sleep(max(error.retry_after, pause) * random.uniform(0.75, 1.25))
                pause = min(longest, 2 * pause)

    async def _until_served(self, kind: Kind, pause: float) -> None:
        if self._served[kind].is_set():  # any moment now
            await asyncio.sleep(pause)
            return
        try:
            async with asyncio.timeout(_UNSERVED_SECONDS):
                await self._served[kind].wait()
        except TimeoutError:
            log.debug("checking whether %ss are served by now", self._name(kind))

    async def _list(self, kind: Kind, place: str | None, before: str) -> str:
        items, version = await self._kube.list_all(self._name(kind), place, self._labels(kind))
        if number(version) < number(before):
            raise SetBack(f"{self._name(kind)}s are at version {version}, but were at {before}")
        self._take(kind, place, items, version)
        return version


class ChildWatch(Watch[type[View]]):
    """Keeps the store up to date with these kinds of children.

    Args:
        kube: requests to the API server.
        store: where the views go.
        changed: called for each study with a child that came, changed or is gone, and with whether only its driver's
        progress is new. Children that are kept as the operator made them are not reported when they come.
        watches: learn which of the watches are open.
        kinds: the kinds to follow.
        namespaces: where to follow them; empty: everywhere.
    """

    def __init__(
        self,
        kube: Kube,
        store: Store,
        changed: Callable[[Key, bool], None],
        watches: Watches,
        kinds: Sequence[type[View]],
        namespaces: tuple[str, ...] = (),
    ) -> None:
        super().__init__(kube, watches, kinds, namespaces)
        self._store = store
        self._changed = changed

    def _name(self, kind: type[View]) -> str:
        return kind.kind

    def _labels(self, kind: type[View]) -> str:
        return STUDY_LABEL

    def _take(
        self, kind: type[View], place: str | None, items: Sequence[Mapping[str, Any]], version: str
    ) -> None:
        there = set()
        for body in items:
            meta = body["metadata"]
            there.add(((meta["namespace"], meta["labels"][STUDY_LABEL]), meta["name"]))
            self._see(kind, False, body)
        for key, name in self._store.names(kind, place) - there:
            if self._store.lost(key, kind, name, version):
                self._changed(key, False)

    def _see(self, kind: type[View], gone: bool, body: Mapping[str, Any]) -> None:
        try:
            before = self._store.known(kind, body)
            namespace = body["metadata"]["namespace"]
            key = (self._store.remove if gone else self._store.put)(namespace, kind, body)
            after = self._store.known(kind, body)
        except Exception:  # any: one unreadable object must not end the watch of all
            about = f"{kind.kind}/{body['metadata'].get('name')}"
            log.exception("an object cannot be read", extra={"object": about})
            return
        news = before is not None or not issubclass(kind, ChildView)
        if key is not None and news and after != before:
            self._changed(key, _is_told(before, after))


class PlatformWatch(Watch[str]):
    """Follows classes, and the namespaces that name one; `changed` is called whenever there is something new.

    Args:
        kube: requests to the API server.
        classes: where they go.
        changed: see above.
        watches: learn which of the watches are open.
    """

    def __init__(
        self, kube: Kube, classes: Classes, changed: Callable[[], None], watches: Watches
    ) -> None:
        super().__init__(kube, watches, PLATFORM)
        self._classes = classes
        self._changed = changed

    def _name(self, kind: str) -> str:
        return kind

    def _labels(self, kind: str) -> str:
        return CLASS_LABEL if kind == "Namespace" else ""

    def _see(self, kind: str, gone: bool, body: Mapping[str, Any]) -> None:
        self._classes.see(kind, body, gone)
        self._changed()

    def _take(
        self, kind: str, place: str | None, items: Sequence[Mapping[str, Any]], version: str
    ) -> None:
        for name in self._classes.names(kind) - {body["metadata"]["name"] for body in items}:
            self._classes.see(kind, {"metadata": {"name": name}}, True)
        for body in items:
            self._classes.see(kind, body, False)
        self._changed()


def _is_told(before: View | None, after: View | None) -> bool:
    """Whether a driver has reported progress, and nothing else is new."""
    return (
        isinstance(before, ConfigView)
        and isinstance(after, ConfigView)
        and before == replace(after, progress=before.progress)
        and _facts(before.progress) == _facts(after.progress)
    )


def _facts(progress: str) -> tuple[object, ...]:
    """What a driver's document says apart from its progress; nothing if it is not such a document."""
    said = document(progress)
    if said is None:
        return ()
    return said.study_uid, said.job_uid, said.term, said.phase, said.reason
