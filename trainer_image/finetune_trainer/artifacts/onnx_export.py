"""Exports the final model as ONNX, and compares it with PyTorch on real rows."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors
from torch import Tensor, nn

from finetune_trainer.artifacts.exported import LoadedModel
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.data.tokens import Tokens
from finetune_trainer.errors import TrialFailure
from finetune_trainer.tasks.ragged import ends
from finetune_trainer.training.batches import Batcher, Rows

TOLERANCE = 1e-4
"""Largest difference of an output that can come from rounding alone, relative to the largest output above 1."""

_CHECKED = 8
"""Rows of the largest batch in the check."""


_REFUSALS = (
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.InvalidGraph,
    runtime_errors.NotImplemented,
    runtime_errors.RuntimeException,
)
"""What ONNX Runtime raises for a model that it cannot run; they have no base class of their own."""


class _Logits(nn.Module):
    """A classifier whose inputs are tensors in a fixed order, and whose output is its logits."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        """The logits (rows, outputs), or (rows, tokens, outputs) of tagged words, of inputs (rows, tokens)."""
        logits: Tensor = self.model(**dict(zip(self._names, inputs, strict=True))).logits
        return logits


class OnnxRefused(Exception):
    """A model has no ONNX that says the same; the text says which, after "a model" or "this model"."""


def export_onnx(model: nn.Module, data: PreparedData, max_length: int, path: Path) -> float:
    """Write `model` as `write_onnx`, checked on test rows.

    Raises TrialFailure if it cannot be exported, or if its outputs for test rows are not those of `model`.
    """
    batcher = Batcher(data, max_length, torch.device("cpu"))
    batches = [batcher(rows).inputs for rows in _batches(data, max_length)]
    try:
        return write_onnx(model, batches, path)
    except OnnxRefused as error:
        raise TrialFailure(
            "UserError", f"spec.artifacts.onnx: must be false for {error}"
        ) from error


def write_onnx(model: nn.Module, batches: Sequence[dict[str, Tensor]], path: Path) -> float:
    """Write `model`, which is on the CPU in float32, to `path`; returns the largest difference of an output,
    relative to the largest output if that is above 1: rounding errors grow with it.

    The ONNX model takes any number of rows of any length. It is compared on `batches`, its inputs by name, of
    different sizes and lengths; the last must have two rows or more. Raises OnnxRefused if it cannot be exported, or if
    its outputs are not those of `model`.
    """
    wrapped = _Logits(model, list(batches[-1])).eval()
    _write(wrapped, batches[-1], path)
    try:
        session = _session(path)
        worst = _difference(wrapped, session, batches)
    except _REFUSALS as error:
        raise OnnxRefused(f"a model that ONNX Runtime cannot run (got {error})") from error
    if not worst <= TOLERANCE:  # also if it is NaN
        allowed = f"at most {TOLERANCE:g} is allowed"
        raise OnnxRefused(f"this model, whose outputs differ by {worst:.2g} in ONNX ({allowed})")
    return worst


def example_batches(model: LoadedModel, columns: int) -> list[dict[str, Tensor]]:
    """Inputs of different sizes and lengths for a model that reads so many texts a row: tokens drawn at random."""
    frame, generator = model.frame(columns), np.random.default_rng(0)
    room = (model.limit - frame.special) // columns
    lengths = np.unique(np.linspace(1, room, _CHECKED).astype(np.int64))
    usual = sorted({*model.tokenizer.get_vocab().values()} - {*model.tokenizer.all_special_ids})
    tokens = [
        Tokens(generator.choice(usual, lengths.sum()).astype(np.int32), ends(lengths))
        for _ in range(columns)
    ]
    rows = np.arange(len(lengths), dtype=np.int64)
    wide = np.resize(rows, max(2, len(rows)))
    return [model.inputs(tokens, some, frame) for some in (rows[:1], rows[-1:], wide[:3], wide)]


def _batches(data: PreparedData, max_length: int) -> list[Rows]:
    """Test rows in batches of different sizes and lengths; the last has at least two rows."""
    lengths = data.lengths(data.test, max_length)
    ordered = data.test[np.argsort(lengths, kind="stable")]
    spread = np.linspace(0, len(ordered) - 1, max(2, min(_CHECKED, len(ordered)))).astype(int)
    return [ordered[:1], ordered[-1:], ordered[spread[:3]], ordered[spread]]


def _write(model: _Logits, inputs: dict[str, Tensor], path: Path) -> None:
    axes = {0: "rows", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the internals of the exporter
        try:
            torch.onnx.export(
                model,
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes=(tuple(axes for _ in inputs),),
                external_data=False,  # except for weights of more than 2 GiB, which no single file holds
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise OnnxRefused(f"a model that torch cannot export (got {error})") from error


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    # By default it would bind threads to cores, which a container may not have.
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _difference(model: _Logits, session: Any, batches: Sequence[dict[str, Tensor]]) -> float:
    """The largest difference of an output for `batches`, as `export_onnx` returns it."""
    with torch.inference_mode():
        expected = np.concatenate([model(*inputs.values()).numpy().ravel() for inputs in batches])
    found = np.concatenate([_run(session, inputs).ravel() for inputs in batches])
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def _run(session: Any, inputs: dict[str, Tensor]) -> NDArray[np.float32]:
    """The output of the exported model for `inputs`."""
    given = {name: tensor.numpy() for name, tensor in inputs.items()}
    outputs: NDArray[np.float32] = session.run(None, given)[0]
    return outputs
