"""One training, epoch by epoch or in parts of one; it can stop between any two batches, and resumes bit for bit."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune_api.cluster import Compute
from finetune_api.feasibility import metrics_in
from finetune_api.hyperparameters import IN_BATCHES, Hyperparameters
from finetune_api.metrics import score
from finetune_api.objective import Objective
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.data.windows import units_of
from finetune_trainer.errors import TrialFailure
from finetune_trainer.tasks import Logits, task_of
from finetune_trainer.tasks.ragged import flat
from finetune_trainer.tasks.thresholds import trial_thresholds
from finetune_trainer.training.batches import Rows, balanced_rows, training_steps
from finetune_trainer.training.checkpoint import Checkpoint
from finetune_trainer.training.export import export_model, write_thresholds
from finetune_trainer.training.learner import Learner, never
from finetune_trainer.training.metrics import compute_metrics
from finetune_trainer.training.out_of_fold import metrics_out_of_fold, validation_folds
from finetune_trainer.training.pretrained import Pretrained
from finetune_trainer.training.schedules import learning_rate

_SAMPLING = ("Oversample", "Undersample")
_STEPS_BETWEEN_CHECKS = {"cuda": 16}
"""Optimizer steps whose losses are read together: reading one makes the CPU wait for the GPU."""


@dataclass(frozen=True)
class EpochResult:
    """The outcome of an epoch, or part of one. `metrics` are of the validation rows, empty if there are none."""

    epoch: float
    """Epochs trained so far."""

    metrics: dict[str, float]
    train_loss: float
    """Mean over the rows trained so far in this epoch."""

    seconds: float
    """Seconds of training and evaluation since the last result, pauses left out."""

    split: int = 1
    """How many parts each batch is computed in, because it does not fit into memory as a whole."""

    thresholds: list[float] | None = None
    """Probability from which each label is predicted, if it was tuned on the validation rows."""


@dataclass
class _Watch:
    """Counts for how long a value has not improved."""

    best: float | None = None
    stale: int = 0
    """Values since the best one."""

    def see(self, value: float, min_delta: float = 0.0) -> None:
        """Take in a value; larger is better."""
        if self.best is None or value > self.best + min_delta:
            self.best, self.stale = value, 0
        else:
            self.stale += 1


@dataclass
class _Position:
    epoch: int = 0
    step: int = 0
    """Optimizer steps done in the current epoch."""

    evaluated: float = 0.0
    """Epochs trained when the model was last evaluated."""

    rows: int = 0
    """Rows trained in the current epoch, or their labelled words."""

    loss_sum: float = 0.0
    """Sum of their losses."""

    seconds: float = 0.0
    reductions: int = 0
    """How often ReduceOnPlateau has reduced the learning rate."""


def _batches(config: Hyperparameters) -> tuple[object, ...]:
    return tuple(getattr(config, name) for name in IN_BATCHES)


def metric_names(objective: Objective) -> tuple[str, ...]:
    """What is measured: all that the objective names, its metric first, and the loss."""
    constrained = metrics_in(objective.constraints or ())
    return tuple(dict.fromkeys((*objective.named, *constrained, "loss")))


class TrialRun:
    """A training in memory, between two epochs or in the middle of one.

    Raises TrialFailure("Diverged") as soon as the loss is NaN or infinite, TrialFailure("OutOfMemory") if
    the device has too little memory even for single rows, and TrialFailure("UserError") for
    hyperparameters that the model cannot have.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        data: PreparedData,
        config: Hyperparameters,
        seed: int,
        objective: Objective,
        device: str = "cpu",
        compute: Compute | None = None,
        history: Sequence[float] = (),
        out_of_fold: bool = False,
    ) -> None:
        """`history` is the objective after each epoch of the trial that this one repeats: without validation
        rows, schedules that depend on the objective have nothing else.

        `out_of_fold`: the study tunes thresholds, so metrics of its validation rows are means over folds, even for
        trials that do not tune. Otherwise tuned thresholds are judged on the rows they were tuned on, as in
        studies that began before there were folds.
        """
        self._all_rows = data
        self.data = data.deduplicated(config.duplicate_threshold)
        self.seed = seed
        self._objective = objective
        self._device = torch.device(device)
        compute = compute or Compute()
        self._units = units_of(self.data, config.max_length)
        self.learner = Learner(pretrained, self._units.data, config, seed, self._device, compute)
        self._position = _Position()
        self._stopping = _Watch()
        self._plateau = _Watch()
        self._history = history
        self._folds: list[NDArray[np.int64]] = []
        """Of the validation rows, by their positions among these."""

        if out_of_fold:
            self._folds = validation_folds(data)
        self._unread: list[Tensor] = []
        self.tuned: NDArray[np.float64] | None = None
        """PerLabel thresholds of the last evaluation; a training without validation rows is given those of
        another."""

    @classmethod
    def resume(
        cls,
        folder: Path,
        pretrained: Pretrained,
        data: PreparedData,
        objective: Objective,
        device: str = "cpu",
        compute: Compute | None = None,
        history: Sequence[float] = (),
        changed: Hyperparameters | None = None,
        out_of_fold: bool = False,
    ) -> "TrialRun":
        """The training that `save` wrote to `folder`, as it was, or with `changed` hyperparameters from there on.

        Raises FileNotFoundError if there is none, TrialFailure if it was saved with other rows.
        """
        checkpoint = Checkpoint(folder)
        state = checkpoint.state()
        if state["data"] != data.fingerprint:
            raise TrialFailure(
                "UserError", "the data set has changed since the checkpoint was saved"
            )
        config = Hyperparameters.model_validate(state["config"])
        seed = state["seed"]
        run = cls(pretrained, data, config, seed, objective, device, compute, history, out_of_fold)
        run.learner.restore(checkpoint)
        run._position = _Position(**state["position"])
        run._stopping = _Watch(**state["stopping"])
        run._plateau = _Watch(**state["plateau"])
        if changed is not None:
            run.reconfigure(changed)
        return run

    @property
    def config(self) -> Hyperparameters:
        """The trial's hyperparameters."""
        return self.learner.config

    @property
    def model(self) -> Any:
        """The whole model as it is now; what the training had precomputed of it is no longer used."""
        return self.learner.whole_model

    def reconfigure(self, config: Hyperparameters) -> None:
        """Go on with other hyperparameters; weights, position and the optimizer's state stay.

        Another optimizer begins with new state. Raises TrialFailure("Internal") if the model
        would have other tensors or, in mid-epoch, if the batches would be others.
        """
        if self._position.step and _batches(self.config) != _batches(config):
            raise TrialFailure("Internal", "batches may change only between epochs")
        if config.duplicate_threshold != self.config.duplicate_threshold:
            self.data = self._all_rows.deduplicated(config.duplicate_threshold)
        if self._units.rows is not self.data or config.max_length != self.config.max_length:
            self._units = units_of(self.data, config.max_length)
        self.learner.reconfigure(config, self._units.data)

    def save(self, folder: Path) -> None:
        """Write everything that `resume` needs into `folder`, in place of what is there."""
        state = {
            "config": self.config.to_json(),
            "seed": self.seed,
            "data": self.data.fingerprint,
            "position": asdict(self._position),
            "stopping": asdict(self._stopping),
            "plateau": asdict(self._plateau),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        self.learner.save(Checkpoint(folder), state)

    @property
    def position(self) -> float:
        """Epochs trained when the model was last evaluated."""
        return self._position.evaluated

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or early stopping has ended the training."""
        patience = self.config.early_stopping_patience
        return self._position.epoch >= self.config.epochs or 0 < patience <= self._stopping.stale

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of each epoch: see `metric_names`."""
        return metric_names(self._objective)

    @property
    def thresholds(self) -> NDArray[np.float64] | None:
        """Probability from which each label is predicted, (outputs,); None unless the task has thresholds."""
        if not task_of(self.data.task).has_thresholds:
            return None
        if self.config.threshold_tuning == "PerLabel" and self.tuned is not None:
            return self.tuned
        return np.full(len(self.data.label_names), self.config.decision_threshold)

    def train_to(
        self, position: float, should_pause: Callable[[], bool] = never
    ) -> EpochResult | None:
        """Train to the end of the current epoch, or to `position` in it if that comes first, and evaluate.

        `position` is in epochs, and beyond the current one. A fraction of an epoch is that share of its
        optimizer steps, rounded up. `should_pause` is asked before every batch and must be cheap. Returns None if
        it said yes; the next call, on this training or on one resumed from its checkpoint, goes on where this
        one stopped.
        """
        assert position > self.position
        stop = min(position, self._position.epoch + 1.0)
        started = time.monotonic()
        done = self._train(stop, should_pause)
        metrics = self._validate(should_pause) if done else None
        self._position.seconds += time.monotonic() - started
        return None if metrics is None else self._evaluated(stop, metrics)

    def _train(self, stop: float, should_pause: Callable[[], bool]) -> bool:
        position = self._position
        units = self._units.data
        data = units.augmented(self.config, self.seed, position.epoch)
        steps = self._steps(data)
        last = math.ceil((stop - position.epoch) * len(steps) - 1e-9)
        if not self.learner.prepare(units.train, should_pause):
            return False
        average_from = self.config.averaging_start * self.config.epochs * len(steps)
        if position.epoch * len(steps) + position.step < average_from:
            self.learner.forget_average()  # from earlier hyperparameters, with which it began sooner
        with self.learner.training(data):
            for step in steps[position.step : last]:
                self.learner.thaw(position.epoch + position.step / len(steps))
                number = position.epoch * len(steps) + position.step
                rate = learning_rate(self.config, number, len(steps), position.reductions)
                loss = self.learner.step(step, rate, should_pause)
                if loss is None:
                    self._read_losses()
                    return False
                if number >= average_from:
                    self.learner.take_into_average()
                self._unread.append(loss)
                if len(self._unread) >= _STEPS_BETWEEN_CHECKS.get(self._device.type, 1):
                    self._read_losses()
                position.step += 1
                position.rows += sum(map(self.learner.weight, step))
        return True

    def _steps(self, data: PreparedData) -> list[list[Rows]]:
        config, rows, epoch = self.config, data.train, self._position.epoch
        if config.class_balance in _SAMPLING:
            classes = data.labels[rows]
            rows = balanced_rows(rows, classes, config.class_balance, self.seed, epoch)
        lengths = data.lengths(rows, config.max_length)
        accumulation = config.gradient_accumulation
        return training_steps(rows, lengths, config.batch_size, accumulation, self.seed, epoch)

    def _read_losses(self) -> None:
        for loss in torch.stack(self._unread).tolist() if self._unread else ():
            if not math.isfinite(loss):
                raise TrialFailure("Diverged", f"the training loss became {loss}")
            self._position.loss_sum += loss * self.learner.loss_unit
        self._unread = []

    def _validate(self, should_pause: Callable[[], bool]) -> dict[str, float] | None:
        self._read_losses()
        if not len(self.data.validation):
            return {}
        logits = self._predict(self.data.validation, should_pause)
        if logits is None:
            return None
        self.tuned = self._tuned(logits)
        return self.measure("validation", logits)

    def _tuned(self, logits: NDArray[np.float32]) -> NDArray[np.float64] | None:
        if not task_of(self.data.task).has_thresholds or self.config.threshold_tuning == "None":
            return None
        return self._tune(logits, self.data.labels[self.data.validation])

    def _tune(self, logits: NDArray[np.float32], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The threshold of each label, (outputs,): tuned on these rows, unless the trial sets one for all."""
        return trial_thresholds(logits, labels, self.config, bool(self._folds))

    def _evaluated(self, stop: float, metrics: dict[str, float]) -> EpochResult:
        position = self._position
        loss = position.loss_sum / max(1, position.rows)
        tuned = None if self.tuned is None else self.tuned.tolist()
        result = EpochResult(stop, metrics, loss, position.seconds, self.learner.split, tuned)
        if stop < position.epoch + 1:
            self._position = replace(position, evaluated=stop, seconds=0.0)
            return result
        objective, config = self._objective, self.config
        value = metrics.get(objective.metric)
        if value is None and position.epoch < len(self._history):
            value = self._history[position.epoch]
        reduces = config.lr_schedule == "ReduceOnPlateau"  # PBT may change to it or from it
        if reduces and value is not None:
            self._plateau.see(score(value, objective.direction))
        if objective.stopping_metric in metrics:
            watched = metrics[objective.stopping_metric]
            watched = score(watched, objective.stopping_direction)
            self._stopping.see(watched, config.early_stopping_min_delta)
        reduce = reduces and self._plateau.stale >= config.lr_patience
        if reduce:
            self._plateau.stale = 0
        self._position = _Position(
            epoch=position.epoch + 1,
            evaluated=stop,
            reductions=position.reductions + reduce,
        )
        return result

    def predict(self, rows: Rows, whole: bool = False) -> Logits:
        """The model's logits for `rows` of the data: (rows, outputs), or what the task keeps of those of words.

        `whole`: all outputs for words too, for what is more than judging.
        """
        logits = self._predict(rows, never, whole)
        assert logits is not None
        return logits

    def _predict(
        self, rows: Rows, should_pause: Callable[[], bool], whole: bool = False
    ) -> Logits | None:
        with self.learner.averaged():
            found = self.learner.predict(self._units.of(rows), should_pause, whole)
        if found is None:
            return None
        if not np.isfinite(flat(found)).all():
            raise TrialFailure("Diverged", "the model's output became NaN or infinite")
        return self._units.joined(found, rows)

    def evaluate(self, part: str) -> dict[str, float]:
        """The metrics of the model as it is now, on `validation` or `test`."""
        return self.measure(part, self.predict(self.data.part(part)))

    def measure(self, part: str, logits: Logits) -> dict[str, float]:
        """The metrics of `logits`, which must be for all rows of `validation` or `test`."""
        rows, task, names = self.data.part(part), self.data.task, self.metric_names
        labels, slices = self.data.labels[rows], self.data.slices_at(rows)
        if part == "validation" and self._folds:
            return metrics_out_of_fold(task, logits, labels, self._folds, names, self._tune, slices)
        return compute_metrics(task, logits, labels, names, self.thresholds, slices)

    def export(self, folder: Path) -> None:
        """Write the model as it is now, for the class of transformers that the task names (`auto_class`).

        For MultiLabel, also the probability from which each label is predicted.
        """
        with self.learner.averaged(), self.learner.finished() as model:
            export_model(model, self.data, self.config.max_length, folder)
        if self.thresholds is not None:
            write_thresholds(self.data.label_names, self.thresholds, folder)
