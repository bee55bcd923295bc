"""The pages, and what a page needs to follow what it shows."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl

from jinja2 import ChoiceLoader, Environment, PackageLoader
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from finetune_reports.page import (
    Parts,
    asset,
    comparison_parts,
    environment_of,
    plotly_script,
    rendered,
    report_parts,
)
from finetune_ui.guard import POLICY
from finetune_ui.source import Line, NoStudy, Source, SourceError

LOOKS_SECONDS = 1.0
"""Between looks whether something has changed."""

LOOKS_SHARE = 20.0
"""After a look, none for so many times as long as it took."""

REST = 3.0
"""After a page was drawn, nobody is told of changes for so many times as long as that took."""

MOST_COMPARED = 8


class Server:
    """The application over a source of studies."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.is_closing: Callable[[], bool] = lambda: False
        """Whether pages that follow a study must let go."""

        self._rests: dict[str, float] = {}
        """Until when each study is not drawn again (`time.monotonic`)."""

        self.app = Starlette(
            routes=[
                Route("/", self._list),
                Route("/changes", self._changes),
                Route("/compare", self._compare),
                Route("/studies/{study}", self._study),
                Route("/studies/{study}/changes", self._changes),
                Route("/studies/{study}/document", self._document),
                Route("/studies/{study}/log", self._log),
                Route("/studies/{study}/{action}", self._act, methods=["POST"]),
                Route("/assets/{name}", _served),
            ],
            exception_handlers={HTTPException: self._http_error, SourceError: self._source_error},
        )

    def _list(self, request: Request) -> Response:
        version = _short(self._source.version())  # first: what changes meanwhile is told
        parts = Parts([], {"lines": self._source.lines()})
        return self._page("list.html", parts, "/changes", version)

    def _study(self, request: Request) -> Response:
        study, full = request.path_params["study"], "full" in request.query_params
        found = self._source.study(study)
        version = _short(found.version())  # first: what changes meanwhile is told
        line, around = found.line(), found.around()
        began = time.monotonic()
        try:
            parts = report_parts(found.report(full))
        except NoStudy:
            raise
        except SourceError as error:
            parts = Parts([], {"trouble": str(error)})
            template = "no_report.html"
        else:
            template = "study.html"
        values = {**parts.values, "line": line, "around": around, "full": full}
        follows = f"/studies/{study}/changes"
        page = self._page(template, replace(parts, values=values), follows, version)
        now = time.monotonic()
        self._rests[study] = now + REST * (now - began)
        return page

    def _document(self, request: Request) -> Response:
        report = self._source.study(request.path_params["study"]).report(
            "full" in request.query_params
        )
        return Response(report.to_json(), media_type="application/json")

    def _compare(self, request: Request) -> Response:
        studies = request.query_params.getlist("study")
        if not 2 <= len(studies) <= MOST_COMPARED:
            raise HTTPException(400, f"Choose 2 to {MOST_COMPARED} studies to compare.")
        reports = [self._source.study(study).report() for study in studies]
        return self._page("compared.html", comparison_parts(reports))

    def _log(self, request: Request) -> Response:
        found = self._source.study(request.path_params["study"])
        values = {"line": found.line(), "log": found.log()}
        return self._page("log.html", Parts([], values))

    async def _act(self, request: Request) -> Response:
        study, action = request.path_params["study"], request.path_params["action"]
        given = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True))
        sure = given.pop("sure", "") == "yes"
        found = await run_in_threadpool(self._source.study, study)
        asked = await run_in_threadpool(found.act, action, given, sure)
        if sure:
            return RedirectResponse(f"/studies/{study}", 303)
        values = {"line": await run_in_threadpool(found.line), "asked": asked}
        return self._page("sure.html", Parts([], values))

    def _changes(self, request: Request) -> Response:
        study = request.path_params.get("study")
        return StreamingResponse(
            self._tell(study),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    def _version(self, study: str | None) -> str:
        return (self._source if study is None else self._source.study(study)).version()

    async def _tell(self, study: str | None) -> AsyncIterator[str]:
        """An event each time that the study, or the list, is not what it was."""
        before: str | None = None
        while True:
            looked = time.monotonic()
            try:
                now = await run_in_threadpool(self._version, study)
            except NoStudy:
                yield _event("gone", "")
                return
            except (SourceError, OSError, ValueError, LookupError, TypeError) as error:
                # The page that is then asked for tells it.
                now = f"trouble {error}"
            looked = time.monotonic() - looked
            if before is None:
                yield _event("hello", _short(now))
            elif now != before:
                yield _event("changed", _short(now))
            else:
                yield ": still the same\n\n"  # so that a closed page is noticed
            before = now
            # Neither looking nor drawing is to take more than a small part of the machine.
            rests = time.monotonic() + max(LOOKS_SECONDS, LOOKS_SHARE * looked)
            while time.monotonic() < max(rests, self._rests.get(study or "", 0.0)):
                if self.is_closing():
                    return
                await asyncio.sleep(0.2)

    def _page(self, template: str, parts: Parts, follows: str = "", version: str = "") -> Response:
        values = {**parts.values, "title": self._source.title}
        values |= {"follows": follows, "version": version}
        assets = {"plotly": _address("plotly.js"), "page": _address("page.js")}
        values |= {"assets": {**assets, "live": _address("live.js")}}
        found = _environment().get_template(template)
        page = rendered(found, parts.figures, POLICY, values)
        return HTMLResponse(page, headers={"Cache-Control": "no-store"})

    def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._error(error.status_code, error.detail)

    def _source_error(self, request: Request, error: Exception) -> Response:
        return self._error(404 if isinstance(error, NoStudy) else 502, str(error))

    def _error(self, status: int, why: str) -> Response:
        page = self._page("error.html", Parts([], {"why": why}))
        page.status_code = status
        return page


def ended_share(line: Line) -> float | None:
    """The share of its trials that have ended, between 0 and 1; None if nobody knows how many there will be."""
    done, _, planned = line.trials.partition("/")
    if not (done.isdecimal() and planned.isdecimal() and int(planned)):
        return None
    return min(1.0, int(done) / int(planned))


def _event(kind: str, data: str) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def _short(text: str) -> str:
    return sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


@cache
def _environment() -> Environment:
    loader = ChoiceLoader([PackageLoader("finetune_ui"), PackageLoader("finetune_reports")])
    environment = environment_of(loader)
    environment.globals["share"] = ended_share
    return environment


@cache
def _scripts() -> Mapping[str, Callable[[], str]]:
    def live() -> str:
        source = PackageLoader("finetune_ui").get_source(_environment(), "live.js")
        return source[0]

    return {"plotly.js": plotly_script, "page.js": lambda: asset("page.js"), "live.js": live}


@cache
def _address(name: str) -> str:
    """Where an asset is; it changes with the asset, which browsers may keep for good."""
    return f"/assets/{name}?{_short(_scripts()[name]())}"


def _served(request: Request) -> Response:
    found = _scripts().get(request.path_params["name"])
    if found is None:
        raise HTTPException(404, "There is no such file.")
    headers: dict[str, Any] = {"Cache-Control": "private, max-age=31536000, immutable"}
    return Response(found(), media_type="text/javascript", headers=headers)
