"""Where kopf finds the API server, and what is seen of its watches of studies."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import kopf
import pytest
from aiohttp import web

from finetune_operator import login
from finetune_operator.alive import Watches
from finetune_operator.login import Login, in_pod

STUDIES = "/apis/finetune.dev/v1alpha1/finetunestudies"
OF_NLP = "/apis/finetune.dev/v1alpha1/namespaces/nlp/finetunestudies"
BY_DNS = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t", priority=3)


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """The account of a pod, as kopf finds it."""
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: BY_DNS)


@pytest.mark.parametrize(
    ("host", "server"),
    [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")],
)
def test_a_pod_asks_no_dns_for_the_api_server(
    host: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = in_pod()
    assert found is not None
    assert (found.server, found.token, found.priority) == (server, "t", 3)


def test_without_an_address_it_is_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert in_pod() == BY_DNS


async def test_refused_credentials_are_recognised_and_new_ones_are_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler = Login(Watches())
    first = await handler.account()
    assert await handler.account() is first
    renewed = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="u")
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: renewed)
    second = await handler.account()
    assert second is not None
    assert first is not None
    assert second != first
    assert second.aiohttp_session.headers["Authorization"] == "Bearer u"
    for each in (first, second):
        await each.aiohttp_session.close()


async def test_without_a_pod_it_is_the_kubeconfig(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(login, "in_pod", lambda **_: None)
    monkeypatch.setattr(kopf, "login_with_kubeconfig", lambda **_: None)
    assert await Login(Watches()).account() is None
    monkeypatch.setattr(kopf, "login_with_kubeconfig", lambda **_: BY_DNS)
    found = await Login(Watches()).account()
    assert found is not None
    assert found.server == BY_DNS.server
    await found.aiohttp_session.close()


class Server:
    """Answers watches until it is told to end them."""

    def __init__(self) -> None:
        self.status = 200
        self.end = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if "watch" not in request.query or self.status != 200:
            return web.json_response({"items": []}, status=self.status)
        stream = web.StreamResponse()
        await stream.prepare(request)
        await self.end.wait()
        return stream


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    runner = web.ServerRunner(web.Server(served.answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    served.url = f"http://{host}:{port}"
    yield served
    served.end.set()
    await runner.cleanup()


@pytest.mark.parametrize(("path", "place"), [(STUDIES, None), (OF_NLP, "nlp")])
async def test_an_operator_hears_of_studies_while_their_watch_is_open(
    server: Server, path: str, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    watches = Watches(lambda: now)
    watches.expect("FineTuneStudy", place)
    here: Any = kopf.ConnectionInfo(server=server.url)
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: here)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    found = await Login(watches).account()
    assert found is not None
    async with found.aiohttp_session as session:
        await (await session.get(server.url + path)).read()
        assert not watches.hears("FineTuneStudy"), "a list is no watch"
        server.status = 403
        await (await session.get(f"{server.url}{path}?watch=true")).read()
        assert not watches.hears("FineTuneStudy"), "it was refused"
        server.status = 200
        await (await session.get(f"{server.url}/api/v1/namespaces?limit=1")).read()
        assert not watches.hears("FineTuneStudy"), "that is something else"
        async with await session.get(f"{server.url}{path}?watch=true") as response:
            now += 1000
            assert watches.hears("FineTuneStudy")
            assert watches.silence("FineTuneStudy") == 0
            server.end.set()
            await response.read()
        now += 61
        assert not watches.hears("FineTuneStudy")
