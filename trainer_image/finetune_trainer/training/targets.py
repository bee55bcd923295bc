"""The unit of Regression's targets. Training does not see it: the model learns standardised targets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class TargetScale:
    """The mean and the standard deviation, in the targets' unit, of the rows that a training learns from."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, targets: NDArray[Any]) -> "TargetScale":
        """The scale of `targets` (rows,). If they are all the same, the deviation is 1."""
        exact = targets.astype(np.float64)
        return cls(float(exact.mean()), float(exact.std()) or 1.0)

    def standardised(self, targets: Tensor) -> Tensor:
        """`targets` (rows,) with mean 0 and standard deviation 1, in float32."""
        return ((targets.double() - self.mean) / self.deviation).float()

    def restored(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """A model's `outputs` in the targets' unit."""
        exact = outputs.astype(np.float64) * self.deviation + self.mean
        with np.errstate(over="ignore"):  # infinite outputs have diverged
            return exact.astype(np.float32)

    @contextmanager
    def folded_into(self, model: nn.Module, name: str) -> Iterator[None]:
        """Make `model` predict in the targets' unit inside `with`; `name` is that of its linear output layer."""
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        folded = nn.Linear(layer.in_features, layer.out_features, device=layer.weight.device)
        with torch.no_grad():
            folded.weight.copy_(layer.weight.double() * self.deviation)
            folded.bias.copy_(layer.bias.double() * self.deviation + self.mean)
        model.set_submodule(name, folded)
        try:
            yield
        finally:
            model.set_submodule(name, layer)
