"""What the watch of the children takes in and tells, and how it goes on when it has lost its place."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from finetune_operator import watch as watch_module
from finetune_operator.alive import Watches
from finetune_operator.children import Manifest
from finetune_operator.names import STUDY_LABEL
from finetune_operator.observe import ConfigView, JobView, Key, RoleView, View
from finetune_operator.store import Store
from finetune_operator.watch import ChildWatch, SetBack
from tests.operator.fake_api import Answer, Chunks, FakeApi, Fault, line
from tests.operator.studies import progress

JOBS = "/apis/batch/v1/namespaces/nlp/jobs"
CONFIGS = "/api/v1/namespaces/nlp/configmaps"
ROLES = "/apis/rbac.authorization.k8s.io/v1/namespaces/nlp/roles"
TOO_NEW = Answer(504, "Timeout: Too large resource version: 9, current: 5", "Timeout")
EXPIRED = Answer(410, "too old resource version", "Expired")
AWAY = Answer(503, "the API server is shutting down")


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_PAUSE_SECONDS", (0.01, 0.04))


class Following:
    """A watch, what it tells, and what it has put into the store."""

    def __init__(
        self, api: FakeApi, kinds: tuple[type[View], ...], namespaces: tuple[str, ...]
    ) -> None:
        self.api = api
        self.store = Store()
        self.news: asyncio.Queue[tuple[Key, bool]] = asyncio.Queue()
        self.ended: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
        self.watch = ChildWatch(
            api.kube(),
            self.store,
            lambda *news: self.news.put_nowait(news),
            Watches(),
            kinds,
            namespaces,
        )

    async def told(self) -> tuple[str, bool]:
        """Of which study something is new, and whether it is only progress."""
        await self.api.tell()
        async with asyncio.timeout(240):
            (_, study), told = await self.news.get()
        return study, told

    async def quiet(self) -> bool:
        """Whether nothing is told for a moment."""
        await self.api.tell()
        await asyncio.sleep(0.03)
        return self.news.empty()

    def jobs(self, study: str = "a") -> list[str]:
        """Names of the study's Jobs that are known."""
        return [job.name for job in self.store.observed(("nlp", study)).jobs]

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait for something to become true."""
        async with asyncio.timeout(240):
            while not true():  # noqa: ASYNC110  # nothing says when
                await asyncio.sleep(0.002)


@asynccontextmanager
async def following(
    api: FakeApi, *kinds: type[View], namespaces: tuple[str, ...] = ()
) -> AsyncIterator[Following]:
    one = Following(api, kinds or (JobView,), namespaces)
    try:
        async with asyncio.timeout(240):
            await one.watch.start(one.ended.put_nowait)
        yield one
    finally:
        await one.watch.stop()


def body(study: str = "a", name: str = "", **more: object) -> Manifest:
    meta = {"name": name or study, "namespace": "nlp", "labels": {STUDY_LABEL: study}}
    return {"metadata": meta, **more}


def lists(api: FakeApi, part: str = "/jobs") -> int:
    return len([one for one in api.asked("GET", part) if not one.watch])


def watched(api: FakeApi, part: str = "/jobs") -> list[str]:
    """From which versions it was watched."""
    return [one.query["resourceVersion"] for one in api.asked("GET", part) if one.watch]


def restarts(kind: str = "Job") -> float:
    return REGISTRY.get_sample_value("finetune_watch_restarts_total", {"kind": kind}) or 0.0


# -- what is told


async def test_all_that_is_there_is_known_before_it_begins(api: FakeApi) -> None:
    api.put(f"{JOBS}/a", body())
    api.put(f"{CONFIGS}/a", body(data={"progress": "x"}))
    api.on("GET", "/jobs", AWAY, EXPIRED, Answer(403, "no right yet"))
    async with following(api, JobView, ConfigView) as seen:
        observed = seen.store.observed(("nlp", "a"))
        assert ([job.name for job in observed.jobs], list(observed.configs)) == (["a"], ["a"])
        assert seen.watch.serves(JobView)
    assert lists(api) == 4


async def test_what_comes_changes_and_goes_is_told(api: FakeApi) -> None:
    async with following(api) as seen:
        api.put(f"{JOBS}/a", body())
        assert (await seen.told(), seen.jobs()) == (("a", False), ["a"])
        api.put(f"{JOBS}/a", body(status={"active": 1}))
        assert await seen.told() == ("a", False)
        assert seen.store.observed(("nlp", "a")).jobs[0].active == 1
        api.put(f"{JOBS}/a", body(status={"active": 1, "ready": 1}))
        assert await seen.quiet()  # nothing that matters
        api.remove(f"{JOBS}/a")
        assert (await seen.told(), seen.jobs()) == (("a", False), [])
    assert (lists(api), len(watched(api))) == (1, 1)


async def test_object_that_is_kept_as_it_was_made_is_no_news_when_it_comes(api: FakeApi) -> None:
    async with following(api, RoleView) as seen:
        api.put(f"{ROLES}/a", body(rules=[]))
        assert await seen.quiet()
        api.put(f"{ROLES}/a", body(rules=[{"verbs": ["get"]}]))
        assert await seen.told() == ("a", False)
        api.remove(f"{ROLES}/a")
        assert await seen.told() == ("a", False)


async def test_what_a_driver_tells_is_told_apart_from_all_else(api: FakeApi) -> None:
    def said(phase: str = "Searching", term: str = "1", **more: object) -> Manifest:
        document = progress(phase, **more).model_dump_json()
        return body(data={"progress": document, "term": term})

    async with following(api, ConfigView) as seen:
        for config, told in (
            (said(), False),  # it has come
            (said(message="trial 2"), True),
            (said("Refitting"), False),
            (said("Refitting", reason="StorageUnavailable"), False),
            (said("Refitting", "2", reason="StorageUnavailable"), False),
            (said("Refitting", "2", reason="StorageUnavailable", message="waits"), True),
            (body(data={"progress": "no document", "term": "2"}), False),
            (body(data={"progress": "nor is this one", "term": "2"}), True),
        ):
            api.put(f"{CONFIGS}/a", config)
            assert await seen.told() == ("a", told)


async def test_object_that_cannot_be_read_does_not_end_the_watch_of_all(
    api: FakeApi, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = body("b", status={"active": "many"})
    api.put(f"{JOBS}/b", wrong)
    api.put(f"{JOBS}/a", body())
    async with following(api) as seen:
        assert seen.jobs() == ["a"]
        api.put(f"{JOBS}/c", {**wrong, "metadata": body("c")["metadata"]})
        api.put(f"{JOBS}/d", body("d"))
        assert [await seen.told(), await seen.told()] == [("a", False), ("d", False)]
        assert seen.ended.empty()
    assert caplog.text.count("an object cannot be read") == 2


# -- where it goes on


@pytest.mark.parametrize("broken", [False, True])
async def test_watch_that_ends_goes_on_from_where_it_was(broken: bool, api: FakeApi) -> None:
    job = body(status={"active": 1})
    job["metadata"] |= {"uid": "u", "resourceVersion": "150"}
    bookmark: Manifest = {"metadata": {"resourceVersion": "170"}}
    first = Chunks((line("ADDED", job),), broken)
    api.on("GET", "/jobs", lambda: None, first, Chunks((line("BOOKMARK", bookmark),), broken))
    before = restarts()
    async with following(api) as seen:
        assert await seen.told() == ("a", False)
        await seen.until(lambda: len(watched(api)) == 3)
        assert await seen.quiet()
        assert seen.jobs() == ["a"]
    assert watched(api) == ["100", "150", "170"]
    assert lists(api) == 1
    assert restarts() == before


@pytest.mark.parametrize(
    "fault", [EXPIRED, TOO_NEW, *(Chunks((line("ERROR", {"code": a.status, "message": a.message}),)) for a in (EXPIRED, TOO_NEW))], ids=["410", "504", "410 event", "504 event"]
)  # fmt: skip
async def test_watch_that_cannot_go_on_lists_anew_and_forgets_what_went(
    fault: Fault, api: FakeApi
) -> None:
    api.put(f"{JOBS}/a", body())
    api.put(f"{JOBS}/b", body("b"))
    before = restarts()

    def meanwhile() -> None:
        api.remove(f"{JOBS}/a")
        api.put(f"{JOBS}/c", body("c"))

    api.on("GET", "/jobs", lambda: None, fault, AWAY, meanwhile)
    async with following(api) as seen:
        told = {await seen.told() for _ in range(4)}
        assert told == {("a", False), ("b", False), ("c", False)}
        assert (seen.jobs("a"), seen.jobs("b"), seen.jobs("c")) == ([], ["b"], ["c"])
        await seen.until(lambda: len(watched(api)) == 2)
    assert watched(api) == ["102", str(api.version)]
    assert lists(api) == 3
    assert restarts() == before + 1


async def test_refusal_of_a_watch_is_tried_again_without_a_list(api: FakeApi) -> None:
    api.on("GET", "/jobs", lambda: None, AWAY, Answer(403, "no right to watch"))
    async with following(api) as seen:
        await seen.until(lambda: len(watched(api)) == 3)
    assert (lists(api), set(watched(api))) == (1, {"100"})


async def test_api_server_that_was_set_back_ends_the_watch(api: FakeApi) -> None:
    def restored() -> None:
        api.version = 50

    api.on("GET", "/jobs", lambda: None, EXPIRED, restored)
    async with following(api) as seen:
        async with asyncio.timeout(240):
            task = await seen.ended.get()
        assert isinstance(task.exception(), SetBack)


async def test_api_server_that_is_away_is_asked_less_and_less_often(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_PAUSE_SECONDS", (0.02, 10.0))
    api.on("GET", "/jobs", lambda: None, *[AWAY] * 100)
    begun = time.monotonic()
    async with following(api), asyncio.timeout(240):
        while len(watched(api)) < 5:  # noqa: ASYNC110  # nothing says when
            await asyncio.sleep(0.005)
    # Pauses of 20, 40, 80 and 160 ms, each at least half of that.
    assert time.monotonic() - begun >= 0.15


async def test_pause_begins_anew_after_an_event(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_PAUSE_SECONDS", (0.02, 10.0))
    job = body()
    job["metadata"] |= {"uid": "u", "resourceVersion": "150"}
    event = Chunks((line("MODIFIED", job),), broken=True)
    api.on("GET", "/jobs", lambda: None, *[event] * 100)
    async with following(api) as seen:
        await seen.until(lambda: len(watched(api)) >= 10)


async def test_api_server_that_asks_to_wait_is_left_alone_for_so_long(api: FakeApi) -> None:
    api.on("GET", "/jobs", Answer(429, "too many requests", headers={"Retry-After": "1"}))
    one = Following(api, (JobView,), ())
    start = asyncio.create_task(one.watch.start(one.ended.put_nowait))
    await asyncio.sleep(0.3)
    assert (lists(api), start.done()) == (1, False)
    start.cancel()
    await one.watch.stop()


async def test_namespaces_are_followed_each_on_its_own(api: FakeApi) -> None:
    other = "/apis/batch/v1/namespaces/other/jobs"
    api.put(f"{JOBS}/a", body())
    theirs = body("b")
    theirs["metadata"]["namespace"] = "other"
    api.put(f"{other}/b", theirs)
    api.on("GET", "nlp/jobs", lambda: None, EXPIRED, lambda: api.remove(f"{JOBS}/a"))
    async with following(api, namespaces=("nlp", "other")) as seen:
        assert seen.store.names(JobView, None) == {(("nlp", "a"), "a"), (("other", "b"), "b")}
        await seen.until(lambda: not seen.jobs())
        assert [job.name for job in seen.store.observed(("other", "b")).jobs] == ["b"]
    assert {one.path for one in api.requests} == {JOBS, other}


# -- kinds that are not served


async def test_kind_that_is_not_served_is_waited_for(api: FakeApi) -> None:
    api.on("GET", "/jobs", Answer(404, "the server could not find the requested resource"))
    before = restarts()
    async with following(api) as seen:
        assert not seen.watch.serves(JobView)
        await asyncio.sleep(0.05)
        assert lists(api) == 1
        api.put(f"{JOBS}/a", body())
        seen.watch.serve(JobView, True)
        assert await seen.told() == ("a", False)
        assert seen.watch.serves(JobView)
        seen.watch.serve(JobView, False)
        assert not seen.watch.serves(JobView)
    assert restarts() == before


async def test_kind_that_is_not_served_is_asked_for_now_and_then(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "_UNSERVED_SECONDS", 0.02)
    api.on("GET", "/jobs", *[Answer(404)] * 3)
    async with following(api) as seen:
        await seen.until(lambda: seen.watch.serves(JobView))
    assert lists(api) == 4


async def test_kind_that_went_takes_its_objects_along_and_may_come_back_with_lower_versions(
    api: FakeApi,
) -> None:
    api.put(f"{JOBS}/a", body())
    gone = Answer(404, "the server could not find the requested resource")
    api.on("GET", "/jobs", lambda: None, gone)
    async with following(api) as seen:
        assert [await seen.told(), await seen.told()] == [("a", False), ("a", False)]
        assert seen.jobs() == []
        assert not seen.watch.serves(JobView)
        api.remove(f"{JOBS}/a")
        api.version = 10
        api.put(f"{JOBS}/a", body())
        seen.watch.serve(JobView, True)
        assert (await seen.told(), seen.jobs()) == (("a", False), ["a"])
        assert seen.ended.empty()
