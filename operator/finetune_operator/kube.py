"""The only module that talks to Kubernetes: few verbs, and errors in the operator's own terms."""

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import ClientError
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from finetune_api.study import GROUP, KIND, PLURAL, VERSION
from finetune_operator.names import MANAGER

_PATHS = {
    "ConfigMap": ("api/v1", "configmaps"),
    "Event": ("api/v1", "events"),
    "Pod": ("api/v1", "pods"),
    "Secret": ("api/v1", "secrets"),
    "Service": ("api/v1", "services"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    "Job": ("apis/batch/v1", "jobs"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "RayJob": ("apis/ray.io/v1", "rayjobs"),
    KIND: (f"apis/{GROUP}/{VERSION}", PLURAL),
}
_APPLY = "application/apply-patch+yaml"
_REFUSED = {400, 405, 413, 415, 422}
"""Answers that the same request will get again."""

_UNKNOWN_FIELD = "failed to create typed patch object"
"""How server-side apply answers 500 to an unknown field."""


class KubeError(Exception):
    """A request that failed; trying again later may help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Refused(KubeError):
    """The API server will not take this object, however often it is asked."""


class Forbidden(KubeError):
    """The API server does not allow this now: a quota, a policy, or a right that is missing."""


class Gone(KubeError):
    """The object, or its namespace, is not there."""


class Exists(KubeError):
    """An object of that name is there already."""


class Kube:
    """Requests to the API server through one pooled client."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def apply(self, manifest: Mapping[str, Any], subresource: str = "") -> dict[str, Any]:
        """Server-side apply under the operator's field manager. Raises KubeError."""
        meta = manifest["metadata"]
        path = self._path(manifest["kind"], meta["namespace"], meta["name"], subresource)
        query = [("fieldManager", MANAGER), ("force", "true"), ("fieldValidation", "Strict")]
        return await self._request("PATCH", path, manifest, query, _APPLY)

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """POST. Raises Exists if there is an object of that name, else KubeError."""
        path = self._path(manifest["kind"], manifest["metadata"]["namespace"])
        query = [("fieldManager", MANAGER), ("fieldValidation", "Strict")]
        return await self._request("POST", path, manifest, query)

    async def read(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """GET; None if there is no such object. Raises KubeError."""
        try:
            return await self._request("GET", self._path(kind, namespace, name), None)
        except Gone:
            return None

    async def serves(self, kind: str) -> bool:
        """Whether the API server knows the kind. Raises KubeError."""
        prefix, plural = _PATHS[kind]
        try:
            found = await self._request("GET", f"/{prefix}", None)
        except Gone:
            return False
        return any(resource.get("name") == plural for resource in found.get("resources", []))

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str, force: bool = False
    ) -> None:
        """Delete the object if it still has `uid`; its pods follow. One that is gone is no error."""
        options: dict[str, Any] = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if force:
            options["gracePeriodSeconds"] = 0
        try:
            await self._request("DELETE", self._path(kind, namespace, name), options)
        except Gone:
            return
        except Exists:
            return  # 409: the name belongs to another object by now

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

    def _path(self, kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
        prefix, plural = _PATHS[kind]
        return "/".join(
            part for part in (f"/{prefix}/namespaces", namespace, plural, name, subresource) if part
        )

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: list[tuple[str, str]] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        try:
            parameters = await self._api.param_serialize(
                method,
                path,
                query_params=query or [],
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*parameters, _request_timeout=30)
            data = await response.read()
            if not 200 <= response.status < 300:
                raise _error(response.status, data)
        except ApiException as error:
            raise _error(error.status or 0, error.body or str(error.reason)) from error
        except (OSError, TimeoutError, ClientError) as error:
            raise KubeError(0, f"{type(error).__name__}: {error}") from error
        return dict(json.loads(data))


def _error(status: int, body: Any) -> KubeError:
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = str(body)[:500]
    if status == 403:
        return Forbidden(status, message)
    if status == 404:
        return Gone(status, message)
    if status == 409:
        return Exists(status, message)
    refused = status in _REFUSED or (status == 500 and _UNKNOWN_FIELD in message)
    return Refused(status, message) if refused else KubeError(status, message)
