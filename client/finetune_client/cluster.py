"""The only module that talks to the API server: a few verbs, and errors in the client's own terms."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from kubernetes.client.exceptions import ApiException
from kubernetes.watch.watch import iter_resp_lines
from urllib3.exceptions import HTTPError, ReadTimeoutError

from finetune_api.labels import ATTEMPT_LABEL, CONTAINER, UID_LABEL, is_head
from finetune_api.study import GROUP, PLURAL, VERSION
from finetune_client.access import Access
from finetune_client.errors import ClientError, NotFound, Refused, Unreachable

Body = Mapping[str, Any]
"""An object as the API server serves it."""

_MERGE = "application/merge-patch+json"
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
_SILENT_SECONDS = 180.0
"""A watch that has sent nothing for so long, not even a bookmark, begins anew."""

_LATER = {408, 429, 500, 502, 503, 504}
"""Status codes that say nothing about the request."""


class Expired(ClientError):
    """A watch cannot go on from its version: the study must be read again."""


class Cluster:
    """Requests to the API server about studies and what belongs to them."""

    def __init__(self, access: Access) -> None:
        self._api = access.api
        self.namespace = access.namespace

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def create(self, manifest: Body) -> Body:
        """POST; the study as it is stored. Raises ClientError."""
        path = _studies(manifest["metadata"]["namespace"])
        query = [("fieldManager", "finetune-client"), ("fieldValidation", "Strict")]
        return self._json("POST", path, query, manifest)

    def read(self, namespace: str, name: str) -> Body:
        """GET. Raises NotFound or another ClientError."""
        return self._json("GET", _studies(namespace, name))

    def studies(self, namespace: str | None) -> list[Body]:
        """All studies of a namespace or, with None, of all. Raises ClientError."""
        found: list[Body] = []
        more = ""
        while True:
            page = self._json("GET", _studies(namespace), [("limit", "500"), ("continue", more)])
            found += page["items"]
            more = page["metadata"].get("continue") or ""
            if not more:
                return found

    def patch(self, namespace: str, name: str, change: Body, dry_run: bool = False) -> Body:
        """Merge patch, as `kubectl patch --type=merge`; the study as it is stored. Raises ClientError.

        With `dry_run` the API server only says whether it would accept it, and what would come of it.
        """
        query = [("fieldManager", "finetune-client"), ("fieldValidation", "Strict")]
        query += [("dryRun", "All")] if dry_run else []
        return self._json("PATCH", _studies(namespace, name), query, change, _MERGE)

    def delete(self, namespace: str, name: str) -> None:
        """DELETE; what belongs to the study goes after it. Raises ClientError."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        self._json("DELETE", _studies(namespace, name), (), options)

    def watch(
        self, namespace: str, name: str, version: str, seconds: float
    ) -> Iterator[tuple[str, Body]]:
        """Type and study of each change since `version`, until the watch ends, at the latest after about `seconds`.

        Raises Expired if it cannot go on from there, else ClientError.
        """
        query = [
            ("watch", "true"),
            ("fieldSelector", f"metadata.name={name}"),
            ("resourceVersion", version),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(max(1, int(seconds)))),
        ]
        for line in self._lines(_studies(namespace), query, min(_SILENT_SECONDS, seconds + 1)):
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise _error(int(event["object"].get("code") or 0), json.dumps(event["object"]))
            yield event["type"], event["object"]

    def events(self, namespace: str, uid: str) -> list[Body]:
        """The Events about the study of that UID. Raises ClientError."""
        query = [("fieldSelector", f"involvedObject.uid={uid}")]
        return list(self._json("GET", f"{_core(namespace)}/events", query)["items"])

    def driver_pod(self, namespace: str, uid: str) -> str:
        """The newest pod in which the study's driver runs or ran. Raises NotFound if there is none, else ClientError."""
        query = [("labelSelector", f"{UID_LABEL}={uid}")]
        pods = self._json("GET", f"{_core(namespace)}/pods", query)["items"]
        metas = [pod["metadata"] for pod in pods]
        heads = [m for m in metas if is_head(m.get("labels") or {}, m.get("annotations") or {})]
        if not heads:
            raise NotFound("the study has no driver pod now: nothing runs, or its pods are gone")
        newest = max(heads, key=lambda m: (_attempt(m), m["creationTimestamp"]))
        return str(newest["name"])

    def log(self, namespace: str, pod: str, follow: bool) -> Iterator[str]:
        """The lines of the trainer's container; with `follow` until it ends. Raises ClientError."""
        query = [("container", CONTAINER), ("follow", str(follow).lower())]
        path = f"{_core(namespace)}/pods/{quote(pod, safe='')}/log"
        return self._lines(path, query, None if follow else _ANSWER_SECONDS)

    def _json(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """The object that answers. A GET is repeated once: its connection may have been closed while it was idle."""
        try:
            try:
                answer = self._send(method, path, query, body, content_type, _ANSWER_SECONDS)
            except Unreachable:
                if method != "GET":
                    raise
                answer = self._send(method, path, query, body, content_type, _ANSWER_SECONDS)
            found: dict[str, Any] = json.loads(answer.read())
            return found
        except (HTTPError, OSError) as error:
            raise _unreachable(error) from error
        except ValueError as error:
            raise Unreachable("what answers is no API server: it does not speak JSON") from error

    def _lines(
        self, path: str, query: Sequence[tuple[str, str]], silent: float | None
    ) -> Iterator[str]:
        """The lines of an answer as they come; it ends quietly when nothing has come for so many seconds."""
        answer = self._send("GET", path, query, None, "application/json", silent)
        try:
            yield from iter_resp_lines(answer.response)
        except ReadTimeoutError:
            return
        except (HTTPError, OSError) as error:
            raise _unreachable(error) from error
        finally:
            answer.response.close()

    def _send(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: Any,
        content_type: str,
        silent: float | None,
    ) -> Any:
        try:
            request = self._api.param_serialize(
                method,
                path,
                query_params=list(query),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            wait = (_CONNECT_SECONDS, silent or 24 * 3600.0)
            answer = self._api.call_api(*request, _request_timeout=wait)
            if not 200 <= answer.status < 300:
                raise _error(answer.status, answer.read().decode(errors="replace"))
            return answer
        except ApiException as error:
            raise _error(error.status or 0, str(error.body or error.reason)) from error
        except (HTTPError, OSError) as error:
            raise _unreachable(error) from error


def _studies(namespace: str | None, name: str | None = None) -> str:
    scope = "" if namespace is None else f"/namespaces/{quote(namespace, safe='')}"
    one = "" if name is None else f"/{quote(name, safe='')}"
    return f"/apis/{GROUP}/{VERSION}{scope}/{PLURAL}{one}"


def _core(namespace: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace, safe='')}"


def _attempt(metadata: Body) -> int:
    number = str(metadata["labels"].get(ATTEMPT_LABEL, ""))
    return int(number) if number.isdecimal() else 0


def _unreachable(error: Exception) -> Unreachable:
    told = " ".join(str(error).split())
    return Unreachable(f"the API server does not answer: {told or type(error).__name__}")


def _error(status: int, body: str) -> ClientError:
    try:
        told = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        told = body
    message = " ".join(str(told).split()) or f"status {status}"
    if status == 404:
        return NotFound(message)
    if status == 410:
        return Expired(message)
    if status in _LATER or status == 0:
        return Unreachable(f"the API server cannot answer now ({status}): {message}")
    return Refused(message)
