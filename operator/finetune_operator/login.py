"""How kopf reaches the API server, and what becomes of its watches of studies.

kopf opens these by itself and says nothing about them, but it takes the session to do it with: aiohttp tells of each
request of that session.
"""

import os
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf
from yarl import URL

from finetune_api.study import GROUP, KIND, PLURAL, VERSION
from finetune_operator.alive import Watches

_STUDIES = re.compile(
    rf"/apis/{re.escape(GROUP)}/{VERSION}/(?:namespaces/(?P<place>[^/]+)/)?{PLURAL}"
)


class Login:
    """A handler for kopf: the pod's own account, else the kubeconfig.

    Args:
        watches: learn when a watch of studies is opened.
    """

    def __init__(self, watches: Watches) -> None:
        self._watches = watches
        self._last: tuple[kopf.ConnectionInfo, kopf.AiohttpSession] | None = None

    async def account(self, **context: Any) -> kopf.AiohttpSession | None:
        """What to reach the API server with; None if there is no account."""
        found = in_pod(**context) or kopf.login_with_kubeconfig(**context)
        if found is None:
            return None
        # kopf gives up where credentials that were refused are all there are, and knows them by their session.
        if self._last is None or self._last[0] != found:
            self._last = found, self._session(found)
        return self._last[1]

    def _session(self, found: kopf.ConnectionInfo) -> kopf.AiohttpSession:
        """As kopf would make it, and traced."""
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=found.as_ssl_context()),
            headers=found.as_http_headers(),
            proxy=found.proxy_url,
            trust_env=found.trust_env,
            trace_configs=[self._trace()],
        )
        return kopf.AiohttpSession(
            server=found.server,
            default_namespace=found.default_namespace,
            priority=found.priority,
            expiration=found.expiration,
            aiohttp_session=session,
        )

    def _trace(self) -> aiohttp.TraceConfig:
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._asked)
        trace.on_request_end.append(self._answered)
        return trace

    async def _asked(
        self,
        session: aiohttp.ClientSession,
        context: SimpleNamespace,
        request: aiohttp.TraceRequestStartParams,
    ) -> None:
        if (studies := _STUDIES.search(request.url.path)) is not None:
            # Whether kopf lists or watches, it has no watch now.
            self._watches.ended(KIND, studies["place"])

    async def _answered(
        self,
        session: aiohttp.ClientSession,
        context: SimpleNamespace,
        request: aiohttp.TraceRequestEndParams,
    ) -> None:
        response = request.response
        studies = _STUDIES.search(request.url.path)
        if studies is not None and response.status == 200 and _is_watch(request.url):
            self._watches.opened(KIND, studies["place"], lambda: response.closed)


def _is_watch(url: URL) -> bool:
    return url.query.get("watch") == "true"


def in_pod(**context: Any) -> kopf.ConnectionInfo | None:
    """By the pod's account, at the address that every pod is given: kopf would ask DNS, which may fail by itself."""
    found = kopf.login_with_service_account(**context)
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{part}") for part in ("HOST", "PORT"))
    if found is None or not host or not port:
        return found
    address = f"[{host}]" if ":" in host else host
    return replace(found, server=f"https://{address}:{port}")
