"""`python -m finetune_operator`: watches studies and their children, and reconciles."""

import asyncio
import json
import logging
import os
import socket
import sys
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import kopf
from kopf._cogs.clients.errors import APINotFoundError  # it has no public name

from finetune_api.study import GROUP, KIND, PLURAL, VERSION
from finetune_operator import metrics, names, probes, scrape, traces
from finetune_operator.alive import Watches
from finetune_operator.gpus import GPUS_ALLOCATED, Allocation, allocated
from finetune_operator.kube import Kube, KubeError, connect
from finetune_operator.leader import Election
from finetune_operator.login import Login
from finetune_operator.observe import CHILDREN, Key, RayJobView, View, number
from finetune_operator.pace import Pace
from finetune_operator.platform import Classes, Platform
from finetune_operator.preflight import wrong_template
from finetune_operator.reconciler import Reconciler
from finetune_operator.settings import Settings, read
from finetune_operator.store import Store, version_of
from finetune_operator.watch import PLATFORM, ChildWatch, PlatformWatch
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger("finetune.operator")

WORKERS = 16
"""Studies reconciled at the same time."""

NESTING = 30_000
"""How deeply nested objects may be for the operator to read them."""

CRD_SECONDS = 1
"""Seconds until the operator looks for the CRD again."""

LIST_SECONDS = 5
"""Seconds until the operator tries to list the studies again."""

KOPF_BACKOFFS = (1, 1, 2, 3, 5, 8, 13, *[20] * 30)
"""Seconds between kopf's tries of a request: after ten minutes it gives up, and the process ends with it."""

_CRDS = ("apiextensions.k8s.io", "v1", "customresourcedefinitions")
_STUDIES_CRD = f"{PLURAL}.{GROUP}"
_RAY_JOBS_CRD = "rayjobs.ray.io"


def _children(settings: Settings) -> tuple[type[View], ...]:
    """The kinds of children to watch."""
    return CHILDREN if settings.engine == "Job" else (*CHILDREN, RayJobView)


class Operator:
    """Connects kopf's events, the children's watch, the store, the queue and the reconciler."""

    def __init__(self, settings: Settings, watches: Watches) -> None:
        self.settings = settings
        self.watches = watches
        self.store = Store()
        self.listings = metrics.Listings(by_namespace=bool(settings.namespaces))
        self.kube: Kube | None = None
        self.reconciler: Reconciler | None = None
        self.pace: Pace | None = None
        self.queue: WorkQueue[Key] | None = None
        self.children: ChildWatch | None = None
        self.classes = Classes()
        self.platform: PlatformWatch | None = None
        self.election: Election | None = None
        self.standing: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        """Ends kopf, and with it the process: something went wrong that only a new process can fix."""

        self.anew = False
        """Whether kopf is to start again, instead of the process ending."""

        self.blind = False
        """Whether the CRD of studies was missing when kopf started."""

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Add the handlers. Startup lists the children before kopf sees a study, so that none is judged missing too soon."""
        kopf.on.login(id="login", registry=registry)(Login(self.watches).account)
        kopf.on.startup(id="startup", registry=registry)(self.start)
        kopf.on.cleanup(id="cleanup", registry=registry)(self.stop)
        kopf.on.event(GROUP, VERSION, PLURAL, id="study", registry=registry)(self.on_study)
        if not self.settings.namespaces:
            kopf.on.event(*_CRDS, id="crd", when=self._matters, registry=registry)(self.on_crd)

    async def start(self, settings: kopf.OperatorSettings, **_: Any) -> None:
        """Set kopf up, connect, serve metrics."""
        settings.posting.enabled = False
        # A namespaced operator may not list namespaces or CRDs: kopf would keep trying for a minute, in vain.
        settings.scanning.disabled = bool(self.settings.namespaces)
        settings.persistence.finalizer = f"{GROUP}/unused"
        settings.persistence.diffbase_storage = _NoDiffs()
        settings.networking.error_backoffs = KOPF_BACKOFFS
        kinds, namespaces = _children(self.settings), self.settings.namespaces
        watches = len(kinds) * max(1, len(namespaces)) + len(PLATFORM)
        api = await connect(4 * WORKERS + watches)
        self.kube = Kube(api, self._may_write)
        loop = asyncio.get_running_loop()
        self.pace = Pace(self.settings.progress_per_second, loop.time)
        self.reconciler = Reconciler(
            self.kube, self.store, self.settings, self.pace, self._ray_jobs, self._classes_in
        )
        self.queue = WorkQueue(self.reconciler.reconcile, metrics.RECONCILE_ERRORS.inc)
        metrics.TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
        metrics.QUEUE_DEPTH.set_function(self._depth)
        GPUS_ALLOCATED.source = self._gpus
        self.blind = not await self._served()
        if namespaces and self.blind:  # no event would say that the CRD has been created
            await self._until_served()
        self.children = ChildWatch(
            self.kube, self.store, self.on_child, self.watches, kinds, namespaces
        )
        await self.children.start(self._must_not_end)
        if not namespaces:
            self.platform = PlatformWatch(self.kube, self.classes, self.on_class, self.watches)
            await self.platform.start(self._must_not_end)
        if not self.settings.lease:
            metrics.LEADER.set(1)
            self.work()
            return
        namespace, name = self.settings.lease.split("/")
        self.election = Election(Kube(api), (namespace, name), _identity(self.settings))
        self.standing = asyncio.create_task(self.election.run(self.work, self.rest))
        self.standing.add_done_callback(self._must_not_end)

    def _matters(self, name: str, **_: Any) -> bool:
        return name == _STUDIES_CRD or (name == _RAY_JOBS_CRD and self.settings.engine != "Job")

    async def _until_served(self) -> None:
        while not await self._served():
            log.warning("waiting for the CRD of %s", PLURAL)
            await asyncio.sleep(CRD_SECONDS)

    async def _served(self) -> bool:
        assert self.kube is not None  # it connects first
        try:
            return await self.kube.serves(KIND)
        except KubeError as error:
            log.warning("cannot find out what the API server serves: %s", error)
            return False

    def _ray_jobs(self) -> bool:
        return self.children is not None and self.children.serves(RayJobView)

    def _classes_in(self, namespace: str) -> Platform | None:
        return None if self.settings.namespaces else self.classes.of(namespace)

    def _may_write(self) -> bool:
        return self.election is None or self.election.held

    def _gpus(self) -> Allocation:
        # Only of the replica that acts: others would count the same.
        if self.reconciler is None or not self._may_write():
            return {}
        return allocated(self.store.pods(), self.reconciler.class_of)

    def _depth(self) -> float:
        # A replica that does not act has studies in its queue too, but nobody waits for it.
        return self.queue.depth if self.queue is not None and self._may_write() else 0

    def _must_not_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.error("a task that must never end has ended", exc_info=task.exception())
            self.ended.set()

    def work(self) -> None:
        """Reconcile every study, from now on."""
        assert self.queue is not None  # startup comes first
        assert self.reconciler is not None
        for key in self.reconciler.studies():
            self.queue.add(key)
        self.queue.start(WORKERS)

    async def rest(self) -> None:
        """Watch only: another operator acts."""
        assert self.queue is not None  # work() comes first
        assert self.reconciler is not None
        await self.queue.stop()
        self.reconciler.show_none()

    async def stop(self, **_: Any) -> None:
        """Stop the queue, hand over the lease, and close the connections."""
        if self.standing is not None:
            self.standing.cancel()
        for watch in (self.children, self.platform):
            if watch is not None:
                await watch.stop()
        if self.queue is not None:
            await self.queue.stop()
        if self.election is not None:
            await self.election.release()
        if self.reconciler is not None:
            self.reconciler.show_none()
        if self.kube is not None:
            await self.kube.close()

    async def on_study(
        self, event: kopf.RawEvent, body: kopf.Body, namespace: str | None, name: str, **_: Any
    ) -> None:
        """Queue a study that appeared or changed; forget one that is gone."""
        assert self.reconciler is not None  # startup comes first
        assert self.queue is not None
        key = (str(namespace), name)
        again = self.listings.note(str(namespace), event)
        if event["type"] == "DELETED":
            self._forget(key, version_of(body))
        else:
            if self.reconciler.put(key, _plain(body)):
                self.queue.add(key)
        if again:
            await self._forget_gone(str(namespace) if self.settings.namespaces else None)

    def on_child(self, key: Key, told: bool) -> None:
        """Queue a study with a child that changed; if `told`, only progress is new, and it waits for its turn."""
        assert self.pace is not None  # startup comes first
        assert self.queue is not None
        self.queue.add(key, self.pace.wait(key) if told else 0.0)

    def on_class(self) -> None:
        """Queue the studies that wait or run: a class, or a namespace's choice of one, is new."""
        assert self.reconciler is not None  # startup comes first
        assert self.queue is not None
        for key in self.reconciler.unfinished():
            self.queue.add(key)

    def _forget(self, key: Key, version: int) -> None:
        assert self.reconciler is not None  # startup comes first
        assert self.queue is not None
        if self.reconciler.remove(key, version):
            self.queue.forget(key)

    async def _forget_gone(self, place: str | None) -> None:
        """kopf has listed the studies again, and does not report those that went while it was not watching."""
        assert self.reconciler is not None  # startup comes first
        while True:
            try:
                there, version = await self._listed(place)
                break
            except KubeError as error:
                log.warning("the studies cannot be listed: %s", error)
                await asyncio.sleep(LIST_SECONDS)
        for key in self.reconciler.studies():
            if place in (None, key[0]) and key not in there:
                self._forget(key, version)

    async def _listed(self, place: str | None) -> tuple[set[Key], int]:
        """Every study that exists, and the version of the list. Raises KubeError."""
        assert self.kube is not None  # startup comes first
        there, version = set(), ""
        async for page, at in self.kube.pages(KIND, place, ""):
            version = at
            there |= {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in page}
        return there, number(version)

    async def on_crd(self, event: kopf.RawEvent, body: kopf.Body, name: str, **_: Any) -> None:
        """KubeRay was installed or removed: later attempts use what is there. Or the studies' own CRD was."""
        assert self.children is not None  # startup comes first
        gone = event["type"] == "DELETED" or "deletionTimestamp" in body["metadata"]
        established = not gone and _is_established(body)
        if name == _RAY_JOBS_CRD:
            self.children.serve(RayJobView, established)
        elif event["type"] == "DELETED":
            self._begin_anew("the CRD of %s was deleted")
        elif self.blind and established:
            await (
                self._until_served()
            )  # kopf looked when it was established, which may have been too early
            self._begin_anew("the CRD of %s was created")

    def _begin_anew(self, why: str) -> None:
        log.warning(why, PLURAL)
        self.anew = True
        self.ended.set()


class _NoDiffs(kopf.DiffBaseStorage):
    """What kopf stores to tell handlers what has changed: no handler here needs it, so nothing is copied."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """Keep nothing."""


def _is_established(crd: Mapping[str, Any]) -> bool:
    conditions = (crd.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: body[key]
        for key in ("apiVersion", "kind", "metadata", "spec", "status")
        if key in body
    }


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with what `extra` adds about the study."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("study", "attempt", "state", "reason", "error", "object"):
            if hasattr(record, name):
                line[name] = getattr(record, name)
        if trace := traces.trace_id():
            line["trace_id"] = trace
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _identity(settings: Settings) -> str:
    return settings.identity or f"{socket.gethostname()}-{uuid.uuid4()}"


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("kopf.objects", "kopf.activities", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _blind(watches: Watches) -> str:
    """Why this process sees no studies; empty if it does."""
    if watches.hears(KIND):
        return ""
    return f"no watch of {PLURAL} for {watches.silence(KIND):.0f} s"


def main() -> None:
    """Run until told to end."""
    os.environ.setdefault(
        "USER", names.MANAGER
    )  # kopf asks for the user's name, and an arbitrary user id has none
    # Python's JSON fails on deeper nesting, and kopf's watch with it; the API server accepts 10,000 levels.
    sys.setrecursionlimit(NESTING)
    _log_as_json()
    settings = read()
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    watches = Watches()
    for place in settings.namespaces or (None,):
        watches.expect(KIND, place)
    port = settings.health_port
    async with scrape.serving(settings), probes.serving(port, lambda: _blind(watches)):
        await _check_template(settings)
        traces.export(_identity(settings))  # of looks at studies, which begin here
        await _operate(settings, watches)


async def _check_template(settings: Settings) -> None:
    kube = Kube(await connect(1))
    try:
        wrong = await wrong_template(kube, settings)
    finally:
        await kube.close()
    if wrong:
        log.error(
            "the API server refuses the pods of every study: mend study.podTemplate: %s", wrong
        )
        sys.exit(1)


async def _operate(settings: Settings, watches: Watches) -> None:
    ended = False
    while not ended:
        registry = kopf.OperatorRegistry()
        operator = Operator(settings, watches)
        operator.register(registry)
        try:
            await kopf.operator(
                registry=registry,
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                stop_flag=operator.ended,
            )
            ended = not operator.anew
        except APINotFoundError as error:
            # A watched kind is gone with its CRD, and kopf does not survive that.
            log.warning("starting again, because a watched kind is gone: %s", error)
            await asyncio.sleep(1)
    if operator.ended.is_set():
        sys.exit(1)


if __name__ == "__main__":
    main()
