"""What is changed only while a step computes its gradients: weights by mixout, words by adversarial training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


@contextmanager
def mixout(origins: Mapping[nn.Parameter, Tensor], share: float) -> Iterator[None]:
    """Inside `with`, each weight that is trained has, with probability `share`, its value in `origins`.

    The others are scaled so that the expectation is the weight itself; gradients that were computed inside become
    those of the weights. Lee et al., "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language
    Models", 2020. The masks are drawn by the global generator of each weight's device.

    Args:
        origins: weights, and the values with which they are mixed, of the same shapes.
        share: 0 ≤ share < 1.
    """
    mixed = [weight for weight in origins if share and weight.requires_grad]
    usual = [weight.detach().clone() for weight in mixed]
    # What each element's gradient is multiplied by: 0 where it is replaced.
    kept = [(torch.rand_like(weight) >= share).to(weight.dtype) / (1 - share) for weight in mixed]
    try:
        for weight, factor in zip(mixed, kept, strict=True):
            origin = origins[weight]
            weight.detach().sub_(origin).mul_(factor).add_(origin)
        yield
        for weight, factor in zip(mixed, kept, strict=True):
            if weight.grad is not None:
                weight.grad.mul_(factor)
    finally:
        for weight, before in zip(mixed, usual, strict=True):
            weight.detach().copy_(before)


class Nudge:
    """Moves the word embeddings that a model computes, while it is told to.

    `listen` makes it a forward hook of the module that computes them: once, before the model is compiled.
    """

    def __init__(self) -> None:
        self._step: Tensor | None = None
        self._width = 0

    def listen(self, model: Any) -> None:
        """Move the embeddings of `model` from now on."""
        words = model.base_model.get_input_embeddings()
        self._width = words.weight.shape[1]
        words.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """What `module` hands on in place of its `output`: embeddings (rows, tokens, width), or a tuple of them and more."""
        if self._step is None:
            return output
        if isinstance(output, tuple):  # I-BERT has the scale of its integers beside them
            return (self._moved(output[0], self._step), *output[1:])
        return self._moved(output, self._step)

    @staticmethod
    def _moved(words: Tensor, step: Tensor) -> Tensor:
        padding = words.shape[1] - step.shape[1]  # some models pad to a length that suits them
        return words + (pad(step, (0, 0, 0, padding)) if padding else step)

    def no_step(self, ids: Tensor) -> Tensor:
        """A step of length zero for rows of word ids (rows, tokens), whose gradient is that of their embeddings."""
        return torch.zeros(*ids.shape, self._width, device=ids.device, requires_grad=True)

    @contextmanager
    def moving(self, step: Tensor) -> Iterator[None]:
        """Inside `with`, embeddings are moved by `step`: (rows, tokens, width)."""
        self._step = step
        try:
            yield
        finally:
            self._step = None


def steepest(slope: Tensor, length: float) -> Tensor:
    """For each row the step of this length along its gradient `slope`: (rows, tokens, width).

    Miyato et al., "Adversarial Training Methods for Semi-Supervised Text Classification", 2017.
    """
    norms = slope.flatten(1).norm(dim=1).clamp_min(torch.finfo(slope.dtype).tiny)
    step: Tensor = slope * (length / norms)[:, None, None]
    return step
