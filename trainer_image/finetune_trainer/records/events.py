"""What can happen in a study: the events of the record log, from which everything else is derived.

A trial is made of runs: one, or one for each fold and seed (`trials.Run`); `run` is its number.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from finetune_api.hyperparameters import Scalar


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at `time` (seconds since the epoch)."""

    kind: ClassVar[str] = ""
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TermStarted(Event):
    """A driver started. What comes before in its log is all that it read of earlier drivers."""

    kind: ClassVar[str] = "term"
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited(Event):
    """The study stood still for so long, because storage could not be used: it does not count as time spent."""

    kind: ClassVar[str] = "waited"
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited(Event):
    """What `search.warmStart` has brought: (params, value) of other studies' trials, best first."""

    kind: ClassVar[str] = "inherited"
    trials: list[tuple[dict[str, Scalar], float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed(Event):
    """A trial exists; the last three as in `trials.Trial`."""

    kind: ClassVar[str] = "proposed"
    trial: int
    params: dict[str, Scalar]
    generation: int | None = None
    parent: int | None = None
    member: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotReady(Event):
    """The process of a slot begins to train: what its metrics depend on beside the spec and the seeds.

    `data` is the fingerprint of the prepared rows, `setting` as `provenance.setting` says it.
    """

    kind: ClassVar[str] = "slot"
    slot: str
    data: str
    setting: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """A slot was told to train `trial` up to `to_epoch`, from `seed`."""

    kind: ClassVar[str] = "started"
    trial: int
    slot: str
    to_epoch: float
    run: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochDone(Event):
    """The run was evaluated after `epoch` epochs, at the end of one or in its middle; `value` is the objective.

    Seconds are those since its evaluation before. `thresholds` are those of the labels, where they were
    tuned on the validation rows. Batches were computed in `parts`, more than one if memory was short.
    """

    kind: ClassVar[str] = "epoch"
    trial: int
    epoch: float
    value: float
    metrics: dict[str, float]
    train_loss: float
    seconds: float
    gpu_seconds: float
    run: int = 0
    thresholds: list[float] | None = None
    parts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Event):
    """A checkpoint is in storage under `path`; it has `epoch` epochs and perhaps part of the next."""

    kind: ClassVar[str] = "saved"
    trial: int
    epoch: float
    path: str
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached(Event):
    """The slot brought the run as far as it was told to; `finished` if there is nothing more to train:
    it has had all epochs (or stopped by its patience), on all rows."""

    kind: ClassVar[str] = "reached"
    trial: int
    finished: bool = False
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeued(Event):
    """The run lost its slot (drained, or its worker went away); it goes on from its last checkpoint."""

    kind: ClassVar[str] = "requeued"
    trial: int
    lost: bool = False
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """The run raised; `failure_class` as in `errors.FailureClass`."""

    kind: ClassVar[str] = "failed"
    trial: int
    failure_class: str
    message: str
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """The paused trial will not be promoted any more; its checkpoint is not needed."""

    kind: ClassVar[str] = "stopped"
    trial: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEnded(Event):
    """Nothing more will be proposed or promoted."""

    kind: ClassVar[str] = "ended"
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened(Event):
    """The search goes on after its end: the limit that ended it was loosened, or somebody asked for a retry of what had
    failed. What ended with it begins anew."""

    kind: ClassVar[str] = "reopened"
    retry: str = ""
    """The value with which a retry was asked for; each value is followed once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitStarted(Event):
    """A slot was told to train the winner again on train and validation rows."""

    kind: ClassVar[str] = "refit-started"
    trial: int
    slot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitRequeued(Event):
    """The refit lost its slot (drained, or its worker went away), or failed with `message`."""

    kind: ClassVar[str] = "refit-requeued"
    message: str = ""
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleJudged(Event):
    """The best trials together were compared with the best of them alone, on the validation rows."""

    kind: ClassVar[str] = "ensemble"
    trials: list[int]
    method: str
    value: float
    best_single: float
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RefitDone(Event):
    """The final model is in storage and was tested once."""

    kind: ClassVar[str] = "refit"
    trial: int
    path: str
    test_metrics: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)
    gpu_seconds: float = 0.0


_KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        TermStarted,
        Waited,
        Inherited,
        Proposed,
        SlotReady,
        Started,
        EpochDone,
        Saved,
        Reached,
        Requeued,
        Failed,
        Stopped,
        SearchEnded,
        Reopened,
        RefitStarted,
        RefitRequeued,
        EnsembleJudged,
        RefitDone,
    )
}


def to_json(event: Event) -> dict[str, Any]:
    """The event as a JSON object."""
    return {"kind": event.kind, **asdict(event)}


def from_json(value: Any) -> Event:
    """The event that `to_json` wrote. Raises ValueError if it is none."""
    if not isinstance(value, dict):
        raise ValueError(f"must be an object (got {value!r:.80})")
    fields = dict(value)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)} (got {kind!r})")
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise ValueError(f"must be a {kind} event ({error})") from error
