"""One trial as the records tell it."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from finetune_trainer.search.domains import Params
from finetune_trainer.search.events import EpochDone

TrialStatus: TypeAlias = Literal[
    "Pending", "Running", "Paused", "Completed", "Stopped", "Diverged", "Failed"
]
"""Pending: waits for a slot, new or after losing one. Paused: at a rung, goes on if promoted. Completed:
trained to its end. Stopped: not promoted, or cut off by the end of the search. The last four are final."""


@dataclass(slots=True)
class Trial:
    """All that is known of one trial."""

    number: int
    params: Params
    status: TrialStatus = "Pending"
    level: int = 0
    """Index of the rung it trains for, or waits at."""

    epochs: list[EpochDone] = field(default_factory=list)
    best: EpochDone | None = None
    """The epoch with the best value, the earliest of equals."""

    checkpoint: str | None = None
    checkpoint_epoch: int = 0
    slot: str = ""
    failures: int = 0
    losses: int = 0
    """Times it lost its worker since its last checkpoint."""

    halved: bool = False
    """Whether it ran out of memory once, and trains with half the batch and twice the accumulation."""

    failure_class: str = ""
    message: str = ""
    stopped_early: bool = False

    @property
    def is_candidate(self) -> bool:
        """Whether it can be the winner: it has a value, and neither diverged nor failed."""
        return self.best is not None and self.status not in ("Diverged", "Failed")
