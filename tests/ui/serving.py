"""The live page, served as `finetune ui` serves it, for as long as a test needs it."""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from finetune_ui.command import bound
from finetune_ui.guard import Guard
from finetune_ui.serving import server_of
from finetune_ui.source import Source

WAIT = 60.0


@dataclass(frozen=True)
class Answer:
    """What the server has answered."""

    status: int
    headers: Mapping[str, str]
    text: str


@dataclass(frozen=True)
class Served:
    """A running server, and how a browser would ask it."""

    guard: Guard

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.guard.port}"

    @property
    def cookie(self) -> str:
        return f"{self.guard.cookie}={self.guard.token}"

    def ask(
        self, path: str, method: str = "GET", body: str | None = None, **headers: str | None
    ) -> Answer:
        """One request with the cookie; a header that is None is left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.guard.port, timeout=WAIT)
        sent: dict[str, str | None] = {"Cookie": self.cookie, **headers}
        if method == "POST" and "Origin" not in headers:
            sent["Origin"] = self.origin
        try:
            connection.request(
                method, path, body, {name: text for name, text in sent.items() if text is not None}
            )
            answer = connection.getresponse()
            found = {name.lower(): text for name, text in answer.getheaders()}
            return Answer(answer.status, found, answer.read().decode())
        finally:
            connection.close()

    @contextmanager
    def changes(self, path: str) -> Iterator[Iterator[tuple[str, Any]]]:
        """The events at `path`, as they come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.guard.port, timeout=WAIT)
        connection.request("GET", path, headers={"Cookie": self.cookie})
        answer = connection.getresponse()

        def events() -> Iterator[tuple[str, Any]]:
            kind = ""
            for line in answer:
                name, _, text = line.decode().strip().partition(": ")
                if name == "event":
                    kind = text
                elif name == "data":
                    yield kind, json.loads(text)

        try:
            yield events()
        finally:
            connection.close()


@contextmanager
def served(source: Source) -> Iterator[Served]:
    """The source on a free port."""
    listener = bound(0)
    guard = Guard(listener.getsockname()[1])
    server = server_of(source, guard)
    listener.listen()
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
    thread.start()
    try:
        yield Served(guard)
    finally:
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()
