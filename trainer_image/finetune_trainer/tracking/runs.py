"""What trackers show: one run per trial and one for the study, as the records have them now."""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from finetune_api.combinations import Params

Outcome: TypeAlias = Literal["Finished", "Failed", "Killed"]
"""How a run ended, in the trackers' terms. Killed: a trial that was stopped before its end."""

_MESSAGE = 200


@dataclass(frozen=True)
class Point:
    """One evaluation."""

    step: int
    """1, 2, … within its run: the epoch, unless there are evaluations in the middle of epochs."""

    time: float
    """Seconds since 1970."""

    values: dict[str, float]


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    outcome: Outcome
    time: float
    facts: dict[str, str]
    """Why, in the study's terms: the trial's status, failure class and message."""

    results: dict[str, float]
    """Its result."""


@dataclass(frozen=True)
class TrackedRun:
    """One run as a tracker should show it now. Later ones with the same key have the same points, and more."""

    key: str
    """32 hexadecimal digits, the same after every restart, and unique among the runs of all studies."""

    label: str
    """The trial's number, or `study`."""

    name: str
    started: float
    """Seconds since 1970."""

    facts: dict[str, str]
    """What it belongs to: study, namespace, uid, and the records it is written from."""

    params: Params
    points: tuple[Point, ...] = ()
    active: bool = False
    """Whether it is training now."""

    ending: Ending | None = None


class TrackingError(Exception):
    """A tracker could not be updated now; it may work later."""

    def __init__(self, message: str) -> None:
        # Clients say first what they tried, and at the end why it failed.
        if len(message) > _MESSAGE:
            message = f"{message[: _MESSAGE // 2]} … {message[-_MESSAGE // 2 :]}"
        super().__init__(" ".join(message.split()))


class Tracker(Protocol):
    """A place where runs are shown. Its methods are called on one thread."""

    def write(self, run: TrackedRun) -> None:
        """Update what is shown to `run`, in whatever state an earlier call or process has left it.

        Raises TrackingError; then the same or a later state of the run is written again.
        """
        ...

    def close(self) -> None:
        """Nothing more will be written by this process. Raises TrackingError."""
        ...
