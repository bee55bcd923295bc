"""Training on a GPU: as on a CPU, whatever its precision and memory. Skipped where there is no GPU.

It needs no Ray, and of the examples only what `make demo` prepares.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.trainer.rows import EXAMPLES, study_of

from finetune_api.cluster import Compute
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.training import Pretrained, TrialRun, features
from tests.needs import ToolMissing, not_run
from tests.trainer.small_trials import small, train

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    if not torch.cuda.is_available():
        not_run(ToolMissing("a GPU", "torch finds none"))


OBJECTIVE = Objective(metric="loss")
CONFIG = Hyperparameters(epochs=2, batch_size=8, max_length=32, learning_rate=1e-3)
WITHOUT_CHANCE = CONFIG.model_copy(
    update={
        "optimizer": "SGD",  # Adam would make steps of what is only rounding
        "learning_rate": 0.05,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "classifier_dropout": 0.0,
    }
)
TOLERANCES = {"FP32": 1e-3, "TF32": 1e-2, "BF16": 3e-2, "FP16": 1e-2}
"""Of losses, relative."""


@pytest.fixture(scope="module")
def data() -> PreparedData:
    file = str(EXAMPLES / "data" / "library.csv")
    dataset = {"files": {"train": file}, "textColumns": ["text"], "labelColumn": "library"}
    return small(prepare(study_of(dataset).spec, Path("/")), 256, 64)


@pytest.fixture
def pretrained(data: PreparedData) -> Pretrained:
    return Pretrained.load(data.model, data.task, data.label_names)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Room for what a step of a few rows needs beside the model."""
    torch.cuda.empty_cache()
    most = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (2 << 30)) / most)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def losses(run: TrialRun) -> list[float]:
    """Of training and validation, by epoch."""
    return [loss for result in train(run) for loss in (result.train_loss, result.metrics["loss"])]


def on_gpu(
    pretrained: Pretrained, data: PreparedData, config: Hyperparameters, **compute: Any
) -> TrialRun:
    return TrialRun(pretrained, data, config, 5, OBJECTIVE, "cuda", Compute(**compute))


@pytest.mark.parametrize("precision", TOLERANCES)
def test_losses_are_those_of_a_cpu(
    precision: str, data: PreparedData, pretrained: Pretrained
) -> None:
    expected = losses(TrialRun(pretrained, data, WITHOUT_CHANCE, 5, OBJECTIVE))
    found = losses(on_gpu(pretrained, data, WITHOUT_CHANCE, precision=precision))
    assert found == pytest.approx(expected, rel=TOLERANCES[precision])
    assert found[2] < found[0]


@pytest.mark.parametrize("compute", [{"compile": True}, {"gradient_checkpointing": True}], ids=str)
def test_what_saves_time_or_memory_changes_no_loss(
    compute: dict[str, Any], data: PreparedData, pretrained: Pretrained
) -> None:
    expected = losses(on_gpu(pretrained, data, WITHOUT_CHANCE))
    found = losses(on_gpu(pretrained, data, WITHOUT_CHANCE, **compute))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_checkpoint_goes_on_with_the_same_random_numbers(
    precision: Any, data: PreparedData, pretrained: Pretrained, tmp_path: Path
) -> None:
    unbroken = losses(on_gpu(pretrained, data, CONFIG, precision=precision))
    first = on_gpu(pretrained, data, CONFIG, precision=precision)
    first.train_to(0.5)
    first.save(tmp_path)
    compute = Compute(precision=precision)
    resumed = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE, "cuda", compute)
    assert losses(resumed) == pytest.approx(unbroken, rel=TOLERANCES[precision])


@pytest.mark.parametrize(
    "frozen", [{"freeze": "Encoder", "pooling": "Mean"}, {"freeze": "Layers", "frozen_layers": 4}]
)
def test_what_is_frozen_is_kept_in_its_memory_and_changes_no_loss(
    frozen: dict[str, Any],
    data: PreparedData,
    pretrained: Pretrained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = WITHOUT_CHANCE.model_copy(update=frozen)
    found = losses(on_gpu(pretrained, data, config))
    (entry,) = pretrained.features.entries.values()
    assert entry.values.device.type == "cuda"
    pretrained.features.entries.clear()
    monkeypatch.setattr(features, "ROOM", 0)
    assert found == pytest.approx(losses(on_gpu(pretrained, data, config)), rel=1e-3)


def test_features_that_would_take_most_of_its_memory_stay_outside(
    data: PreparedData, pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WITHOUT_CHANCE.model_copy(update={"freeze": "Layers", "frozen_layers": 4})
    expected = losses(on_gpu(pretrained, data, config))
    pretrained.features.entries.clear()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 20, 1 << 30))
    found = losses(on_gpu(pretrained, data, config))
    (entry,) = pretrained.features.entries.values()
    assert entry.values.device.type == "cpu"
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("little_memory")
def test_a_batch_that_its_memory_does_not_hold_is_split(
    data: PreparedData, pretrained: Pretrained
) -> None:
    large = {"batch_size": 256, "max_length": 128, "epochs": 1}
    run = on_gpu(pretrained, data, WITHOUT_CHANCE.model_copy(update=large))
    (result,) = train(run)
    assert result.split > 1
    expected = {**large, "batch_size": 16, "gradient_accumulation": 16}
    whole = on_gpu(pretrained, data, WITHOUT_CHANCE.model_copy(update=expected))
    assert result.train_loss == pytest.approx(train(whole)[0].train_loss, rel=1e-3)
    np.testing.assert_allclose(run.predict(data.test), whole.predict(data.test), atol=1e-2)
