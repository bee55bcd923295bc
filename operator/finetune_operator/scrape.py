"""Serves the metrics: to whom the API server lets read them, or to everybody."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import hdrs, web
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from finetune_operator import certificate
from finetune_operator.kube import Kube, connect
from finetune_operator.reviews import Reviews, Verdict
from finetune_operator.settings import Settings

PATH = "/metrics"
_CONNECTIONS = 2
"""To the API server, about tokens: whoever sends many waits, and nobody else does."""

_SAID = {
    Verdict.UNKNOWN: "send the token of an account: Authorization: Bearer <token>",
    Verdict.FORBIDDEN: f"the account needs the right to get {PATH}: the ClusterRole finetune-metrics-reader",
    Verdict.UNDECIDED: "the API server does not say who you are",
}


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[None]:
    """Serve all series as the settings have it. Raises OSError if the port is taken or a certificate cannot be read."""
    async with AsyncExitStack() as stack:
        match settings.metrics_access:
            case "Open":
                await stack.enter_async_context(served(settings.metrics_port))
            case "Authenticated":
                tls = await _encrypted(settings, stack)
                kube = Kube(await connect(_CONNECTIONS))
                stack.push_async_callback(kube.close)
                reviews = Reviews(kube, PATH)
                await stack.enter_async_context(served(settings.metrics_port, reviews, tls))
            case "Off":
                pass
        yield


async def _encrypted(settings: Settings, stack: AsyncExitStack) -> ssl.SSLContext:
    """TLS with a certificate, which is followed until the stack ends if it is the platform's."""
    tls = certificate.context()
    if settings.metrics_certificate:
        mounted = certificate.Mounted(tls, Path(settings.metrics_certificate))
        stack.callback(asyncio.create_task(mounted.follow()).cancel)
    else:
        certificate.self_signed(tls, socket.gethostname())
    return tls


@asynccontextmanager
async def served(
    port: int, reviews: Reviews | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve all series at a port (0: any), without `reviews` to everybody; yields the port."""

    async def show(request: web.Request) -> web.Response:
        if reviews is not None:
            verdict = await reviews.verdict(_token(request))
            if verdict is not Verdict.ALLOWED:
                return _refusal(verdict)
        encode, content_type = choose_encoder(",".join(request.headers.getall(hdrs.ACCEPT, [])))
        # Thousands of series take a while, in which the operator goes on.
        body = await asyncio.to_thread(encode, REGISTRY)
        response = web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})
        response.enable_compression()
        return response

    application = web.Application()
    application.router.add_get(PATH, show)
    runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "0.0.0.0", port, ssl_context=tls).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _token(request: web.Request) -> str:
    kind, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _refusal(verdict: Verdict) -> web.Response:
    headers = {hdrs.WWW_AUTHENTICATE: "Bearer"} if verdict is Verdict.UNKNOWN else {}
    return web.Response(status=verdict, text=f"{_SAID[verdict]}\n", headers=headers)
