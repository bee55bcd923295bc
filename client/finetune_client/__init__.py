"""Studies of a cluster from Python: create, watch, read, suspend, resume and retry them."""

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
