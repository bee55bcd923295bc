"""Trials of a few rows, and how to look at them."""

from dataclasses import replace
from typing import Any

import torch

from finetune_trainer.data import PreparedData
from finetune_trainer.training import EpochResult, TrialRun


def small(data: PreparedData, rows: int, others: int) -> PreparedData:
    cut = replace(
        data, train=data.train[:rows], validation=data.validation[:others], test=data.test[:others]
    )
    return replace(cut, fingerprint=cut.digest())


def weights(run: TrialRun) -> dict[str, Any]:
    return dict(run.model.state_dict())


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def train(run: TrialRun) -> list[EpochResult]:
    results = []
    while not run.finished:
        result = run.train_to(9)
        assert result is not None
        results.append(result)
    return results


def outcome(results: list[EpochResult]) -> list[EpochResult]:
    return [replace(result, seconds=0.0) for result in results]
