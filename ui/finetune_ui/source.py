"""What the live page shows: studies from somewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from finetune_reports.document import Report


class SourceError(Exception):
    """Studies that cannot be read, or a change that is refused; the text says why."""


class NoStudy(SourceError):
    """There is no such study."""


@dataclass(frozen=True)
class Line:
    """A study in the list."""

    id: str
    """In addresses: letters, digits, `.` and `-`."""

    name: str
    place: str
    """Its folder or namespace."""

    state: str
    reason: str = ""
    metric: str = ""
    trials: str = ""
    best: float | None = None
    test: float | None = None
    changed: str = ""
    """When, in words."""

    is_failed: bool = False


@dataclass(frozen=True)
class Happening:
    """Something that Kubernetes says about the study."""

    time: str
    kind: str
    """Normal or Warning."""

    reason: str
    message: str


@dataclass(frozen=True)
class Action:
    """Something that may be done to a study."""

    id: str
    label: str
    does: str
    """What will happen, in a sentence."""

    fields: Mapping[str, str] = field(default_factory=dict)
    """Values that may be given: name → the value now."""

    version: str = ""
    """Of what is changed, as it was seen."""


@dataclass(frozen=True)
class Asked:
    """What is done, or would be."""

    said: str
    """In a sentence."""

    label: str
    """Of the action."""

    values: Mapping[str, str]
    """What to ask with again when somebody is sure."""


@dataclass(frozen=True)
class Surroundings:
    """What is around a study: why it waits, what Kubernetes says, what may be done."""

    why: Sequence[str] = ()
    happenings: Sequence[Happening] = ()
    actions: Sequence[Action] = ()
    has_log: bool = False
    full: str = ""
    """Where the whole records can be asked for; empty where they are shown already, or cannot be."""


class Study(Protocol):
    """One study as it was found. Methods raise SourceError."""

    def version(self) -> str:
        """A text that changes when the study has."""
        ...

    def line(self) -> Line:
        """Its line in the list."""
        ...

    def around(self) -> Surroundings:
        """What is around it."""
        ...

    def report(self, full: bool = False) -> Report:
        """Its document; with `full` from its records, wherever they are."""
        ...

    def log(self) -> str:
        """The last lines that its driver has logged."""
        ...

    def act(self, action: str, values: Mapping[str, str], sure: bool) -> Asked:
        """Do it if `sure`, else only ask whether it would be accepted."""
        ...


class Source(Protocol):
    """Studies from somewhere. Methods raise SourceError; they may be called from several threads."""

    title: str

    def lines(self) -> Sequence[Line]:
        """All studies, the latest first."""
        ...

    def version(self) -> str:
        """A text that changes when the list has."""
        ...

    def study(self, id: str) -> Study:
        """One study. Raises NoStudy."""
        ...
