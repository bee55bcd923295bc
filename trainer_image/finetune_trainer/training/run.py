"""One trial's training: from the pretrained weights to the last epoch, in as many sittings as needed."""

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model, save_model
from torch.nn import functional

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.metrics import Goal, Task, score
from finetune_trainer.data.prepare import Encoded, PreparedData
from finetune_trainer.errors import TrialFailure
from finetune_trainer.training import metrics
from finetune_trainer.training.batches import Batch, Collator, evaluation_batches, training_order
from finetune_trainer.training.optimizers import make_optimizer, make_schedule
from finetune_trainer.training.pretrained import Pretrained

POLL_STEPS = 4
"""Optimizer steps between two looks at the loss and at whether to pause."""

_EVALUATION_BATCH = 64


@dataclass(frozen=True)
class EpochResult:
    """What one finished epoch showed on the validation rows."""

    epoch: int
    metrics: dict[str, float]
    train_loss: float
    seconds: float


@dataclass(frozen=True)
class Position:
    """Where a run stands: everything about it that is not a tensor."""

    epoch: int = 0
    """Finished epochs."""

    step: int = 0
    """Optimizer steps taken in the unfinished epoch."""

    loss_sum: float = 0.0
    """Sum of the training loss over the rows of the unfinished epoch."""

    rows: int = 0
    seconds: float = 0.0
    best_score: float = -math.inf
    best_epoch: int = 0


@dataclass(frozen=True)
class Objective:
    """What to measure after each epoch, and which of it counts."""

    metric: str
    goal: Goal
    metrics: tuple[str, ...]


class TrialRun:
    """Trains one configuration. CPU runs resume bit for bit at the same thread count."""

    def __init__(
        self,
        pretrained: Pretrained,
        data: PreparedData,
        config: Hyperparameters,
        objective: Objective,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        self.data, self.config, self.objective, self.seed = data, config, objective, seed
        self.pretrained = pretrained
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = pretrained.build(config, seed, self.device)
        self.optimizer = make_optimizer(self.model, config)
        batches = math.ceil(len(data.train) / config.batch_size)
        self.steps_per_epoch = math.ceil(batches / config.gradient_accumulation)
        self.schedule = make_schedule(self.optimizer, config, self.steps_per_epoch * config.epochs)
        self.position = Position()
        self.collator = Collator(
            min(config.max_length, pretrained.max_tokens),
            data.pad_token,
            data.pads_left,
            pretrained.has_types,
            self.device,
        )

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done or patience has run out."""
        return self.position.epoch >= self.config.epochs or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether the objective has not improved for `earlyStoppingPatience` epochs."""
        patience = self.config.early_stopping_patience
        return patience > 0 and self.position.epoch - self.position.best_epoch >= patience

    def train_epoch(self, should_pause: Callable[[], bool] = lambda: False) -> EpochResult | None:
        """Train to the end of the current epoch and evaluate; None if `should_pause` came true before.

        `should_pause` is asked every few steps. A paused run can be saved, and goes on where it was.
        Raises TrialFailure: Diverged if the loss is not finite, OutOfMemory if the device is too small.
        """
        try:
            return self._train_epoch(should_pause)
        except torch.OutOfMemoryError as error:
            raise TrialFailure(
                "OutOfMemory", f"batch of {self.config.batch_size} rows: {error}"
            ) from error

    def _train_epoch(self, should_pause: Callable[[], bool]) -> EpochResult | None:
        started = time.perf_counter()
        position, config = self.position, self.config
        order = training_order(
            self.data.train.lengths, config.batch_size, self.seed, position.epoch
        )
        groups = [
            order[i : i + config.gradient_accumulation]
            for i in range(0, len(order), config.gradient_accumulation)
        ]
        loss_sum = torch.tensor(position.loss_sum, dtype=torch.float64, device=self.device)
        rows = position.rows
        self.model.train()
        for step in range(position.step, len(groups)):
            loss_sum += self._step(groups[step])
            rows += sum(len(indices) for indices in groups[step])
            if (step + 1) % POLL_STEPS == 0 or step + 1 == len(groups):
                total = (
                    loss_sum.item()
                )  # a point where the CPU waits for the GPU, so not at every step
                self._check(total, position.epoch)
                spent = position.seconds + time.perf_counter() - started
                self.position = replace(
                    position, step=step + 1, loss_sum=total, rows=rows, seconds=spent
                )
                if step + 1 < len(groups) and should_pause():
                    return None
        return self._end_epoch(loss_sum.item() / rows, position.seconds, started)

    def _step(self, group: list[NDArray[np.int64]]) -> torch.Tensor:
        """One optimizer step over the batches of `group`; the sum of the loss over their rows."""
        total = sum(len(indices) for indices in group)
        summed = torch.zeros((), dtype=torch.float64, device=self.device)
        for indices in group:
            batch = self.collator.collate(self.data.train, indices)
            loss = _loss(self.data.task, self.model(**batch.inputs).logits, batch)
            (loss * (len(batch) / total)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            summed += loss.detach() * len(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return summed

    def _check(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise TrialFailure("Diverged", f"training loss became {loss} in epoch {epoch + 1}")

    def _end_epoch(self, train_loss: float, seconds: float, started: float) -> EpochResult:
        found = self.evaluate(self.data.validation)
        epoch = self.position.epoch + 1
        value = found.get(self.objective.metric)
        if value is None:
            raise TrialFailure(
                "Diverged", f"{self.objective.metric} is not defined after epoch {epoch}"
            )
        better = score(value, self.objective.goal) > self.position.best_score
        self.position = Position(
            epoch=epoch,
            best_score=score(value, self.objective.goal) if better else self.position.best_score,
            best_epoch=epoch if better else self.position.best_epoch,
        )
        spent = seconds + time.perf_counter() - started
        return EpochResult(epoch, found, train_loss, spent)

    def evaluate(self, rows: Encoded, names: Iterable[str] | None = None) -> dict[str, float]:
        """The objective's metrics (or `names`) of the model as it is now on `rows`."""
        wanted = tuple(names or self.objective.metrics)
        return metrics.compute(wanted, self.data.task, self.predict(rows), rows.labels)

    @torch.inference_mode()
    def predict(self, rows: Encoded) -> NDArray[np.float32]:
        """Logits (rows, labels) of `rows`, in their order."""
        self.model.eval()
        logits: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        for indices, batch in evaluation_batches(rows, self.collator, _EVALUATION_BATCH):
            logits.append((indices, self.model(**batch.inputs).logits.float().cpu().numpy()))
        result = np.empty((len(rows), logits[0][1].shape[1]), dtype=np.float32)
        for indices, values in logits:
            result[indices] = values
        return result

    def save(self, folder: Path) -> None:
        """Write the whole state: model, optimizer, schedule, random numbers, position in the data."""
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(folder / "model.safetensors"))
        tensors = {"optimizer": self.optimizer.state_dict(), "rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        torch.save(tensors, folder / "optimizer.pt")
        state = {
            "position": {**asdict(self.position), "best_score": repr(self.position.best_score)},
            "schedule_step": self.schedule.last_epoch,
            "threads": torch.get_num_threads(),
        }
        (folder / "state.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        """Take over the state that `save` wrote."""
        state = json.loads((folder / "state.json").read_text())
        load_model(self.model, str(folder / "model.safetensors"), device=str(self.device))
        tensors: dict[str, Any] = torch.load(
            folder / "optimizer.pt", weights_only=True, map_location="cpu"
        )
        self.optimizer.load_state_dict(tensors["optimizer"])
        # LambdaLR computes each rate from the step count alone.
        self.schedule.last_epoch = state["schedule_step"] - 1
        self.schedule._step_count = state["schedule_step"]
        self.schedule.step()
        position = state["position"]
        self.position = Position(**{**position, "best_score": float(position["best_score"])})
        torch.set_rng_state(tensors["rng"])
        if "cuda_rng" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["cuda_rng"], self.device)


def baseline(data: PreparedData, names: Iterable[str]) -> dict[str, float]:
    """The metrics `names` of the best constant prediction on the test rows."""
    logits = metrics.constant_logits(data.task, data.train.labels, len(data.test))
    return metrics.compute(names, data.task, logits, data.test.labels)


def _loss(task: Task, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    if task == "SingleLabel":
        return functional.cross_entropy(logits, batch.labels)
    if task == "MultiLabel":
        return functional.binary_cross_entropy_with_logits(logits, batch.labels)
    return functional.mse_loss(logits.squeeze(-1), batch.labels)
