"""Trains one trial of a study again, alone and as it was, and compares it with its records."""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from finetune_api.study import StudySpec
from finetune_trainer.data import prepare
from finetune_trainer.environment import SlotResources
from finetune_trainer.errors import DataError, SpecError
from finetune_trainer.provenance import differences
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import read_history
from finetune_trainer.search.problem import begin, problem_of
from finetune_trainer.search.trainings import Result, Trainings
from finetune_trainer.search.trials import Run, Trial
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import RECORDS
from finetune_trainer.worker.item import Material
from finetune_trainer.worker.model_worker import ModelWorker

log = logging.getLogger("finetune.reproduce")


@dataclass(frozen=True)
class RunComparison:
    """One training of a trial, as recorded and as it came out now."""

    name: str
    """Its fold, repetition and sample; empty if the trial has only one training."""

    then: Result
    now: Result

    @property
    def epochs(self) -> list[float]:
        """All epochs at which either was evaluated."""
        return sorted({done.epoch for result in (self.then, self.now) for done in result.epochs})

    @property
    def first_difference(self) -> str:
        """The first difference to the last bit, in words; empty if there is none."""
        for epoch in self.epochs:
            then, now = self.then.at(epoch), self.now.at(epoch)
            for name in dict.fromkeys((*then, *now)):
                if then.get(name) != now.get(name):
                    values = f"{then.get(name, 'nothing')} then, {now.get(name, 'nothing')} now"
                    return f"{name} after epoch {epoch:g}: {values}"
        then_failed, now_failed = (r.failure or "no failure" for r in (self.then, self.now))
        return "" if then_failed == now_failed else f"{then_failed} then, {now_failed} now"


@dataclass(frozen=True)
class Comparison:
    """A trial, as recorded and as it came out now."""

    trial: int
    runs: list[RunComparison]
    setting: dict[str, tuple[str, str]]
    """What differs in what it was trained with: name → (then, now)."""

    @property
    def same(self) -> bool:
        """Whether everything came out the same to the last bit."""
        return not any(run.first_difference for run in self.runs)


def reproduce(spec: StudySpec, base: Path, folder: Path, number: int) -> Comparison:
    """Train trial `number` of the study whose records are in `folder` again, with its seeds and threads.

    Relative paths of `spec` start from `base`; nothing is written to `folder`. Raises SpecError if there is no
    such trial, if it has not trained, or if the records are of another study; DataError if the rows have
    changed.
    """
    if not (folder / RECORDS).is_dir():
        raise SpecError("--into", f"must be a folder with the records of the study (got {folder})")
    storage = Storage.open(str(folder))
    begin(storage, spec)
    trainings = Trainings(problem_of(spec, storage), read_history(storage).events)
    trial = trainings.trial(number)
    slots = trainings.slots(trial)
    then = _joined([slot.setting for slot in slots])
    data = prepare(spec, base)
    if {slot.data for slot in slots} != {data.fingerprint}:
        raise DataError(
            "spec.dataset",
            f"must give the rows that trial {number} was trained on (their fingerprint was "
            f"{slots[0].data}, now it is {data.fingerprint})",
        )
    gpus = float("gpu" in then and torch.cuda.is_available())  # differences are reported
    resources = SlotResources(int(slots[0].setting["threads"]), gpus)
    listener = _Listener()
    with tempfile.TemporaryDirectory() as scratch:
        begin(Storage.open(scratch), spec)
        trainer = ModelWorker(Material(spec, scratch, None, resources), data)
        runs = []
        for run in trainings.runs(trial):
            now = _train(trainer, listener, trainings, trial, run)
            runs.append(RunComparison(trainings.name(run), trainings.result(trial, run), now))
    return Comparison(number, runs, differences(then, listener.setting))


class _Listener:
    """Receives what a slot reports, and never recalls it."""

    slot = "again"

    def __init__(self) -> None:
        self.said: list[ev.Event] = []
        self.setting: dict[str, str] = {}

    def should_pause(self) -> bool:
        """No."""
        return False

    def waits(self, message: str) -> None:
        """Log it."""
        if message:
            log.warning(message)

    def progress(self, message: str) -> None:
        """Nothing: the epochs are compared when all are there."""

    def say(self, *events: ev.Event) -> None:
        """Keep what was reported."""
        for event in events:
            if isinstance(event, ev.SlotReady):
                self.setting = event.setting
            else:
                self.said.append(event)


def _train(
    trainer: ModelWorker, listener: _Listener, trainings: Trainings, trial: Trial, run: Run
) -> Result:
    """Train a run of `trial` from the pretrained weights with the code of a slot; returns how it went."""
    checkpoint: str | None = None
    for step in trainings.lineage(trial):
        inherits = checkpoint is not None
        listener.said = []
        for item in trainings.items(step, step.runs[run.number]):
            told = replace(item, checkpoint=checkpoint, inherits=inherits)
            listener.say(*trainer.work(told, listener))
            checkpoint, inherits = _last_saved(listener.said) or checkpoint, False
    epochs = [event for event in listener.said if isinstance(event, ev.EpochDone)]
    failed = [event for event in listener.said if isinstance(event, ev.Failed)]
    failure = f"{failed[-1].failure_class}: {failed[-1].message}" if failed else ""
    return Result(epochs, failure)


def _last_saved(events: Sequence[ev.Event]) -> str | None:
    return next((event.path for event in reversed(events) if isinstance(event, ev.Saved)), None)


def _joined(settings: Sequence[dict[str, str]]) -> dict[str, str]:
    """Several settings as one; where they differ, with all values."""
    names = dict.fromkeys(name for setting in settings for name in setting)
    values = {name: [setting.get(name, "unknown") for setting in settings] for name in names}
    return {name: " and ".join(dict.fromkeys(found)) for name, found in values.items()}
