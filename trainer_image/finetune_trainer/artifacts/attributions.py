"""How much each token of a row contributes to the model's output: integrated gradients.

Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017. The path leads from the row with
padding in place of its text, but with its special tokens, to the row itself; along it the embeddings of its
tokens change, their positions do not. The attributions of a row add up to its output minus the output at the
start of the path.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor

from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.tasks import task_of
from finetune_trainer.training.batches import Batcher

Label: TypeAlias = str | list[str] | float
"""A class, the labels of a row, or a number."""

_STEPS = 64
"""Points of the path at which gradients are taken."""

_TOKENS = 8192
"""Tokens in a batch of points: it takes as much memory as a training batch of 64 rows of 128 tokens."""


@dataclass(frozen=True)
class OutputAttribution:
    """How much each token of a row contributes to one output of the model."""

    output: str
    """The class, the label, or the label column of Regression."""

    value: float
    """The output for the row: a logit, or the number of Regression in the unit of its column; the reference and
    the attributions have the same unit."""

    reference: float
    """The output for the row without its text."""

    probability: float | None
    """None for Regression."""

    attributions: list[float]
    """One per token; those of special tokens are zero."""

    delta: float
    """Sum of the attributions minus what they should add up to (`value - reference`): the error of the integral."""


@dataclass(frozen=True)
class RowAttribution:
    """What the model predicts for a test row, and why."""

    row: int
    """Its position among the test rows, from 0."""

    label: Label
    prediction: Label
    tokens: list[str]
    """As the tokenizer names them, including special tokens."""

    outputs: list[OutputAttribution]
    """For the predicted class (SingleLabel), each predicted label or, if there is none, the most probable one
    (MultiLabel), or the number (Regression)."""


class Attributor:
    """Attributes what a model predicts to the tokens of rows."""

    def __init__(
        self,
        model: Any,
        data: PreparedData,
        max_length: int,
        thresholds: NDArray[np.float64] | None,
        device: str = "cpu",
    ) -> None:
        """`model` returns `logits`; `thresholds` (outputs,) are those of MultiLabel."""
        self._model = model.to(device).eval()
        self._embed: Callable[[Tensor], Tensor] = model.base_model.get_input_embeddings()
        self._data = data
        self._max_length = max_length
        self._thresholds = thresholds
        self._batch = Batcher(data, max_length, torch.device(device))
        self._tokenizer = data.model.tokenizer()

    def __call__(self, number: int) -> RowAttribution:
        """Attribute test row `number`."""
        row = self._data.test[number : number + 1]
        inputs = self._batch(row).inputs
        ids = inputs.pop("input_ids")
        length = int(self._data.lengths(row, self._max_length)[0])
        with torch.no_grad():
            ends = self._embed(torch.cat([self._without_text(row[0], ids), ids]))
            reference, logits = self._logits(ends, inputs).double().cpu().numpy()
        predicted, outputs, shares = self._predicted(logits.astype(np.float32)[None])
        attributed = []
        for output in outputs:
            values = self._integrate(ends, inputs, output)[:length]
            change = float(logits[output] - reference[output])
            attributed.append(
                OutputAttribution(
                    output=self._data.label_names[output],
                    value=float(logits[output]),
                    reference=float(reference[output]),
                    probability=None if shares is None else float(shares[output]),
                    attributions=values.tolist(),
                    delta=float(values.sum()) - change,
                )
            )
        tokens = self._tokenizer.convert_ids_to_tokens(ids[0, :length].tolist())
        label = self._named(self._data.labels[row[0]])
        return RowAttribution(number, label, self._named(predicted), tokens, attributed)

    def _logits(self, embedded: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The logits (points, outputs) of embedded tokens (points, tokens, width) of one row's `inputs`."""
        each = {name: tensor.expand(len(embedded), -1) for name, tensor in inputs.items()}
        logits: Tensor = self._model(inputs_embeds=embedded, **each).logits
        return logits

    def _without_text(self, row: np.int64, ids: Tensor) -> Tensor:
        """`ids` (1, tokens) of `row` with padding in place of its text."""
        kept = self._data.kept_tokens(np.array([row]), self._max_length)
        frame = self._data.frame
        blank = [np.full(int(count[0]), frame.pad, dtype=np.int32) for count in kept]
        tokens = np.concatenate([piece for piece, _ in frame.pieces(blank)])
        padded = torch.full_like(ids, frame.pad)
        padded[0, : len(tokens)] = torch.from_numpy(tokens)
        return padded

    def _integrate(
        self, ends: Tensor, inputs: dict[str, Tensor], output: int
    ) -> NDArray[np.float64]:
        """The attribution (tokens,) of `output` along the path between two embedded rows."""
        points = max(1, min(_STEPS, _TOKENS // ends.shape[1]))
        gradients = IntegratedGradients(lambda embedded: self._logits(embedded, inputs))
        found = gradients.attribute(
            ends[1:],
            baselines=ends[:1],
            target=output,
            n_steps=_STEPS,
            internal_batch_size=points,
        )
        values: NDArray[np.float64] = found.sum(dim=-1)[0].double().cpu().numpy()
        return values

    def _predicted(
        self, logits: NDArray[np.float32]
    ) -> tuple[Any, list[int], NDArray[np.float64] | None]:
        """The prediction of `logits` (1, outputs) as labels are encoded; the outputs to attribute; probabilities."""
        task = task_of(self._data.task)
        predicted = task.predictions(logits, self._thresholds)[0]
        return predicted, task.explained(logits, predicted), task.probabilities_of(logits)

    def _named(self, label: Any) -> Label:
        """An encoded label in words."""
        return task_of(self._data.task).named(label, self._data.label_names)
