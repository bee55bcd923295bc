"""Works on items with real models: trains a trial up to its rung, or trains the winner again."""

import logging
import time
import uuid

import torch

from finetune_api.hyperparameters import resolve
from finetune_api.texts import printable
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.errors import (
    SpecError,
    StudyError,
    ToldToStop,
    TrialFailure,
)
from finetune_trainer.records import events as ev
from finetune_trainer.search.items import RefitItem, TrainItem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import CHECKPOINTS
from finetune_trainer.storage.retries import Retries
from finetune_trainer.training import EpochResult, TrialRun
from finetune_trainer.worker.item import Item, Listener, Material, requeued
from finetune_trainer.worker.refit import Refit
from finetune_trainer.worker.runs import Workbench

SAVE_SECONDS = 30.0
"""On its way to a rung, a trial saves at the end of the first epoch this long after its last save."""

log = logging.getLogger("finetune.trainer")


class ModelWorker:
    """Trains in one slot; keeps the pretrained weights in memory from item to item."""

    def __init__(self, material: Material, data: PreparedData) -> None:
        torch.set_num_threads(material.resources.threads)
        self._spec = material.spec
        self._data = data
        self._gpus = material.resources.gpus
        self._retries = Retries()
        self._storage = Storage.open(material.storage, self._retries)
        self._bench = Workbench(
            spec=material.spec,
            data=data,
            storage=self._storage,
            device="cuda" if self._gpus else "cpu",
            name=material.name,
        )
        self._rows_of: dict[tuple[int | None, int | None], PreparedData] = {}
        """(fold, training rows) → the data with that fold for validation and that many rows."""

        self._is_known = False
        """Whether the setting is in the records."""

        self._kept: tuple[str, TrialRun] | None = None
        """The run of the last item, as in the checkpoint at that path: the next item often continues it."""

    def work(self, item: Item, work: Listener) -> list[ev.Event]:
        """Do `item`; returns the events that report how it ended. Nothing that a trial raises ends the slot."""
        self._retries.waits, self._retries.should_stop = work.waits, work.should_pause
        try:
            return self._work(item, work)
        except ToldToStop as error:
            log.warning("trial %s goes on from its last save: %s", item.trial, error)
            return [requeued(item)]

    def _work(self, item: Item, work: Listener) -> list[ev.Event]:
        try:
            self._check_device()  # not earlier: a slot that cannot begin is restarted for ever
            self._introduce(work)
            if isinstance(item, RefitItem):
                self._kept = None  # this frees its memory
                return Refit(self._bench, item, work.should_pause, self._gpus).run()
            return self._train(item, work)
        except ToldToStop:
            raise
        except (StudyError, TrialFailure) as error:
            return [self._failed(item, error)]
        except Exception as error:  # any: a slot that ends has to load everything again
            log.exception("trial %s", item.trial)
            return [self._failed(item, error)]

    def _check_device(self) -> None:
        """Raises SpecError if this slot has a GPU that torch does not see: on a CPU, training would take for ever."""
        if self._bench.device == "cpu" or torch.cuda.is_available():
            return
        built = torch.version.cuda or torch.version.hip
        why = (
            "it finds no driver or no device" if built else "the image has the build for CPUs only"
        )
        raise SpecError(
            "spec.cluster.resourcesPerWorker",
            f"must have no GPU where torch sees none (got {self._gpus:g} for each trial; torch "
            f"{torch.__version__} sees none: {why})",
        )

    def _introduce(self, work: Listener) -> None:
        """Record, once, what this slot trains with."""
        if not self._is_known:
            fingerprint = self._data.fingerprint
            work.say(
                ev.SlotReady(
                    time.time(), slot=work.slot, data=fingerprint, setting=self._bench.setting
                )
            )
            self._is_known = True

    def _failed(self, item: Item, error: Exception) -> ev.Event:
        """The event that reports `error`, which `item` raised."""
        if self._storage.was_away():  # without its files everything looks wrong
            return requeued(item)
        failure_class, message = "Internal", printable(f"{type(error).__name__}: {error}")
        if isinstance(error, TrialFailure):
            failure_class, message = error.failure_class, error.message
        elif isinstance(error, StudyError):
            failure_class, message = "UserError", str(error)
        if isinstance(item, RefitItem):
            return ev.RefitRequeued(time.time(), message=f"{failure_class}: {message}"[:500])
        return ev.Failed(
            time.time(),
            trial=item.trial,
            failure_class=failure_class,
            message=message[:500],
            run=item.run,
        )

    def _train(self, item: TrainItem, work: Listener) -> list[ev.Event]:
        run = self._start(item)
        run.learner.progress = work.progress
        seconds, saved = item.seconds, time.monotonic()

        def goes_on() -> bool:
            in_time = item.to_seconds is None or seconds < item.to_seconds
            return run.position < item.to_epoch and not run.finished and in_time

        while goes_on():
            result = run.train_to(item.to_epoch, work.should_pause)
            if result is None:
                return [self._save(run, item), requeued(item)]
            seconds += result.seconds
            work.say(self._epoch_event(item, result))
            if goes_on() and time.monotonic() - saved > SAVE_SECONDS:
                work.say(self._save(run, item))
                saved = time.monotonic()
        # After its last epoch a trial has nothing to resume; on more rows it begins anew.
        all_rows = item.rows is None or item.rows >= len(self._rows(item.fold, None).train)
        reached = ev.Reached(
            time.time(), trial=item.trial, finished=run.finished and all_rows, run=item.run
        )
        return [reached] if run.finished else [self._save(run, item, keep=True), reached]

    def _start(self, item: TrainItem) -> TrialRun:
        kept, self._kept = (
            self._kept,
            None,
        )  # this frees its memory unless it is the one that goes on
        data = self._rows(item.fold, item.rows)
        config = resolve(self._spec.hyperparameters, item.params)
        if item.checkpoint is not None:
            if kept is not None and kept[0] == item.checkpoint and not item.inherits:
                return kept[1]
            del kept
            try:
                changed = config if item.inherits else None
                return self._bench.resume(item.checkpoint, data, changed=changed)
            except FileNotFoundError as error:  # better to train again than to fail the trial
                log.warning("trial %s begins anew, its checkpoint is gone: %s", item.trial, error)
        return self._bench.begin(data, config, item.seed)

    def _rows(self, fold: int | None, rows: int | None) -> PreparedData:
        """The data with that fold for validation, and that many training rows."""
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
            trial=item.trial,
            epoch=result.epoch,
            value=value,
            metrics=result.metrics,
            train_loss=result.train_loss,
            seconds=result.seconds,
            gpu_seconds=result.seconds * self._gpus,
            run=item.run,
            thresholds=result.thresholds,
            parts=result.split,
        )

    def _save(self, run: TrialRun, item: TrainItem, keep: bool = False) -> ev.Event:
        name = f"{item.run}-{run.position:g}-{uuid.uuid4().hex[:8]}"
        path = f"{CHECKPOINTS}/{item.trial}/{name}"
        self._storage.store(path, run.save)
        if keep:
            self._kept = (path, run)
        return ev.Saved(time.time(), trial=item.trial, epoch=run.position, path=path, run=item.run)
