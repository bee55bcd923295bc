"""A small API server on loopback: it keeps objects, records what it is asked, and misbehaves as a test tells it to.

It has Kubernetes' rules of uids, resource versions, preconditions and watches, and no schema. `tests/cluster` has the
real one.
"""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from aiohttp import web
from kubernetes.aio import client

from finetune_operator.children import Manifest
from finetune_operator.kube import Kube


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    query: Mapping[str, str]
    content_type: str
    body: Manifest
    beside: int
    """How many others had no answer yet when it came, watches aside."""

    @property
    def watch(self) -> bool:
        """Whether it follows changes."""
        return self.query.get("watch") == "true"

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Answer:
    """Say this instead; `text` in the place of Kubernetes' Status."""

    status: int
    message: str = ""
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None
    wrong: str = ""
    """The field that is."""

    def body(self) -> str:
        """What is sent."""
        facts = {"kind": "Status", "status": "Failure", "code": self.status}
        said: Manifest = {"message": self.message, "reason": self.reason}
        if self.wrong:
            said["details"] = {"causes": [{"field": self.wrong}]}
        return json.dumps(facts | said) if self.text is None else self.text


@dataclass(frozen=True)
class Broken:
    """Break the connection: before anything is done, or after."""

    after: bool = False


@dataclass(frozen=True)
class Stalled:
    """Do as asked so many seconds later."""

    seconds: float


@dataclass(frozen=True)
class Chunks:
    """Send these bytes of a watch one after another, and then end it or break the connection."""

    chunks: tuple[bytes, ...]
    broken: bool = False


Fault: TypeAlias = Answer | Broken | Stalled | Chunks | Callable[[], None]
"""What happens to a request; a function is called before it is answered as usual."""


@dataclass
class _Rule:
    method: str
    part: str
    faults: list[Fault]


@dataclass(frozen=True)
class _Change:
    word: str
    place: "_Place"
    body: Manifest
    version: int


@dataclass(frozen=True)
class _Place:
    """Where a path points to: an object, or all objects of a kind in a namespace or (without one) in all."""

    group: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @classmethod
    def of(cls, path: str) -> "_Place":
        """Of `/api/v1/…` or `/apis/<group>/<version>/…`."""
        parts = path.strip("/").split("/")
        prefix = 2 if parts[0] == "api" else 3
        group, rest = "/".join(parts[:prefix]), parts[prefix:]
        namespace = ""
        if rest[:1] == ["namespaces"] and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plural, name, subresource = (*rest, "", "", "")[:3]
        return cls(group, plural, namespace, name, subresource)

    @property
    def object(self) -> "_Place":
        """The object that a subresource is one of."""
        return _Place(self.group, self.plural, self.namespace, self.name)

    def holds(self, other: "_Place") -> bool:
        """Whether an object is among those that this path lists."""
        same = (self.group, self.plural) == (other.group, other.plural)
        return same and self.namespace in ("", other.namespace)


class FakeApi:
    """The server; `serving` starts one."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.page = 500
        """Objects in one page of a list at most."""

        self.version = 100
        self._objects: dict[_Place, Manifest] = {}
        self._changes: list[_Change] = []
        self._changed = asyncio.Condition()
        self._rules: list[_Rule] = []
        self._unanswered = 0
        self._clients: list[client.ApiClient] = []
        self._url = ""

    # -- what a test says and asks

    def kube(self, may_write: Callable[[], bool] = lambda: True) -> Kube:
        """Requests to this server."""
        configuration = client.Configuration(host=self._url)
        configuration.client_session_kwargs = {"trust_env": False}
        self._clients.append(client.ApiClient(configuration))
        return Kube(self._clients[-1], may_write)

    def on(self, method: str, part: str, *faults: Fault) -> None:
        """Let these happen, one each, to the next requests of that method whose path ends with `part`."""
        self._rules.append(_Rule(method, part, list(faults)))

    def put(self, path: str, body: Manifest) -> Manifest:
        """Make the object at that path, or change it, as somebody else does it."""
        return self._store(_Place.of(path), body)

    def get(self, path: str) -> Manifest | None:
        """The object at that path."""
        return self._objects.get(_Place.of(path))

    def all(self, path: str) -> list[Manifest]:
        """Every object of the kind and namespace of that path."""
        place = _Place.of(path)
        return [body for each, body in self._objects.items() if place.holds(each)]

    def remove(self, path: str) -> None:
        """Delete the object at that path, as somebody else does it."""
        self._remove(_Place.of(path))

    def writes(self) -> list[str]:
        """What it was asked to change, in order."""
        return [str(request) for request in self.requests if request.method != "GET"]

    def asked(self, method: str, part: str) -> list[Request]:
        """The requests of that method whose path ends with `part`."""
        return [r for r in self.requests if r.method == method and r.path.endswith(part)]

    # -- what happens to a request

    async def answer(self, incoming: web.BaseRequest) -> web.StreamResponse:
        """Record it, and do as asked, or as a rule has it."""
        text = await incoming.text()
        request = Request(
            method=incoming.method,
            path=incoming.path,
            query=dict(incoming.query),
            content_type=incoming.content_type,
            body=json.loads(text) if text else {},
            beside=self._unanswered,
        )
        self.requests.append(request)
        if request.watch:
            return await self._watch(incoming, request)
        self._unanswered += 1
        try:
            return await self._answer(incoming, request)
        finally:
            self._unanswered -= 1

    def _fault(self, request: Request) -> Fault | None:
        for rule in self._rules:
            if rule.faults and rule.method == request.method and request.path.endswith(rule.part):
                return rule.faults.pop(0)
        return None

    async def _answer(self, incoming: web.BaseRequest, request: Request) -> web.StreamResponse:
        fault = self._fault(request)
        match fault:
            case Answer():
                return _response(fault)
            case Broken(after=False):
                return _broken(incoming)
            case Stalled():
                await asyncio.sleep(fault.seconds)
            case Broken() | Chunks() | None:
                pass
            case _:
                fault()
        done = self._done(request, _Place.of(request.path))
        async with self._changed:
            self._changed.notify_all()
        if isinstance(fault, Broken):
            return _broken(incoming)
        return _response(done) if isinstance(done, Answer) else web.json_response(done)

    async def _watch(self, incoming: web.BaseRequest, request: Request) -> web.StreamResponse:
        fault = self._fault(request)
        if isinstance(fault, Answer):
            return _response(fault)
        stream = web.StreamResponse()
        await stream.prepare(incoming)
        if isinstance(fault, Chunks):
            for chunk in fault.chunks:
                await stream.write(chunk)
                await asyncio.sleep(0)
            return _broken(incoming) if fault.broken else stream
        place, version = _Place.of(request.path), int(request.query["resourceVersion"])
        while True:
            for change in list(self._changes):
                if change.version > version and place.holds(change.place):
                    await stream.write(line(change.word, change.body))
                    version = change.version
            async with self._changed:
                await self._changed.wait()

    def _done(self, request: Request, place: _Place) -> Manifest | Answer:
        found, body = self._objects.get(place.object), request.body
        if request.method == "GET":
            if not place.name:
                return self._listed(request, place)
            return found if found is not None else _missing(request)
        if request.method == "POST":
            return self._created(request, place)
        if found is None and (request.method != "PATCH" or place.subresource):
            return _missing(request)
        meta = body.get("preconditions") if request.method == "DELETE" else body["metadata"]
        if "apply-patch" in request.content_type and (uid := body["metadata"].get("uid")):
            if found is None:
                return Answer(409, "uid mismatch: no existing object was found", "Conflict")
            if uid != found["metadata"]["uid"]:
                return Answer(
                    422, "is invalid: field is immutable", "Invalid", wrong="metadata.uid"
                )
        if found is not None and not _meets(found, meta or {}):
            return Answer(409, "the object has been modified", "Conflict")
        if request.method == "DELETE":
            self._remove(place)
            return {"kind": "Status", "status": "Success"}
        if place.subresource:
            return self._store(place.object, {**(found or {}), place.subresource: body["status"]})
        return self._store(place, {**(found or {}), **body})

    def _created(self, request: Request, place: _Place) -> Manifest | Answer:
        name = request.body["metadata"]["name"]
        place = _Place(place.group, place.plural, place.namespace, name)
        if place in self._objects:
            return Answer(409, f"{place.plural} {name!r} already exists", "AlreadyExists")
        if "dryRun" in request.query:
            return request.body
        return self._store(place, request.body)

    def _listed(self, request: Request, place: _Place) -> Manifest:
        label = request.query.get("labelSelector", "")
        items = [
            body
            for each, body in self._objects.items()
            if place.holds(each) and (not label or label in body["metadata"].get("labels", {}))
        ]
        begin = int(request.query.get("continue") or 0)
        end = begin + min(self.page, int(request.query.get("limit") or self.page))
        more = {"continue": str(end)} if end < len(items) else {}
        return {
            "metadata": {"resourceVersion": str(self.version), **more},
            "items": items[begin:end],
        }

    def _store(self, place: _Place, body: Manifest) -> Manifest:
        old = self._objects.get(place)
        self.version += 1
        known = {"uid": f"uid-{self.version}"} if old is None else {"uid": old["metadata"]["uid"]}
        stored = copy.deepcopy(body)
        stored["metadata"] = {
            **known,
            **{name: value for name, value in stored["metadata"].items() if value is not None},
            "resourceVersion": str(self.version),
        }
        self._objects[place] = stored
        self._tell("ADDED" if old is None else "MODIFIED", place, stored)
        return stored

    def _remove(self, place: _Place) -> None:
        body = copy.deepcopy(self._objects.pop(place))
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self._tell("DELETED", place, body)

    def _tell(self, word: str, place: _Place, body: Manifest) -> None:
        self._changes.append(_Change(word, place, body, self.version))

    async def tell(self) -> None:
        """Let watches know what `put` and `remove` have changed."""
        async with self._changed:
            self._changed.notify_all()

    async def start(self) -> web.ServerRunner:
        """Listen at a free port."""
        runner = web.ServerRunner(
            web.Server(self.answer, handler_cancellation=True, access_log=None),
            shutdown_timeout=0.1,
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        self._url = f"http://{host}:{port}"
        return runner

    async def close(self) -> None:
        """Close all connections to it."""
        for each in self._clients:
            await each.close()


@asynccontextmanager
async def serving() -> AsyncIterator[FakeApi]:
    """A server of its own."""
    api = FakeApi()
    runner = await api.start()
    try:
        yield api
    finally:
        await api.close()
        await runner.cleanup()


def line(word: str, body: Mapping[str, object]) -> bytes:
    """One event of a watch."""
    return json.dumps({"type": word, "object": body}).encode() + b"\n"


def _meets(found: Manifest, meta: Mapping[str, object]) -> bool:
    """Whether the object is the one, and in the version, that is meant."""
    known = found["metadata"]
    return all(meta.get(name) in (None, known[name]) for name in ("uid", "resourceVersion"))


def _missing(request: Request) -> Answer:
    return Answer(404, f"{request.path} not found", "NotFound")


def _response(answer: Answer) -> web.Response:
    return web.Response(
        status=answer.status,
        text=answer.body(),
        headers=answer.headers,
        content_type="application/json",
    )


def _broken(incoming: web.BaseRequest) -> web.Response:
    if incoming.transport is not None:
        incoming.transport.abort()
    return web.Response()
