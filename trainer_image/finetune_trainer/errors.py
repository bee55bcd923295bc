"""What can go wrong: with a study (the user can fix it) or with one of its trials."""

import errno
import re
from typing import Literal, TypeAlias

from finetune_api.status import Reason
from finetune_api.texts import printable

FailureClass: TypeAlias = Literal["Diverged", "OutOfMemory", "UserError", "Preempted", "Internal"]
"""Why a trial ended without a result.

Diverged: the loss became NaN or infinite. OutOfMemory: the device has too little memory.
UserError: its parameters or the data cannot be used. Preempted: its worker went away; it goes on from
its last checkpoint. Internal: anything else.
"""


class StudyError(Exception):
    """The study cannot run as it is written: `field` (JSON path) `message`."""

    reason: Reason = "InvalidSpec"

    def __init__(self, field: str, message: str) -> None:
        message = printable(message)
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message

    def __reduce__(self) -> tuple[type["StudyError"], tuple[str, str]]:
        return type(self), (self.field, self.message)


class SpecError(StudyError):
    """The manifest contradicts itself or the contract."""


class DataError(StudyError):
    """The data set cannot be used."""

    reason: Reason = "DataError"


class ModelError(StudyError):
    """The pretrained model cannot be used."""

    reason: Reason = "ModelError"


class TrialFailure(Exception):
    """One trial ended without a result."""

    def __init__(self, failure_class: FailureClass, message: str) -> None:
        self.message = printable(message)
        super().__init__(self.message)
        self.failure_class: FailureClass = failure_class

    def __reduce__(self) -> tuple[type["TrialFailure"], tuple[FailureClass, str]]:
        return type(self), (self.failure_class, self.message)


class RayUnavailable(RuntimeError):
    """Ray did not start on this machine; the text says what was tried and where to look."""


class StorageUnavailable(OSError):
    """Storage, or a file of the data, cannot be used now; it may be later."""


class ToldToStop(StorageUnavailable):
    """A wait for storage was cut short because the process was told to stop."""


GONE = {
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "EREMOTEIO", "ENODEV", "ENXIO", "ENOLINK", "ENOTCONN", "ETIMEDOUT",
        "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN",
        "ENETUNREACH", "ESHUTDOWN", "EPIPE",
    )
}  # fmt: skip
"""errno values that mean that a disk or a server cannot be reached."""

_AWAY = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|UNAVAILABLE|INTERNAL_FAILURE|TIMEOUT|THROTTLING|curlCode|status 5\d\d"
)
"""What pyarrow's object stores say, without an errno, when they cannot be reached or are overloaded."""


def may_pass(error: OSError) -> bool:
    """Whether the error may go away: the files may be fine, and only their disk or server gone for now."""
    if error.errno is not None:
        return error.errno in GONE
    return _AWAY.search(str(error)) is not None
