"""Lays a user's pod template over the operator's."""

from typing import Any

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
}
"""Lists whose items are matched by a key, as in Kubernetes' strategic merge; other lists are replaced."""


def overlay(base: Any, over: Any, name: str = "") -> Any:
    """`base` with `over` laid on it: objects merge, keyed lists merge item by item, the rest is replaced."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {
            key: overlay(base.get(key), over[key], key) if key in over else base[key]
            for key in (*base, *(key for key in over if key not in base))
        }
    if isinstance(base, list) and isinstance(over, list) and name in _KEYS:
        return _overlay_list(base, over, _KEYS[name])
    return over


def _overlay_list(base: list[Any], over: list[Any], key: str) -> list[Any]:
    changes = {item.get(key): item for item in over if isinstance(item, dict)}
    known = {item.get(key) for item in base}
    merged = [
        overlay(item, changes[item.get(key)]) if item.get(key) in changes else item for item in base
    ]
    return [
        *merged,
        *(item for item in over if not isinstance(item, dict) or item.get(key) not in known),
    ]
