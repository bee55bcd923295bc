"""A trial on disk: everything it needs to go on as if it had never stopped."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim import Optimizer

_MODEL = "model.safetensors"
_TENSORS = "training.pt"
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """The folder of a checkpoint. `state.json` is written last: without it there is no checkpoint."""

    folder: Path

    def write(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        random: dict[str, Tensor],
        state: dict[str, Any],
    ) -> None:
        """Write a trial, in place of what is in the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _STATE).unlink(missing_ok=True)
        save_model(model, str(self.folder / _MODEL))
        tensors = {"optimizer": optimizer.state_dict(), "random": random}
        torch.save(tensors, self.folder / _TENSORS)
        (self.folder / _STATE).write_text(json.dumps(state, indent=1))

    def state(self) -> dict[str, Any]:
        """What `write` was given as `state`. Raises FileNotFoundError if there is no checkpoint."""
        state: dict[str, Any] = json.loads((self.folder / _STATE).read_text())
        return state

    def restore(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
        """Put weights and optimizer state back; the random states. Nothing is unpickled but tensors."""
        load_model(model, str(self.folder / _MODEL))
        tensors = torch.load(self.folder / _TENSORS, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(tensors["optimizer"])
        random: dict[str, Tensor] = tensors["random"]
        return random
