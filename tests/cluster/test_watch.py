"""The watch of the children at a real API server: what it tells, and what it takes in without breaking off."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from kubernetes.aio import client, config
from prometheus_client import REGISTRY

from finetune_operator import kube as kube_module
from finetune_operator.alive import Watches
from finetune_operator.kube import Kube
from finetune_operator.names import STUDY_LABEL
from finetune_operator.observe import ConfigView, Key, RoleView
from finetune_operator.store import Store
from finetune_operator.watch import ChildWatch
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.proxy import Answer, Call, Fault, Proxy

NAMESPACE = "default"


def child(kind: str, version: str, name: str, **fields: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": NAMESPACE, "labels": {STUDY_LABEL: name}}
    return {"apiVersion": version, "kind": kind, "metadata": meta, **fields}


def config_map(name: str, progress: str) -> dict[str, Any]:
    return child("ConfigMap", "v1", name, data={"progress": progress})


@asynccontextmanager
async def following(
    kubeconfig: Path,
) -> AsyncIterator[tuple[Kube, Store, "asyncio.Queue[tuple[Key, bool]]"]]:
    await config.load_kube_config(config_file=str(kubeconfig))
    news: asyncio.Queue[tuple[Key, bool]] = asyncio.Queue()
    async with client.ApiClient() as api:
        kube, store = Kube(api), Store()
        watch = ChildWatch(
            kube,
            store,
            lambda key, told: news.put_nowait((key, told)),
            Watches(),
            (ConfigView, RoleView),
        )
        await watch.start(lambda task: None)
        while not news.empty():  # of earlier tests
            news.get_nowait()
        yield kube, store, news
        await watch.stop()
        port = int(api.configuration.host.rpartition(":")[2])
    # A TLS connection that was ended in the middle of a watch says goodbye first, for which it needs this loop.
    for _ in range(500):
        connections = psutil.Process().net_connections("tcp")
        if not any(one.raddr and one.raddr.port == port for one in connections):
            break
        await asyncio.sleep(0.02)


async def told(news: "asyncio.Queue[tuple[Key, bool]]") -> str:
    async with asyncio.timeout(240):
        return (await news.get())[0][1]


async def test_what_a_driver_tells_is_told_apart_from_all_else(server: ApiServer) -> None:
    async with following(server.kubeconfig) as (kube, _, news):

        async def after(body: dict[str, Any]) -> bool:
            await kube.apply(body)
            async with asyncio.timeout(240):
                return (await news.get())[1]

        said = {"studyUid": "s", "jobUid": "j", "term": 1, "phase": "Searching"}
        said |= {"reason": "Running", "time": "2026-01-01T00:00:00Z"}

        def progress(**other: object) -> dict[str, Any]:
            return config_map("apart", json.dumps(said | other))

        assert not await after(progress())  # it has come
        assert await after(progress(message="trial 2", time="2026-01-01T00:00:01Z"))
        assert not await after(progress(phase="Refitting"))
        assert not await after(progress(phase="Refitting", reason="StorageUnavailable"))
        claimed = progress(phase="Refitting", reason="StorageUnavailable", message="waits")
        assert await after(claimed)
        claimed["data"]["term"] = "7"  # by the next driver
        assert not await after(claimed)
        assert not await after(config_map("apart", "no document"))
        assert await after(config_map("apart", "nor is this one"))


def restarts() -> float | None:
    return REGISTRY.get_sample_value("finetune_watch_restarts_total", {"kind": "ConfigMap"})


async def test_only_what_changed_is_told(server: ApiServer) -> None:
    async with following(server.kubeconfig) as (kube, store, news):
        await kube.apply(config_map("told", "a"))
        assert await told(news) == "told"
        labelled = config_map("told", "a")
        labelled["metadata"]["labels"]["other"] = "yes"
        await kube.apply(labelled)  # nothing that matters
        role = child("Role", "rbac.authorization.k8s.io/v1", "role", rules=[])
        await kube.apply(role)  # kept as it was made, so no news when it comes
        await kube.apply(config_map("marker", "b"))
        assert await told(news) == "marker"
        found = await kube.read("Role", NAMESPACE, "role")
        assert found is not None
        rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
        await kube.apply({**role, "rules": rules})
        assert await told(news) == "role"
        await kube.delete("Role", NAMESPACE, "role", found["metadata"]["uid"])
        assert await told(news) == "role"
        assert [view.progress for view in store.observed((NAMESPACE, "told")).configs.values()] == [
            "a"
        ]


async def test_objects_as_large_as_the_api_server_takes_them_do_not_break_the_watch(
    server: ApiServer,
) -> None:
    async with following(server.kubeconfig) as (kube, store, news):
        before = restarts()
        for n in range(5):
            await kube.apply(config_map("large", str(n) * 1_000_000))
            await kube.apply(config_map(f"small-{n}", "a"))
        seen = {await told(news) for _ in range(6)}
        assert seen == {"large", *(f"small-{n}" for n in range(5))}
        # Longer than a document may be: nothing of it is kept.
        assert [
            view.progress for view in store.observed((NAMESPACE, "large")).configs.values()
        ] == [""]
        assert restarts() == before


async def test_watch_from_a_version_that_is_not_served_lists_anew(
    server: ApiServer, tmp_path: Path
) -> None:
    answers = iter([Answer(504, "Timeout: Too large resource version: 9, current: 5")])

    def rule(call: Call) -> Fault | None:
        return next(answers, None) if call.watch and call.path.endswith("/configmaps") else None

    before = restarts() or 0
    with Proxy(server, tmp_path, rule) as proxy:
        async with following(proxy.kubeconfig) as (kube, _, news):
            await restarted(before + 1)
            await kube.apply(config_map("anew", "a"))
            assert await told(news) == "anew"
    assert restarts() == before + 1


async def test_watch_without_a_word_lists_anew(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "_SILENT_SECONDS", 1.0)
    before = restarts() or 0
    async with following(server.kubeconfig):
        await restarted(before + 1)


async def restarted(times: float) -> None:
    for _ in range(200):
        if (restarts() or 0) >= times:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"waited for {times:.0f} restarts (got {restarts()})")
