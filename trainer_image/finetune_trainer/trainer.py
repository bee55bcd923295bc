"""Works on items with real models: trains a trial towards its rung, or trains the winner again."""

import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from finetune_api.hyperparameters import resolve
from finetune_trainer.broker import CHECKPOINTS, REFIT_CHECKPOINT
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.errors import TrialFailure
from finetune_trainer.search import events as ev
from finetune_trainer.search.state import RefitItem, TrainItem
from finetune_trainer.search.storage import Storage
from finetune_trainer.slots import Material, Work
from finetune_trainer.training import EpochResult, Pretrained, TrialRun, baseline_metrics

SAVE_SECONDS = 30.0
"""On its way to a rung a trial saves at the end of the first epoch this long after its last save."""

log = logging.getLogger("finetune.trainer")

FINAL_MODEL = "model"


class Trainer:
    """Trains in one slot; keeps the pretrained weights in memory from item to item."""

    def __init__(self, material: Material, data: PreparedData) -> None:
        torch.set_num_threads(material.resources.threads)
        self._spec = material.spec
        self._data = data
        self._gpus = material.resources.gpus
        self._storage = Storage.open(material.storage)
        self._device = "cuda" if self._gpus and torch.cuda.is_available() else "cpu"
        self._pretrained = Pretrained.load(
            self._data.model, self._data.task, self._data.label_names
        )

    def work(self, item: TrainItem | RefitItem, work: Work) -> list[ev.Event]:
        """Do `item`; the events that tell how it ended. Nothing a trial raises ends the slot."""
        try:
            return (
                self._refit(item, work) if isinstance(item, RefitItem) else self._train(item, work)
            )
        except TrialFailure as failure:
            return [self._failed(item, failure.failure_class, failure.message)]
        except (RuntimeError, ValueError, ArithmeticError, OSError, SafetensorError) as error:
            return [self._failed(item, "Internal", f"{type(error).__name__}: {error}")]

    def _failed(self, item: TrainItem | RefitItem, failure_class: str, message: str) -> ev.Event:
        if isinstance(item, RefitItem):
            return ev.RefitRequeued(time.time(), f"{failure_class}: {message}"[:500])
        return ev.Failed(time.time(), item.trial, failure_class, message[:500])

    def _train(self, item: TrainItem, work: Work) -> list[ev.Event]:
        run = self._start(item)
        saved = time.monotonic()
        while run.epoch < item.to_epoch and not run.finished:
            result = run.train_epoch(work.should_pause)
            if result is None:
                return [self._save(run, item.trial), ev.Requeued(time.time(), item.trial)]
            work.say(self._epoch_event(item.trial, result))
            between = run.epoch < item.to_epoch and not run.finished
            if between and time.monotonic() - saved > SAVE_SECONDS:
                work.say(self._save(run, item.trial))
                saved = time.monotonic()
        reached = ev.Reached(time.time(), item.trial, stopped_early=run.epoch < item.to_epoch)
        # A trial that has seen its last epoch has nothing to resume.
        return [reached] if run.finished else [self._save(run, item.trial), reached]

    def _start(self, item: TrainItem) -> TrialRun:
        objective = self._spec.objective
        if item.checkpoint is not None:
            try:
                with self._fetched(item.checkpoint) as folder:
                    return TrialRun.resume(
                        folder, self._pretrained, self._data, objective, self._device
                    )
            except FileNotFoundError as error:  # the trial is worth more than the epochs it lost
                log.warning("trial %s begins anew, its checkpoint is gone: %s", item.trial, error)
        config = resolve(self._spec.hyperparameters, item.params)
        return TrialRun(self._pretrained, self._data, config, item.seed, objective, self._device)

    def _epoch_event(self, trial: int, result: EpochResult) -> ev.Event:
        value = result.metrics.get(self._spec.objective.metric)
        if value is None:
            metric = self._spec.objective.metric
            raise TrialFailure("Diverged", f"{metric} is not defined after epoch {result.epoch}")
        return ev.EpochDone(
            time.time(),
            trial,
            result.epoch,
            value,
            result.metrics,
            result.train_loss,
            result.seconds,
            result.seconds * self._gpus,
        )

    def _save(self, run: TrialRun, trial: int) -> ev.Event:
        path = f"{CHECKPOINTS}/{trial}/{run.epoch}-{uuid.uuid4().hex[:8]}"
        self._store(path, run.save)
        return ev.Saved(time.time(), trial, run.epoch, path)

    def _refit(self, item: RefitItem, work: Work) -> list[ev.Event]:
        """Train on train and validation rows for the winner's best number of epochs, then test once."""
        started = time.monotonic()
        run = self._start_refit(item)
        saved = time.monotonic()
        while run.epoch < item.epochs:
            if run.train_epoch(work.should_pause) is None:
                self._store(REFIT_CHECKPOINT, run.save)
                return [ev.RefitRequeued(time.time())]
            if run.epoch < item.epochs and time.monotonic() - saved > SAVE_SECONDS:
                self._store(REFIT_CHECKPOINT, run.save)
                saved = time.monotonic()
        self._store(FINAL_MODEL, run.export)
        tested = run.evaluate("test")
        spent = (time.monotonic() - started) * self._gpus
        reference = baseline_metrics(self._data, tested)
        return [ev.RefitDone(time.time(), item.trial, FINAL_MODEL, tested, reference, spent)]

    def _start_refit(self, item: RefitItem) -> TrialRun:
        data, objective = self._data.merged(), self._spec.objective
        if self._storage.files(REFIT_CHECKPOINT):
            with self._fetched(REFIT_CHECKPOINT) as folder:
                return TrialRun.resume(folder, self._pretrained, data, objective, self._device)
        config = resolve(self._spec.hyperparameters, item.params)
        return TrialRun(self._pretrained, data, config, item.seed, objective, self._device)

    def _store(self, path: str, write: Callable[[Path], None]) -> None:
        """Put the folder that `write` fills whole at `path`. Raises OSError if storage refuses."""
        if self._storage.is_local:
            target = self._storage.local(path)
            partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            try:
                partial.mkdir(parents=True)
                write(partial)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                write(Path(scratch))
                self._storage.upload(Path(scratch), path)

    @contextmanager
    def _fetched(self, path: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as scratch:
            yield self._storage.download(path, Path(scratch))
