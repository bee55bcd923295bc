"""One training run: it trains epoch by epoch or in parts of one, can stop between any two batches, and goes on bit for bit."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.metrics import score
from finetune_api.study import Objective
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.errors import TrialFailure
from finetune_trainer.training.batches import (
    Batcher,
    Rows,
    evaluation_batches,
    steps_per_epoch,
    training_steps,
)
from finetune_trainer.training.checkpoint import Checkpoint
from finetune_trainer.training.export import export_model
from finetune_trainer.training.head import start_at_priors
from finetune_trainer.training.losses import mean_loss
from finetune_trainer.training.metrics import compute_metrics
from finetune_trainer.training.optimizers import adopt_state, build_optimizer
from finetune_trainer.training.pretrained import Pretrained
from finetune_trainer.training.randomness import Randomness
from finetune_trainer.training.schedules import learning_rate

_EVALUATION_BATCH = 64
_STEPS_BETWEEN_CHECKS = {"cuda": 16}
"""Optimizer steps whose losses are read together: reading one makes the CPU wait for the GPU."""


@dataclass(frozen=True)
class EpochResult:
    """What an epoch, or part of one, showed. `metrics` are of the validation rows, empty if there are none."""

    epoch: float
    """Epochs trained so far."""

    metrics: dict[str, float]
    train_loss: float
    """Mean over the rows trained so far in this epoch."""

    seconds: float
    """Seconds of training and evaluation since the last result, pauses left out."""


@dataclass
class _Position:
    epoch: int = 0
    step: int = 0
    """Optimizer steps done in the epoch under way."""

    evaluated: float = 0.0
    """Epochs trained when the model was last evaluated."""

    rows: int = 0
    """Rows trained in the epoch under way."""

    loss_sum: float = 0.0
    """Sum of their losses."""

    seconds: float = 0.0
    best: float | None = None
    stale_epochs: int = 0


def _never() -> bool:
    return False


def _batches(config: Hyperparameters) -> tuple[int, int, int]:
    return config.batch_size, config.gradient_accumulation, config.max_length


def _dropouts(config: Hyperparameters) -> tuple[float, float, float]:
    return config.hidden_dropout, config.attention_dropout, config.classifier_dropout


class TrialRun:
    """A trial in memory, between two epochs or in the middle of one.

    Raises TrialFailure("Diverged") as soon as the loss is NaN or infinite, and
    TrialFailure("OutOfMemory") if the device's memory does not suffice.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        data: PreparedData,
        config: Hyperparameters,
        seed: int,
        objective: Objective,
        device: str = "cpu",
    ) -> None:
        self.data = data
        self.config = config
        self.seed = seed
        self._objective = objective
        self._device = torch.device(device)
        self._pretrained = pretrained
        with self._memory_watched():
            model = pretrained.fresh_model(config, seed)
            start_at_priors(model, pretrained.new, data.task, data.labels[data.train])
            self.model: Any = model.to(self._device)
        self._optimizer = build_optimizer(self.model, config)
        self._random = Randomness(seed, self._device)
        self._batch = Batcher(data, config.max_length, self._device)
        self._position = _Position()
        self._unread: list[Tensor] = []

    @classmethod
    def resume(
        cls,
        folder: Path,
        pretrained: Pretrained,
        data: PreparedData,
        objective: Objective,
        device: str = "cpu",
        changed: Hyperparameters | None = None,
    ) -> "TrialRun":
        """The trial that `save` wrote to `folder`, as it was, or with `changed` hyperparameters from there.

        Raises FileNotFoundError if there is none, TrialFailure if it was made on other rows.
        """
        checkpoint = Checkpoint(folder)
        state = checkpoint.state()
        if state["data"] != data.fingerprint:
            raise TrialFailure(
                "UserError", "the data set has changed since the checkpoint was made"
            )
        config = Hyperparameters.model_validate(state["config"])
        run = cls(pretrained, data, config, state["seed"], objective, device)
        with run._memory_watched():
            run._random.states = checkpoint.restore(run.model, run._optimizer)
        run._position = _Position(**state["position"])
        if changed is not None:
            run.reconfigure(changed)
        return run

    def reconfigure(self, config: Hyperparameters) -> None:
        """Go on with other hyperparameters; weights, position and the optimizer's state stay.

        Another optimizer begins with a state of its own. Raises TrialFailure("Internal") in mid-epoch if
        the batches would be others.
        """
        old = self.config
        if self._position.step and _batches(old) != _batches(config):
            raise TrialFailure("Internal", "batches must change between epochs, not within one")
        state = self._optimizer.state_dict()
        if _dropouts(old) != _dropouts(config):
            with self._memory_watched():
                model = self._pretrained.fresh_model(config, self.seed)
                model.load_state_dict(self.model.state_dict())
                self.model = model.to(self._device)
        self.config = config
        self._batch = Batcher(self.data, config.max_length, self._device)
        self._optimizer = build_optimizer(self.model, config)
        if old.optimizer == config.optimizer:
            adopt_state(self._optimizer, state)

    def save(self, folder: Path) -> None:
        """Write everything that `resume` needs into `folder`, in place of what is there."""
        state = {
            "config": self.config.to_json(),
            "seed": self.seed,
            "data": self.data.fingerprint,
            "position": asdict(self._position),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        Checkpoint(folder).write(self.model, self._optimizer, self._random.states, state)

    @property
    def position(self) -> float:
        """Epochs trained when the model was last evaluated."""
        return self._position.evaluated

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the objective has not improved for the trial's patience."""
        patience = self.config.early_stopping_patience
        return (
            self._position.epoch >= self.config.epochs
            or 0 < patience <= self._position.stale_epochs
        )

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of each epoch: the objective's, the additional ones and the loss."""
        named = (self._objective.metric, *self._objective.additional_metrics, "loss")
        return tuple(dict.fromkeys(named))

    def train_to(
        self, position: float, should_pause: Callable[[], bool] = _never
    ) -> EpochResult | None:
        """Train to the end of the epoch under way, or to `position` in it if that comes first, and evaluate.

        `position` is in epochs, beyond the run's own. A fraction of an epoch is that share of its
        optimizer steps, rounded up. `should_pause` is asked before every batch and must be cheap. None: it
        said yes, and the next call, of this run or of one resumed from its checkpoint, goes on where this
        one stopped.
        """
        assert position > self.position
        stop = min(position, self._position.epoch + 1.0)
        started = time.monotonic()
        with self._memory_watched():
            done = self._train(stop, should_pause)
            metrics = self._validate(should_pause) if done else None
        self._position.seconds += time.monotonic() - started
        return None if metrics is None else self._evaluated(stop, metrics)

    def _train(self, stop: float, should_pause: Callable[[], bool]) -> bool:
        steps = self._steps()
        last = math.ceil((stop - self._position.epoch) * len(steps) - 1e-9)
        self.model.train()
        try:
            with self._random:
                for step in steps[self._position.step : last]:
                    if not self._step(step, should_pause):
                        return False
                    self._position.step += 1
                    self._position.rows += sum(len(batch) for batch in step)
        finally:
            self.model.eval()
        return True

    def _steps(self) -> list[list[Rows]]:
        rows = self.data.train
        config = self.config
        lengths = self.data.lengths(rows, config.max_length)
        return training_steps(
            rows,
            lengths,
            config.batch_size,
            config.gradient_accumulation,
            self.seed,
            self._position.epoch,
        )

    def _step(self, batches: list[Rows], should_pause: Callable[[], bool]) -> bool:
        rows = sum(len(batch) for batch in batches)
        before = self._random.snapshot()
        losses = []
        for chosen in batches:
            if should_pause():
                # Gradients are not saved: the step begins anew, with the same random numbers.
                self._optimizer.zero_grad()
                self._random.rewind(before)
                self._read_losses()
                return False
            batch = self._batch(chosen)
            loss = mean_loss(self.data.task, self.model(**batch.inputs).logits, batch.labels)
            torch.autograd.backward(loss * (len(chosen) / rows))
            losses.append(loss.detach() * len(chosen))
        clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self._set_learning_rate()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._unread.append(torch.stack(losses).sum())
        if len(self._unread) >= _STEPS_BETWEEN_CHECKS.get(self._device.type, 1):
            self._read_losses()
        return True

    def _set_learning_rate(self) -> None:
        config, rows = self.config, len(self.data.train)
        each = steps_per_epoch(rows, config.batch_size, config.gradient_accumulation)
        step = self._position.epoch * each + self._position.step
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(config, step, config.epochs * each)

    def _read_losses(self) -> None:
        for loss in torch.stack(self._unread).tolist() if self._unread else ():
            if not math.isfinite(loss):
                raise TrialFailure("Diverged", f"the training loss became {loss}")
            self._position.loss_sum += loss
        self._unread = []

    def _validate(self, should_pause: Callable[[], bool]) -> dict[str, float] | None:
        self._read_losses()
        if not len(self.data.validation):
            return {}
        logits = self._predict(self.data.validation, should_pause)
        if logits is None:
            return None
        if not np.isfinite(logits).all():
            raise TrialFailure("Diverged", "the model's output became NaN or infinite")
        labels = self.data.labels[self.data.validation]
        return compute_metrics(self.data.task, logits, labels, self.metric_names)

    def _evaluated(self, stop: float, metrics: dict[str, float]) -> EpochResult:
        position = self._position
        loss = position.loss_sum / max(1, position.rows)
        result = EpochResult(stop, metrics, loss, position.seconds)
        if stop < position.epoch + 1:
            self._position = replace(position, evaluated=stop, seconds=0.0)
            return result
        best, stale = position.best, position.stale_epochs
        if self._objective.metric in metrics:
            value = score(metrics[self._objective.metric], self._objective.direction)
            improved = best is None or value > best
            best, stale = (value, 0) if improved else (best, stale + 1)
        self._position = _Position(
            epoch=position.epoch + 1, evaluated=stop, best=best, stale_epochs=stale
        )
        return result

    def predict(self, rows: Rows) -> NDArray[np.float32]:
        """The model's logits (rows, outputs) for `rows` of the data."""
        with self._memory_watched():
            logits = self._predict(rows, _never)
        assert logits is not None
        return logits

    def _predict(self, rows: Rows, should_pause: Callable[[], bool]) -> NDArray[np.float32] | None:
        lengths = self.data.lengths(rows, self.config.max_length)
        batches = evaluation_batches(np.arange(len(rows)), lengths, _EVALUATION_BATCH)
        outputs = []
        with torch.inference_mode():
            for at in batches:
                if should_pause():
                    return None
                outputs.append(self.model(**self._batch(rows[at]).inputs).logits.float())
            logits = np.empty((len(rows), len(self.data.label_names)), dtype=np.float32)
            logits[np.concatenate(batches)] = torch.cat(outputs).cpu().numpy()
        return logits

    def evaluate(self, part: str) -> dict[str, float]:
        """The metrics of the model as it is now, on `validation` or `test`."""
        rows = self.data.part(part)
        return compute_metrics(
            self.data.task, self.predict(rows), self.data.labels[rows], self.metric_names
        )

    def export(self, folder: Path) -> None:
        """Write the model as it is now for `AutoModelForSequenceClassification.from_pretrained`."""
        export_model(self.model, self.data, self.config.max_length, folder)

    @contextmanager
    def _memory_watched(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                what = f"batchSize {self.config.batch_size}, maxLength {self.config.max_length}"
                raise TrialFailure(
                    "OutOfMemory", f"{self._device} has too little memory for {what}"
                ) from error
            raise
