"""Stands between the operator and the API server and misbehaves as a test tells it to."""

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import yaml
from aiohttp import web
from yarl import URL

from tests.cluster.onenode.apiserver import ApiServer

_HOP = {"transfer-encoding", "connection", "content-length", "content-encoding"}
"""Headers that are between two neighbours only."""


@dataclass(frozen=True)
class Call:
    """A request of the operator."""

    method: str
    path: str
    watch: bool
    dry_run: bool = False

    @property
    def write(self) -> bool:
        """Whether it changes something."""
        return self.method != "GET" and not self.dry_run

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Answer:
    """Say this instead of asking the API server."""

    code: int
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Kubernetes' way of saying it."""
        return {
            "apiVersion": "v1",
            "kind": "Status",
            "status": "Failure",
            "message": f"injected: {self.reason or self.code}",
            "reason": self.reason,
            "code": self.code,
        }


@dataclass(frozen=True)
class Break:
    """Break the connection, before the API server hears of the request or before its answer is handed on.

    `then` is called at that moment.
    """

    after: bool = False
    then: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Stall:
    """Hand the request on so many seconds later."""

    seconds: float


@dataclass(frozen=True)
class Watch:
    """What to do with the events of a watch; each returns the lines to send in the place of one."""

    lines: Callable[[bytes], list[bytes]] = lambda line: [line]
    delay: Callable[[], float] = lambda: 0.0
    events: int | None = None
    """The connection breaks after so many."""


Fault: TypeAlias = Answer | Break | Stall | Watch
Rule: TypeAlias = Callable[[Call], Fault | None]


def expired() -> list[bytes]:
    """The line of a watch whose resource version is too old."""
    error = {"type": "ERROR", "object": Answer(410, "Expired").body()}
    return [json.dumps(error).encode() + b"\n"]


class Proxy:
    """An HTTP server on loopback that asks the API server as its administrator.

    Args:
        server: the API server.
        folder: for the operator's kubeconfig.
        rule: asked about each request, in the proxy's thread; None lets all of them pass.
    """

    def __init__(self, server: ApiServer, folder: Path, rule: Rule = lambda _: None) -> None:
        self.rule = rule
        self.answers: list[tuple[Call, int]] = []
        """What was asked for and answered, in the order of the answers, with their codes; 0 if there was none."""

        self._server = server
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def kubeconfig(self) -> Path:
        """The way through the proxy."""
        path = self._folder / "proxied.kubeconfig"
        cluster = {"server": f"http://127.0.0.1:{self._port}"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": cluster}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
            "current-context": "proxy",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        pair = self._server.authority.issue("client-proxy", "admin", ["system:masters"])
        context = ssl.create_default_context(cafile=str(self._server.authority.certificate))
        context.load_cert_chain(pair.certificate, pair.key)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=4 << 20,  # an event is one line
        )
        application = web.Application(client_max_size=16 << 20)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        # First what the API server has not answered yet: it breaks, while a request that is cancelled would leave
        # behind a connection that waits for a farewell.
        await self._session.close()
        await self._runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}  # of connections that were broken
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self._session.closed:
            return _broken(request, Break())
        watch, dry_run = request.query.get("watch") in ("true", "1"), "dryRun" in request.query
        call = Call(request.method, request.path, watch, dry_run)
        fault = self.rule(call)
        if isinstance(fault, Answer):
            self.answers.append((call, fault.code))
            return web.json_response(fault.body(), status=fault.code, headers=fault.headers)
        if isinstance(fault, Break) and not fault.after:
            self.answers.append((call, 0))
            return _broken(request, fault)
        if isinstance(fault, Stall):
            await asyncio.sleep(fault.seconds)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in (*_HOP, "host")}
        url, body = URL(self._server.url + request.raw_path, encoded=True), await request.read()
        try:
            async with self._session.request(
                request.method,
                url,
                data=body or None,
                headers=headers,
                skip_auto_headers=("Content-Type", "User-Agent"),
            ) as answer:
                self.answers.append((call, answer.status))
                try:
                    if isinstance(fault, Break):
                        await answer.read()
                        return _broken(request, fault)
                    return await _hand_on(request, answer, fault if call.watch else None)
                finally:
                    _abort(answer)
        except (aiohttp.ClientError, ConnectionError):
            return _broken(request, Break())  # the API server is away, or the operator


def _abort(answer: aiohttp.ClientResponse) -> None:
    """End the connection of an answer that was not read to its end, without the wait of a closing TLS."""
    connection = answer.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()


def _broken(request: web.Request, fault: Break) -> web.Response:
    fault.then()
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _hand_on(
    request: web.Request, answer: aiohttp.ClientResponse, fault: Fault | None
) -> web.StreamResponse:
    headers = {k: v for k, v in answer.headers.items() if k.lower() != "transfer-encoding"}
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    async for part in _parts(answer, fault):
        await response.write(part)
    if isinstance(fault, Watch) and request.transport is not None:
        request.transport.abort()
    else:
        await response.write_eof()
    return response


async def _parts(answer: aiohttp.ClientResponse, fault: Fault | None) -> AsyncIterator[bytes]:
    if not isinstance(fault, Watch):
        async for part in answer.content.iter_any():
            yield part
        return
    seen = 0
    while line := await answer.content.readuntil(b"\n"):
        for each in fault.lines(line):
            await asyncio.sleep(fault.delay())
            yield each
        seen += 1
        if fault.events is not None and seen >= fault.events:
            return
