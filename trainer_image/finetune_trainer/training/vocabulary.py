"""Training without the words that never occur: the rows of a study have a few thousand of the tens of thousands
in a pretrained vocabulary, and in a small model the embeddings of the others are half of all parameters.

A word that never occurs has no gradient. All that an optimizer does to its embedding is weight decay, which is
linear in the embedding and the same for all such words, so a single row of ones stands for all of them.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding

from finetune_api.hyperparameters import Hyperparameters
from finetune_trainer.data.prepared import PreparedData


def may_leave_out(config: Hyperparameters) -> bool:
    """Whether training by `config` reads nothing but the study's rows, and treats words that never occur
    in a way that one row can stand for."""
    # Adafactor scales a step by the norm of the whole matrix.
    is_linear = config.optimizer != "Adafactor" and not config.l1_penalty
    return config.augmentation == "None" and is_linear


class OccurringWords(nn.Module):
    """Replaces the word embeddings of a model, with only the words that its rows have."""

    def __init__(self, whole: nn.Embedding, name: str, occurring: Tensor) -> None:
        """`whole` is called `name` in its model; `occurring` are word ids, (words,), ascending."""
        super().__init__()
        self.name = name
        self.weight: nn.Parameter
        """The words' embeddings, and a last row, initially ones, for all others: (words + 1, width)."""

        start = whole.weight.detach()
        # Looking up row -1 raises on a CPU; on a GPU it makes the device unusable for the process.
        rows = torch.full((len(start),), -1, device=start.device)
        rows[occurring] = torch.arange(len(occurring), device=start.device)
        self.weight = nn.Parameter(torch.cat([start[occurring], torch.ones_like(start[:1])]))
        self._whole_pad = whole.padding_idx
        self._pad = None if whole.padding_idx is None else int(rows[whole.padding_idx])
        self._start: Tensor
        self._rows: Tensor
        self._occurring: Tensor
        for buffer, values in (("_start", start), ("_rows", rows), ("_occurring", occurring)):
            self.register_buffer(buffer, values, persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        """Embeddings (…, width) of word ids (…) that occur."""
        return embedding(self._rows[words], self.weight, self._pad)

    @torch.no_grad()
    def spread(self, rows: Tensor) -> Tensor:
        """Expand (words + 1, width) to (vocabulary, width): the weight, or what an optimizer keeps for it."""
        spread = self._start * rows[-1]
        spread[self._occurring] = rows[:-1]
        return spread

    def whole(self) -> nn.Embedding:
        """The word embeddings as training has changed them."""
        weight = self.spread(self.weight)
        return nn.Embedding(
            len(weight), weight.shape[1], padding_idx=self._whole_pad, _weight=weight
        )


def leave_out(
    model: Any, weights: dict[str, nn.Parameter], data: PreparedData
) -> OccurringWords | None:
    """Take the words that `data` lacks out of `model` and of `weights`, its trained weights by name.

    Returns None, with nothing changed, if word embeddings are not trained or also have another use.
    """
    size = getattr(model.config, "vocab_size", None)
    found = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) is nn.Embedding and module.num_embeddings == size
    ]
    if len(found) != 1 or f"{found[0][0]}.weight" not in weights:
        return None
    name, whole = found[0]
    users = [one for _, one in model.named_parameters(remove_duplicate=False)]
    if sum(one is whole.weight for one in users) > 1 or whole.max_norm is not None:
        return None
    occurring = torch.from_numpy(_occurring(data, whole)).to(whole.weight.device)
    words = OccurringWords(whole, name, occurring)
    model.set_submodule(name, words)
    weights[f"{name}.weight"] = words.weight
    return words


def _occurring(data: PreparedData, whole: nn.Embedding) -> NDArray[np.int64]:
    """Ids of the words that rows of `data` have, or get in their batches, ascending."""
    frame, padding = data.frame, whole.padding_idx
    occurs = np.zeros(whole.num_embeddings, dtype=np.bool_)
    occurs[[*frame.before, *frame.between, *frame.after, frame.pad]] = True
    if padding is not None:  # some models pad to a length that suits them
        occurs[padding] = True
    for column in data.columns:
        occurs[column.ids[column.ids < whole.num_embeddings]] = True
    return np.flatnonzero(occurs)
