"""Regression does not depend on the unit of its targets, from the first step to the exported model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
import transformers

from finetune_api.cluster import Compute
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.artifacts.exported import load_exported
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.training import Pretrained, TrialRun
from finetune_trainer.training.batches import Batcher
from finetune_trainer.training.targets import TargetScale
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import assert_same, small, train, weights

pytestmark = pytest.mark.usefixtures("one_thread")

OBJECTIVE = Objective(metric="rmse", additional_metrics=["r2", "mae", "loss"])
CONFIG = Hyperparameters(epochs=2, batch_size=8, max_length=16, learning_rate=3e-4)
Start: TypeAlias = Callable[..., TrialRun]


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec, shallow: Path, examples: Path) -> PreparedData:
    dataset = {"files": {"train": str(examples / "data" / "arity.csv")}, "labelColumn": "arity"}
    asked: dict[str, Any] = {"dataset": dataset, "objective": {"metric": "rmse"}}
    spec = make_spec(task="Regression", model={"name": str(shallow)}, **asked)
    return small(prepare(spec, Path("/")), 64, 32)


@pytest.fixture(scope="module")
def pretrained(data: PreparedData) -> Pretrained:
    return Pretrained.load(data.model, data.task, data.label_names)


@pytest.fixture(scope="module")
def start(data: PreparedData, pretrained: Pretrained) -> Start:
    def start(
        unit: float = 1.0, zero: float = 0.0, precision: Any = "FP32", **changes: Any
    ) -> TrialRun:
        """A run on the same targets, which are written as multiples of another unit from another zero."""
        labels = (data.labels.astype(np.float64) * unit + zero).astype(np.float32)
        config, compute = CONFIG.model_copy(update=changes), Compute(precision=precision)
        rows = replace(data, labels=labels)
        return TrialRun(pretrained, rows, config, 5, OBJECTIVE, compute=compute)

    return start


@pytest.mark.parametrize(("unit", "zero"), [(1000.0, 0.0), (1e-3, 0.5), (1e20, 1e21)])
def test_another_unit_changes_figures_by_the_unit_alone(
    unit: float, zero: float, start: Start, data: PreparedData
) -> None:
    one, other = start(), start(unit, zero)
    for first, second in zip(train(one), train(other), strict=True):
        for name, power in (("rmse", 1), ("mae", 1), ("loss", 2), ("r2", 0)):
            expected = first.metrics[name] * abs(unit) ** power
            assert second.metrics[name] == pytest.approx(expected, rel=2e-3, abs=1e-3 * (not power))
        assert second.train_loss == pytest.approx(first.train_loss * unit**2, rel=1e-3)
    predicted = one.predict(data.test).astype(np.float64) * unit + zero
    assert other.predict(data.test) == pytest.approx(predicted, rel=1e-3)


SHAPES: dict[str, dict[str, Any]] = {
    "whole": {},
    "adapters": {"lora_rank": 4},
    "head over what is computed once": {"pooling": "Mean", "freeze": "Encoder"},
    "deeper head": {"pooling": "Cls", "head_layers": 1},
    "average": {"averaging_start": 0.5},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exported_model_answers_in_the_unit_of_the_targets(
    shape: str, start: Start, data: PreparedData, tmp_path: Path
) -> None:
    run = start(1000.0, 50_000.0, **SHAPES[shape])
    train(run)
    expected = run.predict(data.test)
    run.export(tmp_path)
    model = load_exported(tmp_path)
    batch = Batcher(data, 16, torch.device("cpu"))(data.test)
    with torch.inference_mode():
        found = model(**batch.inputs).logits.numpy()
    assert found == pytest.approx(expected, rel=1e-5)
    assert np.ptp(expected) > 0.1
    assert run.predict(data.test) == pytest.approx(expected), "the run goes on as it was"


def test_the_model_that_transformers_loads_is_meant_for_numbers(
    start: Start, tmp_path: Path
) -> None:
    run = start()
    train(run)
    run.export(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.problem_type, config.num_labels) == ("regression", 1)


def test_a_checkpoint_goes_on_with_the_scale_it_was_trained_by(
    start: Start, data: PreparedData, pretrained: Pretrained, tmp_path: Path
) -> None:
    whole, run = start(1000.0), start(1000.0)
    train(whole)
    run.train_to(1)
    run.save(tmp_path / "saved")
    fewer = replace(run.data, train=run.data.train[:16])  # another mean
    assert TargetScale.of(fewer.labels[fewer.train]) != TargetScale.of(
        run.data.labels[run.data.train]
    )
    again = TrialRun.resume(tmp_path / "saved", pretrained, run.data, OBJECTIVE)
    again.train_to(2)
    assert_same(weights(again), weights(whole))
    other = TrialRun.resume(tmp_path / "saved", pretrained, fewer, OBJECTIVE)
    assert other.predict(data.test) == pytest.approx(run.predict(data.test))


def test_a_checkpoint_from_before_goes_on_in_the_unit_itself(
    start: Start, data: PreparedData, pretrained: Pretrained, tmp_path: Path
) -> None:
    run = start(1000.0)
    run.save(tmp_path)
    path = tmp_path / "state.json"
    state = json.loads(path.read_text())
    del state["targets"]
    path.write_text(json.dumps(state))
    again = TrialRun.resume(tmp_path, pretrained, run.data, OBJECTIVE)
    scale = TargetScale.of(run.data.labels[run.data.train])
    assert scale.restored(again.predict(data.test)) == pytest.approx(run.predict(data.test))


def test_numbers_far_from_zero_lose_nothing_to_bf16(start: Start) -> None:
    exact, rounded = (train(start(1.0, 2000.0, p))[-1].metrics["r2"] for p in ("FP32", "BF16"))
    assert rounded == pytest.approx(exact, abs=0.05)
