"""Searches that are asked for work in virtual time and told every epoch, whatever they search in."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol, TypeAlias

import optuna
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from finetune_api.search import Budget
from finetune_trainer.records import events as ev
from finetune_trainer.search.decisions import next_item, starting
from finetune_trainer.search.items import TrainItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState

Job: TypeAlias = Any
"""What a worker trains, in the form of its search."""

Config: TypeAlias = dict[str, Any]


class Searcher(Protocol):
    """A search that is asked for work and told the value of every epoch."""

    limits_itself: bool
    """Whether it knows how many trials there are, and promotes trials when there are no new ones."""

    def next(self) -> tuple[Job, Config, int] | None:
        """A job, its configuration and its epochs so far; None while there is nothing to do."""
        ...

    def goes_on(self, job: Job, epoch: int, value: float) -> bool:
        """Take in the value after `epoch`; whether the worker trains on."""
        ...


class Trained(NamedTuple):
    """An epoch of one worker."""

    config: Config
    epoch: int
    value: float


def in_virtual_time(
    search: Searcher,
    workers: int,
    value_after: Callable[[Config, int], float],
    limit: int | None = None,
) -> Iterator[list[Trained]]:
    """What the workers train in each tick, an epoch each, until there is nothing to do.

    `value_after` is the value of a configuration after so many epochs. A search that does not limit itself is asked
    for at most `limit` trials.
    """
    slots: list[tuple[Job, Config, int]] = []
    begun = 0
    while True:
        while len(slots) < workers and (search.limits_itself or begun != limit):
            given = search.next()
            if given is None:
                break
            begun += given[2] == 0
            slots.append(given)
        if not slots:
            return
        trained = [
            Trained(config, epochs + 1, value_after(config, epochs + 1))
            for _, config, epochs in slots
        ]
        slots = [
            (job, config, epochs + 1)
            for (job, config, epochs), done in zip(slots, trained, strict=True)
            if search.goes_on(job, done.epoch, done.value)
        ]
        yield trained


class OurDecisions:
    """The study's own state and decisions."""

    limits_itself = True

    def __init__(self, problem: Problem, budget: Budget) -> None:
        self.state, self._budget = StudyState(problem), budget

    def take(self) -> TrainItem | None:
        """What a free worker does next; None while there is nothing to do."""
        item = next_item(self.state, self._budget, 0.0)
        if not isinstance(item, TrainItem):
            return None
        for event in starting(self.state, self._budget, item, "slot/1", 0.0):
            self.state.apply(event)
        return item

    def next(self) -> tuple[TrainItem, Config, int] | None:
        """The same, with its configuration and its epochs so far."""
        item = self.take()
        return None if item is None else (item, dict(item.params), self.epochs(item))

    def epochs(self, item: TrainItem) -> int:
        """Epochs that the item's trial was trained so far."""
        return int(self.state.trials[item.trial].trained)

    def goes_on(self, item: TrainItem, epoch: int, value: float) -> bool:
        """Take in the value after `epoch`; whether the worker trains on."""
        self.state.apply(
            ev.EpochDone(
                0.0,
                trial=item.trial,
                epoch=epoch,
                value=value,
                metrics={},
                train_loss=0.0,
                seconds=1.0,
                gpu_seconds=0.0,
            )
        )
        if epoch < item.to_epoch:
            return True
        whole = epoch == self.state.problem.max_epochs
        self.state.apply(ev.Reached(0.0, trial=item.trial, finished=whole))
        return False


class RayDecisions:
    """Ray's ASHA: a trial runs until the scheduler stops it."""

    def __init__(self, epochs: int, factor: int) -> None:
        self._epochs = epochs
        self._scheduler = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric="accuracy",
            mode="max",
            max_t=epochs,
            grace_period=1,
            reduction_factor=factor,
        )
        self.begun = 0

    def take(self) -> SimpleNamespace:
        """A new trial."""
        trial = SimpleNamespace(trial_id=str(self.begun))
        self.begun += 1
        self._scheduler.on_trial_add(None, trial)
        return trial

    def goes_on(self, trial: Any, epoch: int, value: float) -> bool:
        """Take in the value after `epoch`; whether the worker trains on."""
        result = {"epoch": epoch, "accuracy": value, "training_iteration": epoch}
        decision = self._scheduler.on_trial_result(None, trial, result)
        return bool(decision != TrialScheduler.STOP and epoch < self._epochs)


def optuna_goes_on(
    study: optuna.Study, trial: optuna.Trial, epoch: int, value: float, epochs: int
) -> bool:
    """Tell Optuna the value after `epoch` of `epochs`; whether the worker trains on."""
    trial.report(value, epoch)
    if epoch == epochs:
        study.tell(trial, value)
        return False
    if trial.should_prune():
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        return False
    return True
