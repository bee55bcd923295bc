"""Studies of a cluster from Python: create, watch, read, suspend, resume and retry them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_client.errors import (
        BadConfiguration,
        ClientError,
        NotFound,
        Refused,
        StudyFailed,
        Unreachable,
    )
    from finetune_client.handle import StudyHandle
    from finetune_client.studies import Studies
    from finetune_client.view import Best

__all__ = [
    "BadConfiguration",
    "Best",
    "ClientError",
    "NotFound",
    "Refused",
    "Studies",
    "StudyFailed",
    "StudyHandle",
    "Unreachable",
]

_ROOMS = {"Best": "view", "Studies": "studies", "StudyHandle": "handle"}
"""The modules of names that are not errors."""


def __getattr__(name: str) -> Any:
    # Late: the command must be able to say that a package is missing.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS.get(name, 'errors')}"), name)
