"""What a decision consists of: values that the shell around `decide` carries out."""

from dataclasses import dataclass

from finetune_api.status import StudyStatus
from finetune_operator.children import Manifest
from finetune_operator.observe import JobView


@dataclass(frozen=True)
class Deletion:
    """An object to delete; `uid` guards against deleting its successor."""

    kind: str
    name: str
    uid: str
    force: bool = False


@dataclass(frozen=True)
class StudyEvent:
    """A Kubernetes Event on the study, posted once a transition."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """Everything to do now, in this order: delete, apply, create, write the status, post the events."""

    status: StudyStatus
    delete: tuple[Deletion, ...] = ()
    apply: tuple[Manifest, ...] = ()
    create: tuple[Manifest, ...] = ()
    events: tuple[StudyEvent, ...] = ()
    explain: JobView | None = None
    """A Job without news: the caller may explain it from its Events, and decide again."""

    confirm: bool = False
    """This gives up or begins an attempt, or restores children: the caller must first read the study and its progress
    again, because the watches of different kinds run at their own pace, and then decide again."""

    delete_study: bool = False
    again_after: float | None = None
    """Seconds after which to look again even if nothing changes."""
