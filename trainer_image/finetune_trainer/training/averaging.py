"""The running mean of a model's weights over the steps of training, equal or exponential."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Mean of the trained weights over the steps so far.

    With `decay` 1 all steps count alike: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
    Generalization", 2018, by step instead of by epoch, since fine-tuning has few epochs. Else it is exponential,
    and equal as long as there are fewer than 1 / (1 - decay) steps, so that it does not remember where it began.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float = 1.0) -> None:
        """`weights` are those that training changes."""
        self.steps = 0
        self._decay = decay
        self._weights = dict(weights)
        self._mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    @torch.no_grad()
    def add(self) -> None:
        """Take in the weights as they are now."""
        self.steps += 1
        for name, weight in self._weights.items():
            self._mean[name].lerp_(weight, max(1 / self.steps, 1 - self._decay))

    def forget(self) -> None:
        """Start again with an empty mean."""
        self.steps = 0
        for mean in self._mean.values():
            mean.zero_()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the mean into the model inside `with`; training goes on from the weights outside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            trained = weight.detach().clone()
            weight.copy_(self._mean[name])
            self._mean[name] = trained

    @torch.no_grad()
    def replace(self, name: str, weight: nn.Parameter, widen: Callable[[Tensor], Tensor]) -> None:
        """Put `weight` in place of the one called `name`; `widen` makes its mean from that of the old one."""
        self._weights[name] = weight
        self._mean[name] = widen(self._mean[name])

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as plain values and tensors."""
        return {"steps": self.steps, "mean": self._mean}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from what `state` returned."""
        self.steps = state["steps"]
        self._mean = {name: tensor.to(device) for name, tensor in state["mean"].items()}
