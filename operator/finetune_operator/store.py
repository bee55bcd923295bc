"""What the operator has seen: the latest view of every child of every study, kept up to date by events."""

from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from finetune_operator import names
from finetune_operator.observe import (
    ChildView,
    ConfigView,
    JobView,
    Key,
    Observed,
    PodView,
    View,
    number,
)

_REMEMBERED_GONE = 4096
"""Deleted objects whose last version is remembered."""

_Slot: TypeAlias = tuple[type[View], str]


class Versions:
    """Tells new from outdated.

    Events of one name but different UIDs, and answers to the operator's own requests, overtake each other; a deleted
    object must not come back through an answer that was sent before.
    """

    def __init__(self) -> None:
        self._live: dict[Hashable, int] = {}
        self._gone: OrderedDict[Hashable, int] = OrderedDict()

    def seen(self, name: Hashable, body: Mapping[str, Any]) -> bool:
        """Note that an object is there; False if something newer is known under its name."""
        version = version_of(body)
        if version < self._live.get(name, 0) or version <= self._gone.get(name, -1):
            return False
        self._live[name] = version
        return True

    def gone(self, name: Hashable, version: int) -> bool:
        """Note that an object is gone as of this version; False if another of its name has come since."""
        if version < self._live.get(name, 0):
            return False
        self._live.pop(name, None)
        self._gone[name] = version
        self._gone.move_to_end(name)
        if len(self._gone) > _REMEMBERED_GONE:
            self._gone.popitem(last=False)
        return True

    def forget(self, name: Hashable) -> None:
        """Drop what is known about an object."""
        self._live.pop(name, None)


class Store:
    """The latest view of every child, by study."""

    def __init__(self) -> None:
        self._views: dict[Key, dict[_Slot, View]] = defaultdict(dict)
        self._versions = Versions()
        self._doomed: set[str] = set()

    def put(self, namespace: str, kind: type[View], body: Mapping[str, Any]) -> Key | None:
        """Take in an object; the key of its study, or None if it has no study or is older than what is known."""
        key, slot = _place(namespace, kind, body)
        if key is None or not self._versions.seen((key, slot), body):
            return None
        self._views[key][slot] = kind.of(body)
        return key

    def remove(self, namespace: str, kind: type[View], body: Mapping[str, Any]) -> Key | None:
        """Forget an object that is gone, unless one of the same name has replaced it."""
        key, slot = _place(namespace, kind, body)
        if key is None or not self._versions.gone((key, slot), version_of(body)):
            return None
        self._doomed.discard(str(body["metadata"].get("uid")))
        self._pop(key, slot)
        return key

    def has(self, key: Key, kind: type[View], name: str) -> bool:
        """Whether an object of that kind and name is known, whosever it is."""
        return (kind, name) in self._views.get(key, {})

    def known(self, kind: type[View], body: Mapping[str, Any]) -> View | None:
        """What is known of the object that `body` is a version of."""
        key, slot = _place(str(body["metadata"].get("namespace")), kind, body)
        return self._views[key].get(slot) if key is not None and key in self._views else None

    def names(self, kind: type[View], namespace: str | None) -> set[tuple[Key, str]]:
        """Study and name of each object of a kind that is known, in one namespace or in all."""
        return {
            (key, name)
            for key, views in self._views.items()
            for each, name in views
            if each is kind and namespace in (None, key[0])
        }

    def lost(self, key: Key, kind: type[View], name: str, version: str) -> bool:
        """Forget an object that is missing from a list of its kind, unless it came after that list's version.

        An empty version always forgets it: the kind itself is gone, and may come back with other objects.
        """
        slot = (kind, name)
        if not version:
            self._versions.forget((key, slot))
        elif not self._versions.gone((key, slot), number(version)):
            return False
        self._doomed.discard(getattr(self._pop(key, slot), "uid", ""))
        return True

    def _pop(self, key: Key, slot: _Slot) -> View | None:
        view = self._views[key].pop(slot, None)
        if not self._views[key]:
            del self._views[key]
        return view

    def expect_deletion(self, key: Key, uid: str) -> None:
        """A Job is being deleted: until its event arrives, it no longer counts as live, whatever else arrives."""
        if any(view.uid == uid for view in _of(self._known(key), JobView)):
            self._doomed.add(uid)

    def pods(self) -> list[tuple[Key, PodView]]:
        """Every pod that is known, with the key of its study. Another thread may ask."""
        return [
            (key, view)
            for key, views in list(self._views.items())
            for view in list(views.values())
            if isinstance(view, PodView)
        ]

    def observed(self, key: Key) -> Observed:
        """What is known about the study's children."""
        views = self._known(key)
        jobs = [
            replace(job, deleting=True) if job.uid in self._doomed else job
            for job in _of(views, JobView)
        ]
        return Observed(
            jobs=tuple(sorted(jobs, key=lambda job: job.attempt)),
            pods=tuple(
                sorted(_of(views, PodView), key=lambda pod: (not pod.head, pod.place, pod.name))
            ),
            configs={view.name: view for view in _of(views, ConfigView)},
            kept={(view.kind, view.name): view.essence for view in _of(views, ChildView)},
        )

    def _known(self, key: Key) -> list[View]:
        return list(self._views[key].values()) if key in self._views else []


def version_of(body: Mapping[str, Any]) -> int:
    """The resource version, which grows with every write to any object of the kind."""
    return number(body["metadata"].get("resourceVersion"))


def _place(namespace: str, kind: type[View], body: Mapping[str, Any]) -> tuple[Key | None, _Slot]:
    study = (body["metadata"].get("labels") or {}).get(names.STUDY_LABEL)
    return ((namespace, study) if study else None), (kind, body["metadata"]["name"])


def _of(views: list[View], kind: type[Any]) -> Iterator[Any]:
    return (view for view in views if isinstance(view, kind))
