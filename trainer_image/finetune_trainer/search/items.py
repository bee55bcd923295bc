"""What a slot can be told to do."""

from dataclasses import dataclass
from typing import TypeAlias

from finetune_api.combinations import Params
from finetune_trainer.search.trials import Trial

Segment: TypeAlias = tuple[Params, float]
"""Hyperparameters, and the epoch up to which they hold."""


@dataclass(frozen=True)
class TrainItem:
    """Train one run of a trial to the end of `to_epoch`, from `checkpoint` if there is one."""

    trial: int
    params: Params
    to_epoch: float
    checkpoint: str | None
    seed: int
    run: int = 0
    fold: int | None = None
    """Fold that is the validation part; None without cross-validation."""

    rows: int | None = None
    """Training rows to use; None for all."""

    to_seconds: float | None = None
    """Seconds of training after which it ends at the next evaluation, counted from its first; None for no limit."""

    seconds: float = 0.0
    """Seconds it has trained so far."""

    inherits: bool = False
    """Whether the checkpoint was made with other hyperparameters."""

    new: Trial | None = None
    """The trial, if this item is the first to speak of it."""


@dataclass(frozen=True)
class RefitItem:
    """Train the winner from the pretrained weights on the rows of `refitRows`, or with it the other members of an
    ensemble, if that is better.

    Its epochs come in segments, several where hyperparameters changed on the way (PBT).
    """

    trial: int
    segments: tuple[Segment, ...]
    seed: int
    thresholds: list[float] | None = None
    """Probability from which on each label is predicted, as tuned in the search: a refit may have no rows for it."""

    values: tuple[float, ...] = ()
    """The winner's objective after each of its epochs, for schedules that depend on it."""

    lead: float = 0.0
    """By how much its objective is better than that of the worst trial of the search; only of a member."""

    members: tuple["RefitItem", ...] = ()
    """The best trials, the winner first, each as if it were the winner; empty if an ensemble is not wanted or
    only one trial has a value."""

    @property
    def epochs(self) -> float:
        """Epochs to train."""
        return self.segments[-1][1]


@dataclass(frozen=True)
class Wait:
    """Nothing to do now; something in flight may change that."""


@dataclass(frozen=True)
class Release:
    """Others do what is left, whatever comes of it: the slot may go, and its place with it."""


@dataclass(frozen=True)
class End:
    """The search is over for this reason, or the whole study if `next_item` says so after the search."""

    reason: str
    message: str = ""


Decision: TypeAlias = TrainItem | RefitItem | Wait | End


@dataclass(frozen=True)
class AtWork:
    """A training that a slot is busy with."""

    trial: int
    run: int
    """Which of the trial's trainings, by fold and repeat."""

    epochs: float
    """Epochs trained and evaluated."""

    to_epoch: float
    """Epochs after which the trial is compared with others, or ends."""

    doing: str = ""
    """What it is busy with before its next epoch, where that takes long."""
