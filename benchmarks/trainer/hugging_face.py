"""Hugging Face's Trainer as the other side of a comparison: it trains by a trial's hyperparameters."""

import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from finetune_api.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class Trained:
    """The cost and the result of a training by Trainer."""

    seconds: float
    """Of its epochs: batching and steps, without evaluation or creating model and optimizer."""

    accuracies: tuple[float, ...]
    """On the validation rows after each epoch, if there are any."""


class _Clock(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    def __init__(self) -> None:
        self.seconds, self._began = 0.0, 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter() - self._began


def train(
    model: Any,
    tokenizer: Any,
    train: list[Any],
    config: Hyperparameters,
    seed: int,
    validation: list[Any] | None = None,
    grouped: bool = False,
) -> Trained:
    """Train `model` in place with AdamW on a CPU; whatever `config` does not set is Trainer's default.

    `grouped` batches rows of similar length (`group_by_length`).
    """
    clock = _Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=config.epochs,
                learning_rate=config.learning_rate,
                lr_scheduler_type=config.lr_schedule.lower(),
                warmup_steps=config.warmup_ratio,
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                per_device_train_batch_size=config.batch_size,
                per_device_eval_batch_size=64,
                gradient_accumulation_steps=config.gradient_accumulation,
                train_sampling_strategy="group_by_length" if grouped else "random",
                eval_strategy="no" if validation is None else "epoch",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                seed=seed,
            ),
            train_dataset=train,
            eval_dataset=validation,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=_accuracy,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    history = trainer.state.log_history
    accuracies = [line["eval_accuracy"] for line in history if "eval_accuracy" in line]
    return Trained(clock.seconds, tuple(accuracies))


def _accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(found.predictions.argmax(axis=1) == found.label_ids))}
