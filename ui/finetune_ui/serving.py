"""The server on loopback."""

import socket
from collections.abc import Callable

import uvicorn

from finetune_ui.guard import Guard
from finetune_ui.server import Server
from finetune_ui.source import Source


def server_of(source: Source, guard: Guard) -> uvicorn.Server:
    """The server over a source, which answers those that the guard lets in."""
    pages = Server(source)
    settings = uvicorn.Config(
        guard.around(pages.app),
        log_level="warning",
        access_log=False,  # it would have the token
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=None,  # a page that is being drawn is soon there; a second Ctrl-C does not wait
    )
    server = uvicorn.Server(settings)
    pages.is_closing = lambda: server.should_exit
    return server


def serve(source: Source, listener: socket.socket, tell: Callable[[str], None]) -> None:
    """Serve the source on a bound socket until interrupted; `tell` is given the address to open."""
    guard = Guard(listener.getsockname()[1])
    server = server_of(source, guard)
    listener.listen()
    tell(guard.address)
    server.run(sockets=[listener])
