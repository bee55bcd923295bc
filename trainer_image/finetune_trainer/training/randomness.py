"""The random state of one trial, separate from all others in the process."""

from types import TracebackType

import torch
from torch import Tensor


class Randomness:
    """Torch's random numbers for one trial, on the CPU and its device; active inside `with`."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._states: dict[str, Tensor] = {}
        self._outside: dict[str, Tensor] = self._current()
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        self._states = self._current()
        self._set(self._outside)

    def __enter__(self) -> "Randomness":
        self._outside = self._current()
        self._set(self._states)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._states = self._current()
        self._set(self._outside)

    def snapshot(self) -> dict[str, Tensor]:
        """The states now active, for `rewind`."""
        return self._current()

    def rewind(self, states: dict[str, Tensor]) -> None:
        """Activate `states`."""
        self._set(states)

    @property
    def states(self) -> dict[str, Tensor]:
        """The trial's states while inactive, for a checkpoint."""
        return self._states

    @states.setter
    def states(self, states: dict[str, Tensor]) -> None:
        self._states = states

    def _current(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return states

    def _set(self, states: dict[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self._device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self._device)
