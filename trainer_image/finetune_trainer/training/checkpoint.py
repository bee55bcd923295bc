"""A checkpoint: everything a trial needs to go on as if it had never stopped."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from finetune_trainer.errors import TrialFailure

_MODEL = "model.safetensors"
_TENSORS = "training.pt"
_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """The folder of a checkpoint. `state.json` is written last: without it there is no checkpoint."""

    folder: Path

    def write(
        self,
        weights: dict[str, nn.Parameter],
        optimizer: Optimizer,
        tensors: dict[str, Any],
        state: dict[str, Any],
    ) -> None:
        """Write a trial, in place of what is in the folder: `weights` are those that training changes,
        `tensors` all others except the optimizer's."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _STATE).unlink(missing_ok=True)
        save_file({name: one.detach() for name, one in weights.items()}, self.folder / _MODEL)
        with (self.folder / _TENSORS).open(
            "wb"
        ) as file:  # given a name instead of a file, torch would not say why it fails
            torch.save({"optimizer": optimizer.state_dict(), **tensors}, file)
        (self.folder / _STATE).write_text(json.dumps(state, indent=1))

    def state(self) -> dict[str, Any]:
        """What `write` was given as `state`. Raises FileNotFoundError if there is no checkpoint."""
        state: dict[str, Any] = json.loads((self.folder / _STATE).read_text())
        return state

    def restore(self, weights: dict[str, nn.Parameter], optimizer: Optimizer) -> dict[str, Any]:
        """Put weights and optimizer state back; returns the other tensors. Unpickles nothing but tensors.

        Raises TrialFailure if the checkpoint is of a model with other weights.
        """
        saved = load_file(self.folder / _MODEL)
        if saved.keys() != weights.keys():
            other = sorted(saved.keys() ^ weights.keys())
            raise TrialFailure(
                "UserError", f"the model has changed since the checkpoint was saved: {other[0]}, …"
            )
        with torch.no_grad():
            for name, parameter in weights.items():
                if saved[name].shape != parameter.shape:
                    raise TrialFailure(
                        "UserError",
                        f"the number of labels, or the model, has changed since the checkpoint was saved: "
                        f"{name} was {tuple(saved[name].shape)} and is {tuple(parameter.shape)}",
                    )
                parameter.copy_(saved[name])
        tensors: dict[str, Any] = torch.load(
            self.folder / _TENSORS, map_location="cpu", weights_only=True
        )
        optimizer.load_state_dict(tensors.pop("optimizer"))
        return tensors
