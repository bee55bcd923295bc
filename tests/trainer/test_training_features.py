"""Frozen parts are computed once: with the same outcome as if they were not, and without being computed again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.training import Pretrained, TrialRun, features
from finetune_trainer.training.features import can_be_cut, cut_open, put_back
from finetune_trainer.training.layers import Layers
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import outcome, small, train
from tests.trainer.test_training_models import NO_DROPOUT, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

OBJECTIVE = Objective(metric="loss", additional_metrics=["accuracy"])
CONFIG = Hyperparameters(epochs=2, batch_size=4, max_length=16, learning_rate=3e-3)

Start = Callable[..., TrialRun]


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec, shallow: Path) -> PreparedData:
    return small(prepare(make_spec(model={"name": str(shallow)}), Path("/")), 24, 16)


@pytest.fixture
def pretrained(data: PreparedData) -> Pretrained:
    return Pretrained.load(data.model, data.task, data.label_names)


FROZEN: dict[str, dict[str, Any]] = {
    "mean": {"freeze": "Encoder", "pooling": "Mean"},
    "cls with a deep head": {"freeze": "Encoder", "pooling": "Cls", "head_layers": 2},
    "own head": {"freeze": "Encoder"},
    "lower layers": {"freeze": "Layers", "frozen_layers": 4},
    "lower layers, mean": {"freeze": "Layers", "frozen_layers": 2, "pooling": "Mean"},
    "lower layers, lora": {"freeze": "Layers", "frozen_layers": 3, "lora_rank": 2},
    "cut encoder": {"freeze": "Encoder", "pooling": "Mean", "encoder_layers": 3},
}


@pytest.mark.parametrize("name", FROZEN)
def test_features_give_the_metrics_of_the_whole_model(
    name: str,
    data: PreparedData,
    pretrained: Pretrained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Adam would make steps of what is only rounding: the bias of attention's keys has no gradient.
    plain = {"optimizer": "SGD", "learning_rate": 0.05}
    config = CONFIG.model_copy(update={**FROZEN[name], **plain})
    fast = TrialRun(pretrained, data, config, 5, OBJECTIVE)
    results = train(fast)
    assert len(pretrained.features.entries) == 1

    pretrained.features.entries.clear()
    monkeypatch.setattr(features, "ROOM", 0)
    whole = TrialRun(pretrained, data, config, 5, OBJECTIVE)
    expected = train(whole)
    assert not pretrained.features.entries
    for one, other in zip(results, expected, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
    np.testing.assert_allclose(fast.predict(data.test), whole.predict(data.test), atol=1e-4)
    fast.export(tmp_path / "fast")
    whole.export(tmp_path / "whole")
    files = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert sorted(file.name for file in (tmp_path / "fast").iterdir()) == files
    for file in (tmp_path / "whole").glob("*.safetensors"):
        one, other = (load_file(tmp_path / kind / file.name) for kind in ("fast", "whole"))
        assert one.keys() == other.keys()
        for tensor in one:
            torch.testing.assert_close(one[tensor], other[tensor], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["mean", "own head", "lower layers"])
def test_a_checkpoint_of_features_goes_on_bit_for_bit_and_without_them(
    name: str,
    data: PreparedData,
    pretrained: Pretrained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = CONFIG.model_copy(update=FROZEN[name])
    unbroken = train(TrialRun(pretrained, data, config, 5, OBJECTIVE))
    first = TrialRun(pretrained, data, config, 5, OBJECTIVE)
    first.train_to(0.5)
    first.save(tmp_path)
    resumed = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE)
    assert outcome(train(resumed))[-1].metrics == unbroken[-1].metrics
    monkeypatch.setattr(features, "ROOM", 0)
    elsewhere = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE)
    assert train(elsewhere)[-1].metrics == pytest.approx(unbroken[-1].metrics, rel=1e-4)


@pytest.mark.parametrize("name", ["mean", "lower layers"])
def test_it_pauses_while_features_are_computed_and_keeps_those_that_are(
    name: str, data: PreparedData, pretrained: Pretrained
) -> None:
    config = CONFIG.model_copy(update=FROZEN[name])
    expected = train(TrialRun(pretrained, data, config, 5, OBJECTIVE))
    pretrained.features.entries.clear()
    run, asked = TrialRun(pretrained, data, config, 5, OBJECTIVE), 0

    def at_the_second_block() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    assert run.train_to(1, at_the_second_block) is None
    (entry,) = pretrained.features.entries.values()
    known = int(entry.known.sum())
    assert 0 < known < len(entry.known)
    assert outcome(train(run)) == outcome(expected)


def test_the_encoder_sees_each_row_once_for_all_trials_and_folds(
    data: PreparedData, pretrained: Pretrained
) -> None:
    config = CONFIG.model_copy(update=FROZEN["mean"])
    train(TrialRun(pretrained, data, config, 1, OBJECTIVE))
    (entry,) = pretrained.features.entries.values()
    seen = 0

    def count(_: Any, __: Any, output: Any) -> None:
        nonlocal seen
        seen += len(output.last_hidden_state)

    entry.model.encoder.register_forward_hook(count)
    for seed in (2, 3):
        for fold in range(3):
            changed = config.model_copy(update={"learning_rate": 10.0**-seed})
            part = data.fold(fold, 3, stratify=True, seed=0)
            train(TrialRun(pretrained, part, changed, seed, OBJECTIVE))
    assert seen == 0
    run = TrialRun(pretrained, data, config, 1, OBJECTIVE)
    run.evaluate("test")
    first = seen
    run.evaluate("test")
    assert seen == first <= len(data.labels)
    assert len(pretrained.features.entries) == 1


def test_features_are_the_same_whoever_asked_for_other_rows_before(
    data: PreparedData, pretrained: Pretrained
) -> None:
    config = CONFIG.model_copy(update=FROZEN["mean"])
    TrialRun(pretrained, data, config, 1, OBJECTIVE).predict(data.test[:5])
    TrialRun(pretrained, data, config, 1, OBJECTIVE).predict(data.train[3:9])
    elsewhere = Pretrained.load(data.model, data.task, data.label_names)
    one, other = (
        outcome(train(TrialRun(weights, data, config, 1, OBJECTIVE)))
        for weights in (pretrained, elsewhere)
    )
    assert one == other


def test_other_texts_and_lengths_have_features_of_their_own(
    data: PreparedData, pretrained: Pretrained
) -> None:
    config = CONFIG.model_copy(update=FROZEN["mean"])
    for length in (8, 16):
        changed = config.model_copy(update={"max_length": length, "epochs": 1})
        train(TrialRun(pretrained, data, changed, 1, OBJECTIVE))
    assert len(pretrained.features.entries) == 2


def test_what_needs_more_room_than_there_is_goes_without(
    data: PreparedData, pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(tensor.nbytes for tensor in pretrained.weights.values())
    monkeypatch.setattr(features, "ROOM", len(data.labels) * 384 * 4 + weights)
    config = CONFIG.model_copy(update={"epochs": 1})
    for update in (FROZEN["mean"], FROZEN["cls with a deep head"], FROZEN["lower layers"]):
        train(TrialRun(pretrained, data, config.model_copy(update=update), 1, OBJECTIVE))
    (key,) = pretrained.features.entries
    assert isinstance(key, tuple)
    assert "Cls" in key


@pytest.mark.parametrize(
    "architecture",
    ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert"],
)
def test_a_model_cut_open_goes_on_where_its_lower_layers_ended(architecture: str) -> None:
    model = tiny(architecture, NO_DROPOUT).eval()
    assert can_be_cut(model)
    layers = Layers.of(model)
    ids = torch.arange(3, 19).reshape(2, 8)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    caught: list[torch.Tensor] = []

    def catch(_: Any, __: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    for frozen in (1, layers.count):
        caught.clear()
        handle = layers.modules(model)[frozen - 1].register_forward_hook(catch)
        with torch.inference_mode():
            whole = model(input_ids=ids, attention_mask=mask).logits
        handle.remove()
        taken = cut_open(model, layers, frozen)
        with torch.inference_mode():
            rest = model(inputs_embeds=caught[0], attention_mask=mask).logits
        put_back(model, taken)
        torch.testing.assert_close(rest, whole)
        with torch.inference_mode():
            again = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(again, whole)


def test_other_architectures_are_left_whole() -> None:
    for architecture in ("albert", "deberta", "deberta-v2", "mpnet"):
        assert not can_be_cut(tiny(architecture, NO_DROPOUT))
    wide = transformers.ElectraForSequenceClassification(
        transformers.ElectraConfig(
            vocab_size=50,
            embedding_size=8,
            hidden_size=16,
            num_attention_heads=2,
            num_hidden_layers=1,
            intermediate_size=16,
        )
    )
    assert not can_be_cut(wide)
