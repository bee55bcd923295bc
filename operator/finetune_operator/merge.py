"""Merges a user's pod template over the operator's."""

from typing import Any

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
}
"""Lists whose items are matched by a key, as in Kubernetes' strategic merge."""

_UNIONS = ("volumes", "env")
"""Lists whose items have exactly one of several fields: a new field replaces the old one."""

_TOLERATIONS = "tolerations"
"""The list in which the items of both count; all other lists are replaced."""


def overlay(base: Any, over: Any, name: str = "") -> Any:
    """`base` with `over` merged over it: objects merge, keyed lists merge item by item, tolerations add up, the rest is replaced.

    Accepts any JSON values: the API server refuses what makes no sense as a pod.
    """
    if isinstance(base, dict) and isinstance(over, dict):
        return {
            key: overlay(base.get(key), over[key], key) if key in over else base[key]
            for key in (*base, *(key for key in over if key not in base))
        }
    if isinstance(base, list) and isinstance(over, list) and name in _KEYS:
        return _overlay_list(base, over, _KEYS[name], name in _UNIONS)
    if isinstance(base, list) and isinstance(over, list) and name == _TOLERATIONS:
        tolerated = [_tolerated(item) for item in over]
        return [*(item for item in base if _tolerated(item) not in tolerated), *over]
    return over


def _tolerated(item: Any) -> Any:
    """What a toleration tolerates, regardless of for how long."""
    if isinstance(item, dict):
        return {key: value for key, value in item.items() if key != "tolerationSeconds"}
    return item


def _overlay_list(base: list[Any], over: list[Any], key: str, union: bool) -> list[Any]:
    changes = {name: item for item in over if (name := _name(item, key)) is not None}
    known = {_name(item, key) for item in base} - {None}
    merged = [
        _overlay_item(item, changes[name], union) if (name := _name(item, key)) in changes else item
        for item in base
    ]
    return [*merged, *(item for item in over if _name(item, key) not in known)]


def _overlay_item(item: Any, change: Any, union: bool) -> Any:
    return overlay({k: v for k, v in item.items() if k in change} if union else item, change)


def _name(item: Any, key: str) -> str | None:
    name = item.get(key) if isinstance(item, dict) else None
    return name if isinstance(name, str) else None
