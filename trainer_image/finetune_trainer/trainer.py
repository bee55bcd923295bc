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
from finetune_trainer.search.items import RefitItem, TrainItem
from finetune_trainer.search.storage import Storage
from finetune_trainer.training import EpochResult, Pretrained, TrialRun, baseline_metrics
from finetune_trainer.work import Item, Material, Work

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
        self._rows_of: dict[tuple[int | None, int | None], PreparedData] = {}
        """(fold, training rows) → the data with that part for validation and so many rows."""

        self._kept: tuple[str, TrialRun] | None = None
        """The run of the last item, as it is in the checkpoint of that path: often the next goes on with it."""

    def work(self, item: Item, work: Work) -> list[ev.Event]:
        """Do `item`; the events that tell how it ended. Nothing a trial raises ends the slot."""
        try:
            return (
                self._refit(item, work) if isinstance(item, RefitItem) else self._train(item, work)
            )
        except TrialFailure as failure:
            return [self._failed(item, failure.failure_class, failure.message)]
        except (RuntimeError, ValueError, ArithmeticError, OSError, SafetensorError) as error:
            return [self._failed(item, "Internal", f"{type(error).__name__}: {error}")]

    def _failed(self, item: Item, failure_class: str, message: str) -> ev.Event:
        if isinstance(item, RefitItem):
            return ev.RefitRequeued(time.time(), f"{failure_class}: {message}"[:500])
        return ev.Failed(time.time(), item.trial, failure_class, message[:500], item.run)

    def _train(self, item: TrainItem, work: Work) -> list[ev.Event]:
        run = self._start(item)
        seconds, saved = item.seconds, time.monotonic()

        def goes_on() -> bool:
            in_time = item.to_seconds is None or seconds < item.to_seconds
            return run.position < item.to_epoch and not run.finished and in_time

        while goes_on():
            result = run.train_to(item.to_epoch, work.should_pause)
            if result is None:
                return [self._save(run, item), ev.Requeued(time.time(), item.trial, run=item.run)]
            seconds += result.seconds
            work.say(self._epoch_event(item, result))
            if goes_on() and time.monotonic() - saved > SAVE_SECONDS:
                work.say(self._save(run, item))
                saved = time.monotonic()
        # What has seen its last epoch has nothing to resume, on more rows it begins anew.
        all_rows = item.rows is None or item.rows >= len(self._rows(item.fold, None).train)
        reached = ev.Reached(time.time(), item.trial, run.finished and all_rows, item.run)
        return [reached] if run.finished else [self._save(run, item, keep=True), reached]

    def _start(self, item: TrainItem) -> TrialRun:
        kept, self._kept = self._kept, None  # its memory is free unless it is the one that goes on
        data, objective = self._rows(item.fold, item.rows), self._spec.objective
        config = resolve(self._spec.hyperparameters, item.params)
        if item.checkpoint is not None:
            if kept is not None and kept[0] == item.checkpoint and not item.inherits:
                return kept[1]
            del kept
            try:
                with self._fetched(item.checkpoint) as folder:
                    changed = config if item.inherits else None
                    return TrialRun.resume(
                        folder, self._pretrained, data, objective, self._device, changed
                    )
            except FileNotFoundError as error:  # the trial is worth more than the epochs it lost
                log.warning("trial %s begins anew, its checkpoint is gone: %s", item.trial, error)
        return TrialRun(self._pretrained, data, config, item.seed, objective, self._device)

    def _rows(self, fold: int | None, rows: int | None) -> PreparedData:
        """The data with that fold for validation, and so many training rows."""
        key = (fold, rows)
        if key not in self._rows_of:
            data, folds = self._data, self._spec.validation.cross_validation
            if fold is not None and folds is not None:
                data = data.fold(fold, folds.folds, folds.stratify, folds.seed)
            if rows is not None:
                split = self._spec.dataset.split
                data = data.sampled(rows, split.stratify, split.seed)
            self._rows_of[key] = data
        return self._rows_of[key]

    def _epoch_event(self, item: TrainItem, result: EpochResult) -> ev.Event:
        value = result.metrics.get(self._spec.objective.metric)
        if value is None:
            metric = self._spec.objective.metric
            raise TrialFailure("Diverged", f"{metric} is not defined after epoch {result.epoch:g}")
        return ev.EpochDone(
            time.time(),
            item.trial,
            result.epoch,
            value,
            result.metrics,
            result.train_loss,
            result.seconds,
            result.seconds * self._gpus,
            item.run,
        )

    def _save(self, run: TrialRun, item: TrainItem, keep: bool = False) -> ev.Event:
        name = f"{item.run}-{run.position:g}-{uuid.uuid4().hex[:8]}"
        path = f"{CHECKPOINTS}/{item.trial}/{name}"
        self._store(path, run.save)
        if keep:
            self._kept = (path, run)
        return ev.Saved(time.time(), item.trial, run.position, path, item.run)

    def _refit(self, item: RefitItem, work: Work) -> list[ev.Event]:
        """Train on train and validation rows for the winner's best number of epochs, then test once."""
        started = time.monotonic()
        self._kept = None
        run = self._start_refit(item)
        saved = time.monotonic()
        for params, to_epoch in item.segments:
            config = resolve(self._spec.hyperparameters, params)
            if run.position < to_epoch and config != run.config:
                run.reconfigure(config)
            while run.position < to_epoch:
                if run.train_to(to_epoch, work.should_pause) is None:
                    self._store(REFIT_CHECKPOINT, run.save)
                    return [ev.RefitRequeued(time.time())]
                if run.position < item.epochs and time.monotonic() - saved > SAVE_SECONDS:
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
        config = resolve(self._spec.hyperparameters, item.segments[0][0])
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
