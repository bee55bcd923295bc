"""Works on items by calling the user's Python function: what `library.Study` runs in its slots."""

import json
import logging
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from finetune_api.combinations import Params
from finetune_trainer.errors import FailureClass, ToldToStop, TrialFailure
from finetune_trainer.records import events as ev
from finetune_trainer.search.items import RefitItem, TrainItem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import CHECKPOINTS, ESTIMATOR
from finetune_trainer.storage.retries import Retries
from finetune_trainer.worker.item import Item, Listener, requeued

log = logging.getLogger("finetune.functions")

_POSITION = "position.json"
_STATE = "state"


@dataclass(frozen=True)
class Resource:
    """How much of a training one call is for."""

    epochs: float
    """Train until the trial has had this many epochs in all."""

    begun: float = 0
    """Epochs that the checkpoint already has."""

    rows: int | None = None
    """Train on this many of the training rows; None for all."""

    fold: int | None = None
    """Validate on this fold; None without cross-validation."""

    seed: int = 0
    """Seed for everything random; the same for all folds of a repetition."""


Outcome: TypeAlias = float | Mapping[str, float]
"""The metric, or several by name."""

Train: TypeAlias = Callable[[Params, Resource, Path], Outcome | Iterator[Outcome]]
"""(config, resource, checkpoint) → the metric after `resource.epochs`; a generator yields it after each epoch.

`checkpoint` is a folder that keeps what earlier calls for this trial left in it; on a new sample of rows it
begins empty. A generator leaves its files there before each `yield`.
"""

Refit: TypeAlias = Callable[[Params, Resource], Any]
"""(config, resource) → the final model, trained on all rows; it must be picklable."""


@dataclass(frozen=True)
class Functions:
    """What slots get: the functions, and what they need to know about the study."""

    train: Train
    refit: Refit | None
    storage: str
    metric: str
    epochs: int
    rows: int | None
    gpus: float


class FunctionWorker:
    """Calls the user's functions in one slot."""

    def __init__(self, material: Functions) -> None:
        self._study = material
        self._retries = Retries()
        self._storage = Storage.open(material.storage, self._retries)

    def work(self, item: Item, work: Listener) -> list[ev.Event]:
        """Do `item`; returns the events that report how it ended."""
        self._retries.waits, self._retries.should_stop = work.waits, work.should_pause
        try:
            return self._refit(item) if isinstance(item, RefitItem) else self._train(item, work)
        except ToldToStop as error:
            log.warning("trial %s goes on from its last save: %s", item.trial, error)
            return [requeued(item)]
        except (Exception, SystemExit) as error:
            # Any error of the function is a failure of the trial. But Ray raises one too, to end a process.
            if hasattr(error, "ray_terminate_msg"):
                raise
            log.exception("the function failed")
            kind, message = _failure(error)
            if isinstance(item, RefitItem):
                return [ev.RefitRequeued(time.time(), message=f"{kind}: {message}"[:500])]
            return [
                ev.Failed(
                    time.time(),
                    trial=item.trial,
                    failure_class=kind,
                    message=message[:500],
                    run=item.run,
                )
            ]

    def _train(self, item: TrainItem, work: Listener) -> list[ev.Event]:
        whole = float(item.params.get("epochs", self._study.epochs))
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            epoch = self._begin(item, folder)
            seconds = item.seconds
            outcomes = self._outcomes(item, epoch, folder / _STATE)
            report: list[ev.Event] = []
            ended = False
            while epoch < item.to_epoch and (item.to_seconds is None or seconds < item.to_seconds):
                began = time.monotonic()
                said = next(outcomes, None)
                if said is None:  # a generator with nothing more to train
                    ended = True
                    break
                each, outcome = said
                epoch = min(item.to_epoch, math.floor(epoch) + 1) if each else item.to_epoch
                took = time.monotonic() - began
                seconds += took
                done = self._epoch_event(item, epoch, outcome, took)
                if epoch >= whole:  # nothing is left to do: one message is enough
                    report.append(done)
                    break
                work.say(done)
                if epoch < item.to_epoch and work.should_pause():
                    return [self._save(item, folder, epoch), requeued(item)]
            ended = ended or epoch >= whole
            rows = self._study.rows
            finished = ended and (item.rows is None or rows is None or item.rows >= rows)
            reached = ev.Reached(time.time(), trial=item.trial, finished=finished, run=item.run)
            return [*report, reached] if ended else [self._save(item, folder, epoch), reached]

    def _begin(self, item: TrainItem, folder: Path) -> float:
        """Put the checkpoint's files in place; returns its epochs."""
        if item.checkpoint is not None:
            path = item.checkpoint
            try:
                return self._storage.persist("read", lambda: self._fetch(path, folder))
            except FileNotFoundError:  # better to train again than to fail the trial
                shutil.rmtree(folder / _STATE, ignore_errors=True)
        (folder / _STATE).mkdir()
        return 0.0

    def _fetch(self, path: str, folder: Path) -> float:
        fetched = self._storage.download(path, folder / "fetched")
        shutil.copytree(fetched / _STATE, folder / _STATE, dirs_exist_ok=True)
        return float(json.loads((fetched / _POSITION).read_text()))

    def _outcomes(
        self, item: TrainItem, begun: float, folder: Path
    ) -> Iterator[tuple[bool, Outcome]]:
        """What the function returns or yields, each with whether it is for a single epoch."""
        rows = item.rows
        if rows is not None and self._study.rows is not None:
            rows = min(rows, self._study.rows)
        resource = Resource(item.to_epoch, begun, rows, item.fold, item.seed)
        result = self._study.train(dict(item.params), resource, folder)
        if isinstance(result, Iterator):
            yield from ((True, outcome) for outcome in result)
        else:
            yield False, result

    def _epoch_event(
        self, item: TrainItem, epoch: float, outcome: Outcome, seconds: float
    ) -> ev.Event:
        named = outcome if isinstance(outcome, Mapping) else {self._study.metric: outcome}
        metrics = {name: float(value) for name, value in named.items()}
        if self._study.metric not in metrics:
            raise TrialFailure(
                "UserError",
                f"train must return {self._study.metric} (got {', '.join(metrics) or 'nothing'})",
            )
        value = metrics[self._study.metric]
        # An additional metric that is not finite is left out; libraries leave some undefined.
        metrics = {name: each for name, each in metrics.items() if math.isfinite(each)}
        if not math.isfinite(value):
            raise TrialFailure(
                "Diverged", f"{self._study.metric} is {value} after {epoch:g} epochs"
            )
        gpu_seconds = seconds * self._study.gpus
        return ev.EpochDone(
            time.time(),
            trial=item.trial,
            epoch=epoch,
            value=value,
            metrics=metrics,
            train_loss=0.0,
            seconds=seconds,
            gpu_seconds=gpu_seconds,
            run=item.run,
        )

    def _save(self, item: TrainItem, folder: Path, epoch: float) -> ev.Event:
        path = f"{CHECKPOINTS}/{item.trial}/{item.run}-{epoch:g}-{uuid.uuid4().hex[:8]}"
        shutil.rmtree(folder / "fetched", ignore_errors=True)
        (folder / _POSITION).write_text(json.dumps(epoch))
        self._storage.upload(folder, path)
        return ev.Saved(time.time(), trial=item.trial, epoch=epoch, path=path, run=item.run)

    def _refit(self, item: RefitItem) -> list[ev.Event]:
        from ray import cloudpickle

        assert self._study.refit is not None  # or there would be no such item
        started = time.monotonic()
        params, epochs = item.segments[-1]
        model = self._study.refit(dict(params), Resource(epochs, seed=item.seed))
        self._storage.write(ESTIMATOR, cast(bytes, cloudpickle.dumps(model)))
        spent = (time.monotonic() - started) * self._study.gpus
        return [ev.RefitDone(time.time(), trial=item.trial, path=ESTIMATOR, gpu_seconds=spent)]


def _failure(error: Exception | SystemExit) -> tuple[FailureClass, str]:
    match error:
        case TrialFailure():
            return error.failure_class, error.message
        case MemoryError():
            return "OutOfMemory", str(error) or "MemoryError"
        case OSError() | RuntimeError():
            return "Internal", f"{type(error).__name__}: {error}"
        case _:
            return "UserError", f"{type(error).__name__}: {error}"
