"""What the kubelet asks: whether this process is alive, and whether it sees what it is there for.

Only readiness depends on the API server: a process that is restarted because that is away sees no more than before.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def serving(port: int, blind: Callable[[], str]) -> AsyncIterator[None]:
    """Answer at `/healthz`, and at `/readyz` unless `blind` says why not; nowhere at port 0.

    Raises OSError if the port is taken.
    """

    async def alive(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        why = blind()
        return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

    application = web.Application()
    application.add_routes([web.get("/healthz", alive), web.get("/readyz", ready)])
    runner = web.AppRunner(application, handle_signals=False, shutdown_timeout=1.0, access_log=None)
    await runner.setup()
    try:
        if port:
            await web.TCPSite(runner, "0.0.0.0", port).start()
        yield
    finally:
        await runner.cleanup()
