"""The outputs of the frozen part of an encoder for each row: computed once per process, for all trials, folds and epochs.

With a wholly frozen encoder and pooling Cls or Mean, the features are one vector per row, and only the head
is built and trained. With a partly frozen one (or a wholly frozen one under its architecture's own head) they
are the hidden states of each row's tokens, and the layers above are trained on them. Frozen layers have no
dropout, so both equal what the whole model would have computed, to floating-point tolerance.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.tasks.ragged import ends
from finetune_trainer.training.batches import Batch, Batcher, Rows, evaluation_batches
from finetune_trainer.training.layers import Layers
from finetune_trainer.training.memory import available
from finetune_trainer.training.pooling import PooledClassifier

ROOM = 4 << 30
"""The most bytes that the features of a pretrained model, with the copies of it that compute them, may take in
a process; what needs more is computed anew in every pass."""

_SHARE = 4
"""Features take at most one part in so many of the free memory: other slots and the training need some."""

_ENCODING_BATCH = 64
_CUT_OPEN = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "distilbert",
    "modernbert",
)
"""Model types that consist of embeddings followed by one list of layers, with nothing between."""

Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]


class HeadOnly(nn.Module):
    """The head of a `PooledClassifier` by itself; its tensors have the same names."""

    def __init__(self, head: nn.Sequential) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> SequenceClassifierOutput:
        """The logits (rows, outputs) of features (rows, width)."""
        return SequenceClassifierOutput(logits=self.head(features))


@dataclass
class RowFeatures:
    """One array of features for all rows of a study, filled as rows are requested.

    Row `i` has `values[offsets[i]:offsets[i + 1]]` (tokens, width).
    """

    model: Any
    """The pretrained model that computes them, in evaluation mode, on its device."""

    layers: Layers
    values: Tensor
    """On the device if it has enough memory: a GPU waits long for what a CPU gathers."""

    offsets: NDArray[np.int64]
    compute: Callable[[Any, Batch], Tensor]
    """Features (rows, tokens or 1, width) of a batch."""

    known: NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        """Memory in use: the array and the model."""
        weights = sum(one.numel() * one.element_size() for one in self.model.parameters())
        return int(self.values.nbytes + weights)

    def ensure(
        self,
        rows: Rows,
        batcher: Batcher,
        autocast: Autocast,
        should_pause: Callable[[], bool],
        progress: Callable[[str], None],
    ) -> bool:
        """Compute what is missing of `rows`; False if `should_pause` interrupted it. `progress` is told how far it is.

        Rows are always computed in the same batches, whoever asks first: a new process gets the same values.
        """
        if self.known[rows].all():
            return True
        every = np.arange(len(self.known))
        blocks = [
            part
            for block in evaluation_batches(every, batcher.lengths(every), _ENCODING_BATCH)
            for part in batcher.together(block)
        ]
        missing = np.zeros_like(self.known)
        missing[rows] = ~self.known[rows]
        wanted = [chosen for chosen in blocks if missing[chosen].any()]
        done, total = 0, sum(map(len, wanted))
        with torch.inference_mode(), autocast():
            for chosen in wanted:
                if should_pause():
                    return False
                progress(f"frozen layers: {done} of {total} rows")
                done += len(chosen)
                found = self.compute(self.model, batcher(chosen))
                at, inside = self._places(chosen, found.shape[1])
                to = self.values.device
                self.values[at[inside].to(to)] = found[inside.to(found.device)].to(
                    to, torch.float32
                )
                self.known[chosen] = True
        return True

    def of(self, rows: Rows, tokens: int) -> Tensor:
        """The features (rows, tokens, width) of computed rows; values beyond a row's end are arbitrary."""
        at, _ = self._places(rows, tokens)
        return self.values[at.to(self.values.device)]

    def _places(self, rows: Rows, tokens: int) -> tuple[Tensor, Tensor]:
        """Where in `values` the tokens of rows are, (rows, tokens), and which of them lie before the row's end."""
        at = self.offsets[rows][:, None] + np.arange(tokens)
        end = self.offsets[rows + 1][:, None]
        return torch.from_numpy(np.minimum(at, end - 1)), torch.from_numpy(at < end)


@dataclass
class FeatureStore:
    """The features of a process; the least recently used make room for new ones."""

    entries: "OrderedDict[Hashable, RowFeatures]" = field(default_factory=OrderedDict)

    def get(self, key: Hashable, size: int, make: Callable[[], RowFeatures]) -> RowFeatures | None:
        """The features of `key`, made if they are new; None if their `size` in bytes does not fit."""
        if key not in self.entries:
            room = min(ROOM, self._size() + available() // _SHARE)
            if size > room:
                return None
            while self.entries and size + self._size() > room:
                self.entries.popitem(last=False)
            self.entries[key] = make()
        self.entries.move_to_end(key)
        return self.entries[key]

    def _size(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())


class FeatureBatcher:
    """Makes batches of features instead of tokens."""

    def __init__(self, features: RowFeatures, batcher: Batcher, autocast: Autocast) -> None:
        self._features, self._batcher, self._autocast = features, batcher, autocast

    def __call__(self, rows: Rows) -> Batch:
        """The batch of `rows`, whose features are computed."""
        return self._batch(rows)

    def together(self, rows: Rows) -> list[Rows]:
        """Like `Batcher.together`, but one vector per row is never padded."""
        return [rows]

    def prepare(
        self, rows: Rows, should_pause: Callable[[], bool], progress: Callable[[str], None]
    ) -> bool:
        """Compute the features of all of `rows`; False if `should_pause` interrupted it."""
        return self._features.ensure(rows, self._batcher, self._autocast, should_pause, progress)

    def weight(self, rows: Rows) -> int:
        """Like `Batcher.weight`."""
        return self._batcher.weight(rows)

    def _batch(self, rows: Rows) -> Batch:
        features = self._batcher.place(self._features.of(rows, 1)[:, 0])
        return Batch({"features": features}, self._batcher.labels(rows))


class HiddenBatcher(FeatureBatcher):
    """Makes batches whose embeddings are the hidden states below the first layer that is trained."""

    def together(self, rows: Rows) -> list[Rows]:
        """Like `Batcher.together`."""
        return self._batcher.together(rows)

    def _batch(self, rows: Rows) -> Batch:
        batch = self._batcher(rows)
        mask = batch.inputs["attention_mask"]
        hidden = self._batcher.place(self._features.of(rows, mask.shape[1]))
        inputs = {"inputs_embeds": hidden, "attention_mask": mask}
        return replace(batch, inputs=inputs)


def pooled_features(model: PooledClassifier, layers: Layers, data: PreparedData) -> RowFeatures:
    """Room for one vector (width) per row: the input of the head of `model`."""

    def compute(model: PooledClassifier, batch: Batch) -> Tensor:
        hidden = model.encoder(**batch.inputs).last_hidden_state
        return model.pool(hidden, batch.inputs["attention_mask"]).unsqueeze(1)

    rows = len(data.labels)
    values = _room(rows, model)
    offsets = np.arange(rows + 1, dtype=np.int64)
    return RowFeatures(model, layers, values, offsets, compute, np.zeros(rows, dtype=np.bool_))


def hidden_features(
    model: Any, layers: Layers, frozen: int, data: PreparedData, max_length: int
) -> RowFeatures:
    """Room for each row's hidden states (tokens, width) above the lowest `frozen` layers."""

    def compute(model: Any, batch: Batch) -> Tensor:
        caught: list[Tensor] = []

        def catch(_: nn.Module, __: Any, output: Any) -> None:
            caught.append(output[0] if isinstance(output, tuple) else output)

        handle = layers.modules(model)[frozen - 1].register_forward_hook(catch)
        try:
            model(**batch.inputs)
        finally:
            handle.remove()
        return caught[0]

    rows = np.arange(len(data.labels))
    offsets = ends(data.lengths(rows, max_length))
    values = _room(int(offsets[-1]), model)
    return RowFeatures(model, layers, values, offsets, compute, np.zeros(len(rows), dtype=np.bool_))


def _room(vectors: int, model: Any) -> Tensor:
    """Room for so many vectors (width) of `model`, on its device if that leaves most of the memory free."""
    device, width = next(model.parameters()).device, int(model.config.hidden_size)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if vectors * width * 4 > free // 4:
            device = torch.device("cpu")
    return torch.empty((vectors, width), device=device)


def can_be_cut(model: Any) -> bool:
    """Whether `cut_open` supports the architecture of `model`."""
    own = getattr(model.base_model, "embeddings_project", None) is None
    return model.config.model_type in _CUT_OPEN and own


class _Given(nn.Module):
    """Replaces the embeddings: returns `inputs_embeds` as it is given."""

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """The hidden states among the arguments."""
        given = (*arguments, *named.values())
        return next(value for value in given if isinstance(value, Tensor) and value.ndim == 3)


class _Passed(nn.Module):
    """Replaces a layer that has been computed already."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """The hidden states as they are."""
        return hidden_states


def cut_open(model: Any, layers: Layers, frozen: int) -> dict[str, nn.Module]:
    """Take embeddings and the lowest `frozen` layers out of `model`; returns them by name, for `put_back`.

    From then on the model takes the hidden states above them as `inputs_embeds`.
    """
    stack = f"{layers.prefix}{layers.stack}"
    names = [f"{layers.prefix}embeddings", *(f"{stack}.{number}" for number in range(frozen))]
    taken = {name: model.get_submodule(name) for name in names}
    for name, module in taken.items():
        model.set_submodule(name, _Given() if name.endswith("embeddings") else _Passed(module))
    return taken


def put_back(model: Any, taken: dict[str, nn.Module]) -> None:
    """Undo `cut_open`."""
    for name, module in taken.items():
        model.set_submodule(name, module)
