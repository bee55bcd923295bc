"""A study as it changes, by a watch that goes on whatever becomes of its connection."""

import time
from collections.abc import Iterator

from finetune_client.cluster import Cluster, Expired
from finetune_client.errors import NotFound, Unreachable
from finetune_client.view import StudyView

_WATCH_SECONDS = 300.0
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between attempts while the API server is away; the last one repeats."""

_AWAY_SECONDS = 600.0
"""How long the API server may be away before a wait is given up."""


def follow(cluster: Cluster, namespace: str, name: str, deadline: float) -> Iterator[StudyView]:
    """The study now and after each change, until `deadline` (of `time.monotonic`).

    Raises NotFound when it is deleted, Unreachable when the API server has been away for ten minutes.
    """
    view: StudyView | None = None
    away_since: float | None = None
    failures = 0
    while (left := deadline - time.monotonic()) > 0 or view is None:
        try:
            if view is None:
                view = StudyView(cluster.read(namespace, name))
                yield view
            version = str(view.body["metadata"]["resourceVersion"])
            for kind, body in cluster.watch(namespace, name, version, min(left, _WATCH_SECONDS)):
                failures, away_since = 0, None
                view = _next(view, kind, body)
                if kind != "BOOKMARK":
                    yield view
            failures, away_since = 0, None
        except Expired:
            view = None  # what it missed is in the study itself
        except Unreachable:
            now = time.monotonic()
            away_since = away_since or now
            if now - away_since > _AWAY_SECONDS or now >= deadline:
                raise
            time.sleep(min(_PAUSES[min(failures, len(_PAUSES) - 1)], deadline - now))
            failures += 1


def _next(view: StudyView, kind: str, body: object) -> StudyView:
    """The study after an event; a bookmark changes only the version to go on from."""
    assert isinstance(body, dict)
    if kind == "BOOKMARK":
        metadata = {**view.body["metadata"], "resourceVersion": body["metadata"]["resourceVersion"]}
        return StudyView({**view.body, "metadata": metadata})
    new = StudyView(body)
    if kind == "DELETED" or new.uid != view.uid:
        raise NotFound(f"{view.name} was deleted")
    return new
