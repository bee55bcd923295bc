"""What a tracker is told: one run a trial and one for the study, as the records have them now."""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from finetune_api.combinations import Params

Outcome: TypeAlias = Literal["Finished", "Failed", "Killed"]
"""How a run ended, in the trackers' words. Killed: a trial that was stopped before its end."""

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
    """Why, in the words of the study: the trial's status, failure class and message."""

    results: dict[str, float]
    """What it has come to."""


@dataclass(frozen=True)
class TrackedRun:
    """One run as it should look in a tracker now. Later ones of the same key have the same points, and more."""

    key: str
    """32 hexadecimal digits, the same after every restart, and of no other run of any study."""

    label: str
    """The trial's number, or `study`."""

    name: str
    started: float
    """Seconds since 1970."""

    facts: dict[str, str]
    """What it belongs to: study, namespace, uid, the records it is written from."""

    params: Params
    points: tuple[Point, ...] = ()
    active: bool = False
    """Whether it trains now."""

    ending: Ending | None = None


class TrackingError(Exception):
    """A tracker could not be told something now; it may be another time."""

    def __init__(self, message: str) -> None:
        # Clients say first what they wanted, and at the end why it did not go.
        if len(message) > _MESSAGE:
            message = f"{message[: _MESSAGE // 2]} … {message[-_MESSAGE // 2 :]}"
        super().__init__(" ".join(message.split()))


class Tracker(Protocol):
    """Where runs are shown. Its methods are called on one thread."""

    def write(self, run: TrackedRun) -> None:
        """Bring what is shown up to `run`, from whatever it is, or an earlier process has left.

        Raises TrackingError; the same or a later state of the run is then written again.
        """
        ...

    def close(self) -> None:
        """Nothing more will be written by this process. Raises TrackingError."""
        ...
