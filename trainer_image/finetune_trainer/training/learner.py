"""A model in training: its weights, its optimizer, and one optimizer step."""

import copy
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from finetune_api.cluster import Compute
from finetune_api.hyperparameters import BUILT_WITH, Hyperparameters
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.errors import TrialFailure
from finetune_trainer.tasks import Logits, task_of
from finetune_trainer.training.adapters import merged
from finetune_trainer.training.averaging import Average
from finetune_trainer.training.batches import Batch, Batcher, Rows, evaluation_batches
from finetune_trainer.training.checkpoint import Checkpoint
from finetune_trainer.training.dropouts import quicken
from finetune_trainer.training.features import (
    FeatureBatcher,
    HeadOnly,
    HiddenBatcher,
    RowFeatures,
    cut_open,
    put_back,
)
from finetune_trainer.training.frozen import Frozen
from finetune_trainer.training.head import output_layer, start_at_priors
from finetune_trainer.training.layers import set_trained, trainable
from finetune_trainer.training.losses import TrainingLoss
from finetune_trainer.training.optimizers import (
    adopt_state,
    begin_momentum,
    build_optimizer,
    decay,
    has_decay,
    pull,
    set_rate,
)
from finetune_trainer.training.perturbation import Nudge, mixout, steepest
from finetune_trainer.training.pretrained import Pretrained, structure
from finetune_trainer.training.randomness import Randomness
from finetune_trainer.training.targets import TargetScale
from finetune_trainer.training.vocabulary import OccurringWords, leave_out, may_leave_out

_MEMORY_SHORT = re.compile(r"can't allocate memory|could not create a primitive(?! descriptor)")
"""What PyTorch and oneDNN say on a CPU when memory is short; oneDNN's message is nothing but its status."""

_EVALUATION_BATCH = 64
_AUTOCAST = {"BF16": torch.bfloat16, "FP16": torch.float16}

_Result = TypeVar("_Result")

log = logging.getLogger("finetune.training")


def never() -> bool:
    """No."""
    return False


def _tell_nobody(message: str) -> None:
    del message


def _name_of(layer: nn.Linear | None, model: nn.Module) -> str:
    """The name of `layer` in `model`; empty for None."""
    return next((name for name, module in model.named_modules() if module is layer), "")


def _built_with(config: Hyperparameters) -> tuple[object, ...]:
    """What a model and its batches are made with, apart from its structure."""
    return tuple(getattr(config, name) for name in BUILT_WITH)


class Learner:
    """A model with its optimizer on one device; whatever changes from step to step is saved and restored.

    Raises TrialFailure("OutOfMemory") if the device has too little memory even for single rows.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        data: PreparedData,
        config: Hyperparameters,
        seed: int,
        device: torch.device,
        compute: Compute,
    ) -> None:
        self.config = config
        self.split = 1
        """How many parts each batch is computed in, because it does not fit into memory as a whole."""

        self._model: Any
        self._forward: Any
        self._data = data
        self._seed = seed
        self._device = device
        self._compute = compute
        self._pretrained = pretrained
        self.progress: Callable[[str], None] = _tell_nobody
        """Told what takes long before an epoch can begin; must be cheap."""

        self._frozen_below: int | None = None
        self._words: OccurringWords | None = None
        self._has_all_words = not may_leave_out(config)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if compute.precision == "TF32" else "highest")
        with self._memory_watched():
            output = self._build()
        self._task = task_of(data.task)
        self._targets = TargetScale()
        labels = data.labels[data.train]
        if output is not None and self._task.standardised:
            self._targets = TargetScale.of(labels)  # the mean is 0, as the new layer's bias
            nn.init.zeros_(output.bias)
        elif output is not None:
            start_at_priors(output, data.task, labels, config.class_balance != "None")
        self._optimizer = build_optimizer(self._weights, config, self._layers)
        self._average = self._new_average()
        self._scaler = torch.amp.GradScaler(device.type, enabled=compute.precision == "FP16")
        self.random = Randomness(seed, device)
        self._loss = self._training_loss()

    def _build(self) -> nn.Linear | None:
        """Make the model as it is before training; returns the new output layer."""
        self._taken: dict[str, nn.Module] = {}
        self._output_name = ""
        self._frozen_below = None
        batcher = Batcher(self._data, self.config.max_length, self._device)
        self._batch: Batcher | FeatureBatcher = batcher
        self._has_one_length = False
        if self._compute.compile:
            lengths = batcher.lengths(np.arange(len(self._data.labels)))
            self._has_one_length = bool((lengths == lengths[0]).all())
        frozen = Frozen(
            self._pretrained,
            self._data,
            self.config,
            self._seed,
            self._device,
            self._compute.precision,
        )
        pooled = frozen.pooled()
        if pooled is not None:
            output = self._build_head(pooled, batcher)
        else:
            output = self._build_whole(frozen, batcher)
        lowest = self._layers.always_frozen_below(self.config)
        self._weights = trainable(self._model, self._layers, lowest, self.config.lora_rank > 0)
        if not self._has_all_words and not isinstance(self._model, HeadOnly):
            self._words = leave_out(self._model, self._weights, self._data)
        self._nudge = Nudge()
        if not isinstance(self._model, HeadOnly) and not self._taken:
            self._nudge.listen(self._model)
        self._origins = self._pretrained_weights()
        self._matrices = {
            weight: self._origins[weight]
            for name, weight in self._weights.items()
            if weight in self._origins and weight.ndim == 2 and self._layers.depth(name) > 0
        }
        return output

    def _pretrained_weights(self) -> dict[nn.Parameter, Tensor]:
        """The pretrained values of those weights that have any, of a model that has just been made, if they matter."""
        if not self.config.pretrained_pull and not self.config.mixout:
            return {}
        return {
            weight: weight.detach().clone()
            for name, weight in self._weights.items()
            if self._layers.is_pretrained(name, self.config)
        }

    def _build_head(self, features: RowFeatures, batcher: Batcher) -> nn.Linear | None:
        head = HeadOnly(self._pretrained.fresh_head(self.config, self._seed))
        output = output_layer(head, [f"head.{name}" for name in head.head.state_dict()])
        self._output_name = _name_of(output, head)
        self._layers = features.layers
        self._model = head.to(self._device).eval()
        self._quicken()
        self._forward = self._model
        self._batch = FeatureBatcher(features, batcher, self._autocast)
        return output

    def _build_whole(self, frozen: Frozen, batcher: Batcher) -> nn.Linear | None:
        fresh = self._pretrained.fresh_model(self.config, self._seed)
        self._layers, self._output_name = fresh.layers, _name_of(fresh.output, fresh.model)
        self._model = fresh.model.to(self._device).eval()
        if self._compute.gradient_checkpointing:
            encoder = self._model.base_model
            if not encoder.supports_gradient_checkpointing:
                kind = encoder.config.model_type
                message = (
                    f"spec.compute.gradientCheckpointing must be false for models of type {kind}"
                )
                raise TrialFailure("UserError", message)
            encoder.activation_checkpointing_enable({"use_reentrant": False})
            # It also lets gradients reach the embeddings through frozen layers.
            encoder.disable_input_require_grads()
        self._quicken()
        hidden = frozen.hidden(self._model, self._layers)
        if hidden is not None:
            self._taken = cut_open(self._model, self._layers, frozen.count(self._layers))
            self._batch = HiddenBatcher(hidden, batcher, self._autocast)
        self._forward = torch.compile(self._model) if self._compute.compile else self._model
        return fresh.output

    def _quicken(self) -> None:
        if self._device.type == "cpu" and not self._compute.compile:
            quicken(self._model)

    @property
    def whole_model(self) -> Any:
        """The model as it is now, with its frozen part and its whole vocabulary; it may be a copy, so only read it.

        If it is the model in training itself, training goes on with nothing precomputed.
        """
        if isinstance(self._model, HeadOnly):
            fresh = self._pretrained.fresh_model(self.config, self._seed)
            fresh.model.head.load_state_dict(self._model.head.state_dict())
            return fresh.model.to(self._device).eval()
        if self._taken:
            put_back(self._model, self._taken)
            self._taken = {}
            self._forward = self._model
            self._batch = Batcher(self._data, self.config.max_length, self._device)
        if self._words is not None:
            # A copy that shares every tensor but the word embeddings.
            shared = {id(one): one for one in (*self._model.parameters(), *self._model.buffers())}
            return copy.deepcopy(self._model, {**shared, id(self._words): self._words.whole()})
        return self._model

    def _take_all_words(self) -> None:
        """Train the whole vocabulary from now on; the optimizer must be built anew."""
        self._has_all_words = True
        words, self._words = self._words, None
        if words is None:
            return
        whole, name = words.whole(), f"{words.name}.weight"
        self._model.set_submodule(words.name, whole)
        self._nudge.listen(self._model)
        weight = self._weights[name] = whole.get_parameter("weight")
        if words.weight in self._origins:
            self._origins[weight] = words.spread(self._origins.pop(words.weight))
        if words.weight in self._optimizer.state:
            state = self._optimizer.state.pop(words.weight)
            self._optimizer.state[weight] = {
                key: words.spread(value) if value.shape == words.weight.shape else value
                for key, value in state.items()
            }
        if self._average is not None:
            self._average.replace(name, weight, words.spread)

    def _training_loss(self) -> TrainingLoss:
        data = self._data
        labels = data.labels[data.train]
        return TrainingLoss.of(data.task, labels, len(data.label_names), self.config, self._device)

    def _new_average(self) -> Average | None:
        config = self.config
        averages = config.averaging_start < 1
        return Average(self._weights, config.averaging_decay) if averages else None

    def reconfigure(self, config: Hyperparameters, data: PreparedData) -> None:
        """Go on with other hyperparameters; the weights stay and, for the same optimizer, its state.

        `data` has the same rows, but may assign others to training. Raises
        TrialFailure("Internal") if the model would have other tensors.
        """
        old = self.config
        if structure(old) != structure(config):
            raise TrialFailure("Internal", "the tensors of a model must not change while it trains")
        if not may_leave_out(config):
            with self._memory_watched():
                self._take_all_words()
        optimizer, weights = self._optimizer, self._weights
        self.config, self._data = config, data
        if _built_with(old) != _built_with(config):
            with self._memory_watched(), torch.no_grad():
                self._build()
                for name, weight in self._weights.items():
                    weight.copy_(weights[name])
        self._loss = self._training_loss()
        self._optimizer = build_optimizer(self._weights, config, self._layers)
        if old.optimizer == config.optimizer:
            names = {weight: name for name, weight in self._weights.items()}
            adopt_state(self._optimizer, optimizer, lambda new: weights[names[new]])
        before = self._average
        self._average = self._new_average()
        if self._average is not None and before is not None:
            self._average.restore(before.state(), self._device)

    def prepare(self, rows: Rows, should_pause: Callable[[], bool] = never) -> bool:
        """Compute the frozen part of the model for `rows`; False if `should_pause` interrupted it."""
        with self._memory_watched():
            return self._batch.prepare(rows, should_pause, self.progress)

    @contextmanager
    def training(self, data: PreparedData) -> Iterator[None]:
        """Put the model in training mode on rows of `data` inside `with`, with the trial's own random numbers.

        `data` has the trial's rows, perhaps followed by more.
        """
        usual, self._frozen_below = self._batch, None
        if data is not self._data:
            self._batch = Batcher(data, self.config.max_length, self._device)
        try:
            with self.random:
                yield
        finally:
            self._batch = usual
            self._model.eval()

    def thaw(self, epochs: float) -> None:
        """Train whatever is due after `epochs`, and nothing else."""
        below = self._layers.frozen_below(self.config, epochs)
        if below != self._frozen_below:
            self._frozen_below = below
            self._model.train()
            set_trained(self._model, self._layers, below, self.config.lora_rank > 0)

    def step(
        self, batches: list[Rows], rate: float, should_pause: Callable[[], bool] = never
    ) -> Tensor | None:
        """One optimizer step over the rows of `batches` at learning rate `rate`; returns the sum of their losses.

        None, with nothing changed, if `should_pause` said yes; it is asked before each forward pass.
        """
        before = self.random.snapshot()

        def gradients() -> Tensor | None:
            self._forget(before)
            with mixout(self._matrices, self.config.mixout):
                return self._gradients(batches, should_pause)

        loss = self._in_parts(gradients, max(map(len, batches)))
        if loss is None:
            self._forget(before)
            return None
        with self._memory_watched():  # an update that fails half-way cannot be repeated
            self._update(rate)
        return loss

    def _in_parts(self, compute: Callable[[], _Result], rows: int) -> _Result:
        """The result of `compute`, which is called again in smaller parts of at most `rows` until it fits."""
        while True:
            try:
                with self._memory_watched():
                    return compute()
            except TrialFailure:
                if self.split >= rows:
                    raise
            self.split *= 2
            log.warning("memory is short: batches are now computed in %d parts", self.split)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _forget(self, before: dict[str, Tensor]) -> None:
        """Drop the gradients, which are not saved: the step begins again, with the same random numbers."""
        self._optimizer.zero_grad()
        self.random.rewind(before)

    def _gradients(self, batches: list[Rows], should_pause: Callable[[], bool]) -> Tensor | None:
        """Compute the gradients of a step; returns the sum of its rows' losses, or None if told to pause."""
        whole = max(1, sum(map(self.weight, batches)))
        losses = []
        for chosen in batches:
            for part in self._parts(chosen):
                if should_pause():
                    return None
                batch, weight = self._batch(part), self.weight(part)
                losses.append(self._backward(batch, weight / whole) * weight)
        return torch.stack(losses).sum()

    def weight(self, rows: Rows) -> int:
        """How much `rows` count in the loss: one each, or one for each of their words that has a label."""
        return self._batch.weight(rows)

    def _backward(self, batch: Batch, share: float) -> Tensor:
        """Add the gradients of the rows' loss, times `share`; returns their mean loss."""
        inputs, length = self._inputs(batch), self.config.adversarial_epsilon
        if not length:
            loss = self._loss_of(inputs, batch)
            torch.autograd.backward(self._scaler.scale(loss * share))
            return loss.detach()
        total, step = torch.zeros((), device=self._device), self._nudge.no_step(inputs["input_ids"])
        for _ in ("as they are", "moved"):
            with self._nudge.moving(step):
                loss = self._loss_of(inputs, batch) / 2
            torch.autograd.backward(self._scaler.scale(loss * share))
            total += loss.detach()
            if step.grad is not None:
                step = steepest(step.grad, length)
        return total

    def _loss_of(self, inputs: dict[str, Tensor], batch: Batch) -> Tensor:
        """The mean loss of a batch with these `inputs`, with what `rDrop` adds."""
        labels = batch.labels
        if self._task.standardised:
            labels = self._targets.standardised(labels)
        with self._autocast():
            logits = batch.labelled(self._forward(**inputs).logits)
        loss = self._loss(logits, labels)
        if not self.config.r_drop:
            return loss
        with self._autocast():
            again = batch.labelled(self._forward(**inputs).logits)
        between = self._task.divergence(logits.float(), again.float())
        return (loss + self._loss(again, labels)) / 2 + self.config.r_drop * between

    def _parts(self, rows: Rows) -> Iterator[Rows]:
        """`rows` as they go through the model: as many together as memory and padding allow."""
        for part in np.array_split(rows, min(self.split, len(rows))):
            yield from self._batch.together(part)

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The model's arguments, without a mask if no row is padded: attention is faster without one.

        A compiled model drops its mask only where all rows have one length, because it is compiled again without.
        Only what varies from batch to batch is marked as dynamic, so that it is compiled once: rows, and tokens
        unless all rows have one length. (`dynamic=True` would make every number dynamic, dropout's share too.)
        """
        compiled = self._compute.compile
        if not batch.filled or (compiled and not self._has_one_length):
            inputs = batch.inputs
        else:
            inputs = {name: one for name, one in batch.inputs.items() if name != "attention_mask"}
        for tensor in inputs.values() if compiled else ():
            for axis in range(1 if self._has_one_length else min(2, tensor.ndim)):
                torch._dynamo.maybe_mark_dynamic(tensor, axis)
        return inputs

    def _update(self, rate: float) -> None:
        self._scaler.unscale_(self._optimizer)
        if self.config.l1_penalty:
            self._add_l1_gradient()
        self._clip()
        set_rate(self._optimizer, rate)
        begin_momentum(self._optimizer)
        decay(self._optimizer)
        pull(self._optimizer, self._origins, self.config.pretrained_pull)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()

    def _clip(self) -> None:
        gradients = [one.grad for one in self._weights.values() if one.grad is not None]
        norm, most = get_total_norm(gradients), self.config.max_grad_norm
        # To know, the CPU would have to wait for a GPU; there, multiplying by 1 costs less.
        if self._device.type != "cpu" or norm > most:
            clip_grads_with_norm_(self._weights.values(), most, norm)

    def _add_l1_gradient(self) -> None:
        for parameter in self._weights.values():
            if parameter.grad is not None and has_decay(parameter):
                parameter.grad.add_(parameter.detach().sign(), alpha=self.config.l1_penalty)

    def take_into_average(self) -> None:
        """Add the weights as they are now to their average."""
        assert self._average is not None
        self._average.add()

    def forget_average(self) -> None:
        """Drop the average: the hyperparameters have changed, and it is to begin later."""
        if self._average is not None:
            self._average.forget()

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(self._compute.precision)
        if dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=dtype)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average of the weights into the model inside `with`, once there is one."""
        if self._average is None or not self._average.steps:
            yield
            return
        with self._average.applied():
            yield

    def predict(
        self, rows: Rows, should_pause: Callable[[], bool] = never, whole: bool = False
    ) -> Logits | None:
        """What the task keeps of the logits for `rows` of the data, or `whole` ones; None if `should_pause` said yes.

        For Regression they are in the unit of the targets.
        """
        return self._in_parts(lambda: self._predict(rows, should_pause, whole), _EVALUATION_BATCH)

    def _predict(self, rows: Rows, should_pause: Callable[[], bool], whole: bool) -> Logits | None:
        lengths = self._data.lengths(rows, self.config.max_length)
        size = max(1, _EVALUATION_BATCH // self.split)
        places = evaluation_batches(np.arange(len(rows)), lengths, size)
        outputs, batches = [], []
        with torch.inference_mode(), self._autocast():
            if not self._batch.prepare(rows, should_pause, self.progress):
                return None
            for at in places:
                for part in self._batch.together(rows[at]):
                    if should_pause():
                        return None
                    batch = self._batch(part)
                    found = self._forward(**self._inputs(batch)).logits.float()
                    found = batch.labelled(found)
                    outputs.append(found if whole else self._task.kept(found, batch.labels))
                    batches.append(at[np.isin(rows[at], part)])
            values, order = torch.cat(outputs).cpu().numpy(), np.concatenate(batches)
        logits = self._task.arranged(values, order, self._data.labels[rows], whole)
        return self._targets.restored(logits) if self._task.standardised else logits

    @property
    def loss_unit(self) -> float:
        """Factor for the losses of `step`, which for Regression are those of standardised targets."""
        return self._targets.deviation**2

    @contextmanager
    def finished(self) -> Iterator[Any]:
        """The whole model inside `with`, ready for its users: it predicts in the unit of the targets."""
        model = merged(self.whole_model)
        if self._targets == TargetScale():
            yield model
            return
        with self._targets.folded_into(model, self._output_name):
            yield model

    def save(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Write everything that `restore` needs, and `state`."""
        tensors: dict[str, Any] = {
            "random": self.random.states,
            "scaler": self._scaler.state_dict(),
            "split": self.split,
        }
        if self._average is not None:
            tensors["average"] = self._average.state()
        scale = [self._targets.mean, self._targets.deviation]
        state = {**state, "all_words": self._has_all_words, "targets": scale}
        checkpoint.write(self._weights, self._optimizer, tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore what `save` wrote, in a learner of the same configuration."""
        state = checkpoint.state()
        self._targets = TargetScale(
            *state.get("targets", ())
        )  # older checkpoints learned in that unit itself
        with self._memory_watched():
            if state.get("all_words", True) and not self._has_all_words:
                self._take_all_words()
                self._optimizer = build_optimizer(self._weights, self.config, self._layers)
            tensors = checkpoint.restore(self._weights, self._optimizer)
            if self._average is not None:
                self._average.restore(tensors["average"], self._device)
        self.random.states = tensors["random"]
        if tensors["scaler"]:
            self._scaler.load_state_dict(tensors["scaler"])
        self.split = tensors["split"]

    @contextmanager
    def _memory_watched(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            short = isinstance(error, torch.OutOfMemoryError | MemoryError)
            if short or _MEMORY_SHORT.search(str(error)):
                what = f"batchSize {self.config.batch_size}, maxLength {self.config.max_length}"
                raise TrialFailure(
                    "OutOfMemory", f"{self._device} has too little memory for {what}"
                ) from error
            raise
