"""Who may use the page: whoever started it, in a browser that was given its token, from its own address.

Any page of the web can send requests to loopback, and a name can be made to mean 127.0.0.1: so each request must name
this server as its host, and carry the cookie that only the address with the token sets; and what changes anything must
come from a page of this server.
"""

import secrets
from dataclasses import dataclass, field

from starlette.datastructures import Headers, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'unsafe-inline'",
        "connect-src 'self'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'self'",
    )
)
"""The policy of a page, in the page."""

HEADERS = (  # without a referrer at all, a browser would not say which page a form is sent from
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Guard:
    """The token of one start of the server."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def address(self) -> str:
        """What is opened first: it has the token, and is left for the page without it."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """Its name: cookies do not know ports."""
        return f"finetune-ui-{self.port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a request may call this server."""
        return (f"127.0.0.1:{self.port}", f"localhost:{self.port}")

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, for those who may."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                return await app(scope, receive, send)
            if scope["type"] != "http":
                return None  # nothing here speaks anything else

            async def sent(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], *HEADERS]
                await send(message)

            refusal = self._refusal(scope)
            if refusal is not None:
                return await refusal(scope, receive, sent)
            return await app(scope, receive, sent)

        return guarded

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self.hosts:
            return _no(421, f"This server answers only as {self.hosts[0]} or {self.hosts[1]}.")
        origin = headers.get("origin")
        own = f"http://{host}"
        if scope["method"] in CHANGING:
            if origin != own:
                return _no(403, "Changes are taken only from a page of this server.")
        elif origin not in (None, own):
            return _no(403, "Pages of other servers may not read here.")
        given = QueryParams(scope["query_string"]).get("token")
        if given is not None and scope["method"] == "GET":
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                return _no(403, _ASK)
            answer = RedirectResponse(scope["path"], 303)
            # Lax, or a link on a page of another site would lead to a page without it; what changes anything has its origin checked.
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="lax", path="/")
            return answer
        had = cookie_parser(headers.get("cookie", "")).get(self.cookie, "")
        if not secrets.compare_digest(had.encode(), self.token.encode()):
            return _no(403, _ASK)
        return None


_ASK = "Open the address that `finetune ui` printed: it has the token of this start."


def _no(status: int, why: str) -> ASGIApp:
    return PlainTextResponse(f"{why}\n", status)
