"""The only module that talks to Kubernetes: a few verbs, and errors in the operator's own terms."""

import json
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from aiohttp import ClientError, ClientTimeout, StreamReader
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from finetune_api.classes import CLASS_KIND, CLASS_PLURAL
from finetune_api.study import GROUP, KIND, PLURAL, VERSION
from finetune_operator import traces
from finetune_operator.metrics import API_REQUESTS
from finetune_operator.names import MANAGER

_PATHS = {
    "ConfigMap": ("api/v1", "configmaps"),
    "Event": ("api/v1", "events"),
    "Pod": ("api/v1", "pods"),
    "Secret": ("api/v1", "secrets"),
    "Service": ("api/v1", "services"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    "Job": ("apis/batch/v1", "jobs"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "SubjectAccessReview": ("apis/authorization.k8s.io/v1", "subjectaccessreviews"),
    "TokenReview": ("apis/authentication.k8s.io/v1", "tokenreviews"),
    "RayJob": ("apis/ray.io/v1", "rayjobs"),
    KIND: (f"apis/{GROUP}/{VERSION}", PLURAL),
    CLASS_KIND: (f"apis/{GROUP}/{VERSION}", CLASS_PLURAL),
    "Namespace": ("api/v1", "namespaces"),
}
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"
_WATCH_SECONDS = (300, 600)
"""Shortest and longest duration of a watch: not all of them begin anew at the same time."""

_SILENT_SECONDS = 180.0
"""A watch that has sent nothing, not even a bookmark, for this long begins anew."""

_ANSWER_SECONDS = 30.0
"""The API server must answer within this time, except to a watch; otherwise the request is retried."""

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_REFUSED = {400, 405, 413, 415, 422}
"""Status codes that the same request will get again."""

_UNKNOWN_FIELD = "failed to create typed patch object"
"""The message of the 500 with which server-side apply answers an unknown field."""

_WRONG_FORM = re.compile(r'\S+ "[^"]*" is invalid: |\S+ in version "[^"]*" cannot be handled as a ')
"""How the API server begins when an object has not the form of its kind. (Policies: "… is forbidden: …"; webhooks:
"admission webhook … denied the request: …", both with any status code.)"""

_TOO_NEW = "Too large resource version"
"""The message of the 504 for a version that the API server has not reached (yet), as after etcd was restored."""


class KubeError(Exception):
    """A request that failed; trying again later may help."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after
        """Seconds that the API server asks to wait."""


class Refused(KubeError):
    """The API server does not accept this object: its form is wrong, or a policy denies it."""


class Malformed(Refused):
    """The object does not have the form that the API demands, whatever admission says about it."""


class Forbidden(KubeError):
    """Not possible now: a quota, a policy, a missing right, a name that is taken, a kind that is not served."""


class Gone(KubeError):
    """The object, or its namespace, is not there."""


class Exists(KubeError):
    """An object of that name exists already."""


class Conflict(KubeError):
    """The object is not the one, or not in the version, that was meant; or a quota was counted meanwhile."""


class Expired(KubeError):
    """A watch cannot continue from its version: everything must be listed again."""


async def connect(connections: int) -> client.ApiClient:
    """A client of the API server: that of the pod's own account, else of the kubeconfig."""
    try:
        config.load_incluster_config()
    except config.ConfigException:
        await config.load_kube_config()
    configuration = client.Configuration.get_default_copy()
    configuration.connection_pool_maxsize = connections
    # Otherwise each request uses a thread to look for a netrc file, and one for a proxy. kopf's client skips both.
    configuration.client_session_kwargs = {"trust_env": False}
    return client.ApiClient(configuration)


class Kube:
    """Requests to the API server through one pooled client.

    `may_write` is asked before each request that changes something: an operator that may no longer act
    must not, wherever its work stands.
    """

    def __init__(self, api: client.ApiClient, may_write: Callable[[], bool] = lambda: True) -> None:
        self._api = api
        self._may_write = may_write

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def apply(self, manifest: Mapping[str, Any], subresource: str = "") -> dict[str, Any]:
        """Server-side apply under the operator's field manager. Raises KubeError."""
        meta = manifest["metadata"]
        path = self._path(manifest["kind"], meta["namespace"], meta["name"], subresource)
        query = [("fieldManager", MANAGER), ("force", "true"), ("fieldValidation", "Strict")]
        return await self._request("PATCH", path, manifest, query, _APPLY)

    async def update(self, live: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Server-side apply to that very object, `live`. Raises Conflict if another one has its name, or none; else
        KubeError.

        Fields that belong to the operator because it created the object belong to it as applied ones from now on:
        otherwise those that `manifest` no longer has would stay.
        """
        meta = {**manifest["metadata"], "uid": live["metadata"]["uid"]}
        fields = as_applied(live["metadata"].get("managedFields") or [])
        if fields is not None:
            path = self._path(manifest["kind"], meta["namespace"], meta["name"])
            known = {name: live["metadata"][name] for name in ("uid", "resourceVersion")}
            patch = {"metadata": {**known, "managedFields": fields}}
            await self._request("PATCH", path, patch, [("fieldManager", MANAGER)], _MERGE)
        return await self.apply({**manifest, "metadata": meta})

    async def create(self, manifest: Mapping[str, Any], dry_run: bool = False) -> dict[str, Any]:
        """POST; a dry run creates nothing. Raises Exists if there is an object of that name, else KubeError."""
        path = self._path(manifest["kind"], manifest["metadata"]["namespace"])
        query = [("fieldManager", MANAGER), ("fieldValidation", "Strict")]
        query += [("dryRun", "All")] if dry_run else []
        return await self._request("POST", path, manifest, query)

    async def review(self, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """POST of a question that leaves nothing behind; its answer. Raises KubeError."""
        prefix, _ = _PATHS[kind]
        question = {"apiVersion": prefix.removeprefix("apis/"), "kind": kind, "spec": spec}
        found = await self._request("POST", self._path(kind, None), question, writes=False)
        return dict(found.get("status") or {})

    async def replace(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """PUT. Raises Conflict if the object has changed since the manifest's resourceVersion, else KubeError."""
        meta = manifest["metadata"]
        path = self._path(manifest["kind"], meta["namespace"], meta["name"])
        return await self._request("PUT", path, manifest, [("fieldManager", MANAGER)])

    async def read(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """GET; None if there is no such object. Raises KubeError."""
        try:
            return await self._request("GET", self._path(kind, namespace, name), None)
        except Gone:
            return None

    async def list_all(
        self, kind: str, namespace: str | None, labels: str
    ) -> tuple[list[dict[str, Any]], str]:
        """All objects with these labels, of a namespace or of all, and the version to watch from. Raises KubeError."""
        items: list[dict[str, Any]] = []
        version = ""
        async for page, at in self.pages(kind, namespace, labels):
            version = at
            items += page
        return items, version

    async def pages(
        self, kind: str, namespace: str | None, labels: str
    ) -> AsyncIterator[tuple[list[dict[str, Any]], str]]:
        """The same page by page, each with that version. Raises KubeError."""
        more, last = "", False
        while not last:
            query = [("labelSelector", labels), ("limit", "500"), ("continue", more)]
            page = await self._request("GET", self._path(kind, namespace), None, query)
            more = page["metadata"].get("continue") or ""
            last = not more
            yield page.get("items") or [], page["metadata"]["resourceVersion"]

    async def watch(
        self,
        kind: str,
        namespace: str | None,
        labels: str,
        version: str,
        opened: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Type and object of each change since `version`, until the API server ends the watch.

        `opened` is called when it begins to answer. Raises Expired if it cannot go on from there, else KubeError.
        """
        query = [
            ("labelSelector", labels),
            ("watch", "true"),
            ("resourceVersion", version),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(random.randint(*_WATCH_SECONDS))),
        ]
        # The API server sends a bookmark about once a minute: a connection that is silent for longer is dead.
        timeout = ClientTimeout(total=_WATCH_SECONDS[1] + 30, sock_read=_SILENT_SECONDS)
        try:
            parameters = await self._api.param_serialize(
                "GET",
                self._path(kind, namespace),
                query_params=query,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*parameters, _request_timeout=timeout)
            try:
                if response.status != 200:
                    raise _error(response.status, await response.read())
                opened()
                async for line in _lines(response.response.content):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        code = int(event["object"].get("code") or 0)
                        raise _error(code, json.dumps(event["object"]))
                    yield event["type"], event["object"]
            finally:
                response.response.close()
        except ApiException as error:
            raise _error(error.status or 0, error.body or str(error.reason)) from error
        except TimeoutError as error:
            # A watch also ends like this if the API server has yet to reach its version: it waits, silently.
            raise Expired(0, f"silent for {_SILENT_SECONDS:.0f} s") from error
        except (OSError, ClientError, ValueError) as error:
            raise KubeError(0, f"{type(error).__name__}: {error}") from error

    async def serves(self, kind: str) -> bool:
        """Whether the API server serves the kind. Raises KubeError."""
        prefix, plural = _PATHS[kind]
        try:
            found = await self._request("GET", f"/{prefix}", None)
        except Gone:
            return False
        return any(resource.get("name") == plural for resource in found.get("resources", []))

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str, force: bool = False
    ) -> None:
        """Delete the object if it still has `uid`; its pods follow. It is no error if it is gone. Raises KubeError."""
        options: dict[str, Any] = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if force:
            options["gracePeriodSeconds"] = 0
        try:
            await self._request("DELETE", self._path(kind, namespace, name), options)
        except Gone:
            return
        except Conflict:
            found = await self.read(kind, namespace, name)
            if found is not None and found["metadata"]["uid"] == uid:
                raise  # refused, and not because the name belongs to another object by now

    async def fail_pod(
        self, namespace: str, name: str, uid: str, reason: str, message: str
    ) -> None:
        """Mark a pod as failed through no fault of its own, because its node will not. Raises KubeError.

        It is no error if the pod is gone, or another has its name.
        """
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told = {"reason": reason, "message": message}
        disrupted = {
            **told,
            "type": "DisruptionTarget",
            "status": "True",
            "lastTransitionTime": now,
        }
        status = {**told, "phase": "Failed", "conditions": [disrupted]}
        path = self._path("Pod", namespace, name, "status")
        query = [("fieldManager", MANAGER)]
        patch = {"metadata": {"uid": uid}, "status": status}
        try:
            await self._request("PATCH", path, patch, query, _STRATEGIC)
        except (Gone, Conflict):
            return

    async def events_of(self, namespace: str, kind: str, uid: str) -> list[dict[str, Any]]:
        """Warnings about an object, the latest last."""
        query = [
            ("fieldSelector", f"involvedObject.kind={kind},involvedObject.uid={uid},type=Warning"),
            ("limit", "50"),
        ]
        found = await self._request("GET", self._path("Event", namespace), None, query)
        return sorted(
            found.get("items", []), key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime"))
        )

    def _path(self, kind: str, namespace: str | None, name: str = "", subresource: str = "") -> str:
        prefix, plural = _PATHS[kind]
        place = f"/{prefix}/namespaces/{namespace}" if namespace else f"/{prefix}"
        return "/".join(part for part in (place, plural, name, subresource) if part)

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: list[tuple[str, str]] | None = None,
        content_type: str = "application/json",
        writes: bool = True,
    ) -> dict[str, Any]:
        if method != "GET" and writes and not self._may_write():
            raise KubeError(0, "this operator is not the leader (any more)")
        verb, code = _VERBS[method], "error"
        with traces.request(method, verb, path) as span:
            try:
                parameters = await self._api.param_serialize(
                    method,
                    path,
                    query_params=query or [],
                    header_params={"Accept": "application/json", "Content-Type": content_type},
                    body=body,
                    auth_settings=["BearerToken"],
                )
                response = await self._api.call_api(*parameters, _request_timeout=_ANSWER_SECONDS)
                data = await response.read()
                code = str(response.status)
                if not 200 <= response.status < 300:
                    raise _error(response.status, data, response.headers)
            except ApiException as error:
                code = str(error.status or code)
                raise _error(
                    error.status or 0, error.body or str(error.reason), error.headers or {}
                ) from error
            except (OSError, TimeoutError, ClientError) as error:
                raise KubeError(0, f"{type(error).__name__}: {error}") from error
            finally:
                API_REQUESTS.labels(verb, code).inc()
                if code.isdecimal():
                    span.set_attribute("http.response.status_code", int(code))
        return dict(json.loads(data))


def as_applied(fields: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """`managedFields` in which what the operator has created counts as applied by it; None if they are so already."""

    def own(entry: Mapping[str, Any], operation: str) -> bool:
        return (entry.get("manager"), entry.get("operation")) == (MANAGER, operation)

    created = [e for e in fields if own(e, "Update") and not e.get("subresource")]
    if not created:
        return None
    applied = [e for e in fields if own(e, "Apply")]
    paths: dict[str, Any] = {}
    for entry in (*applied, *created):
        paths = _union(paths, entry.get("fieldsV1") or {})
    others = [e for e in fields if e not in applied and e not in created]
    return [{**created[0], "operation": "Apply", "fieldsV1": paths}, *others]


def _union(some: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of both, in the nested form of `fieldsV1`."""
    both = {name: _union(some.get(name, {}), fields) for name, fields in more.items()}
    return {**some, **both}


async def _lines(content: StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream, however long: objects may exceed the reader's own limit."""
    parts: list[bytes] = []
    async for chunk in content.iter_any():
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join([*parts, end])
            parts = []
        parts.append(rest)


def _error(status: int, body: Any, headers: Mapping[str, str] = MappingProxyType({})) -> KubeError:
    try:
        answer = json.loads(body)
        message, reason = str(answer["message"]), answer.get("reason")
        other = status == 422 and _is_of_other_uid(answer)
    except (ValueError, KeyError, TypeError, AttributeError):
        message, reason, other = str(body)[:500], None, False
    if status == 403:
        return Forbidden(status, message)
    if status == 404:
        return Gone(status, message)
    if status == 409 or other:
        return (Exists if reason == "AlreadyExists" else Conflict)(status, message)
    if status == 410 or (status == 504 and _TOO_NEW in message):
        return Expired(status, message)
    unknown_field = status == 500 and _UNKNOWN_FIELD in message
    if unknown_field or (status in _REFUSED and _WRONG_FORM.match(message)):
        return Malformed(status, message)
    if status in _REFUSED:
        return Refused(status, message)
    wait = headers.get("Retry-After", "")
    return KubeError(status, message, float(wait) if wait.isdecimal() else 0.0)


def _is_of_other_uid(answer: Mapping[str, Any]) -> bool:
    """Whether the request named another UID than the object has."""
    causes = (answer.get("details") or {}).get("causes") or []
    return any(cause.get("field") == "metadata.uid" for cause in causes)
