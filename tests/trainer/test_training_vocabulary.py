"""Words that no row has are left out of training, and nothing shows it but time and memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.training import Pretrained, TrialRun, learner
from finetune_trainer.training.vocabulary import OccurringWords, leave_out
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import assert_same, small, train, weights

pytestmark = pytest.mark.usefixtures("one_thread")

OBJECTIVE = Objective(metric="loss")
CONFIG = Hyperparameters(
    epochs=2, batch_size=8, max_length=16, learning_rate=1e-2, weight_decay=0.5,
    hidden_dropout=0, attention_dropout=0, classifier_dropout=0,
    adam_epsilon=1e-3, encoder_layers=1, warmup_ratio=0,
)  # fmt: skip
"""Weight decay that shows within a few steps, and an update that does not turn on rounding."""

WORDS = "bert.embeddings.word_embeddings.weight"

Start = Callable[..., TrialRun]


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec) -> PreparedData:
    """16 rows for each part, of 8 classes."""
    return small(prepare(make_spec(), Path("/")), 16, 16)


@pytest.fixture(scope="module")
def pretrained(data: PreparedData) -> Pretrained:
    return Pretrained.load(data.model, data.task, data.label_names)


@pytest.fixture(scope="module")
def start(data: PreparedData, pretrained: Pretrained) -> Start:
    def start(**changes: Any) -> TrialRun:
        config = CONFIG.model_copy(update=changes)
        return TrialRun(pretrained, data, config, 5, OBJECTIVE)

    return start


@pytest.fixture
def start_whole(start: Start, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts trials that train every word, whatever they are configured to."""

    def start_whole(**changes: Any) -> TrialRun:
        with monkeypatch.context() as patched:
            patched.setattr(learner, "may_leave_out", lambda _: False)
            return start(**changes)

    return start_whole


def trained_words(run: TrialRun, folder: Path) -> int:
    run.save(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as saved:
        return int(saved.get_slice(WORDS).get_shape()[0])


def occurring(data: PreparedData) -> int:
    frame = data.frame
    special = [*frame.before, *frame.after, frame.pad]
    return len(np.unique(np.concatenate([data.columns[0].ids, special])))


def assert_close(one: TrialRun, other: TrialRun) -> None:
    expected = weights(other)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "SGD"},
        {"optimizer": "NesterovSGD"},
        {"optimizer": "Adam"},
        {"optimizer": "Adam", "weight_decay": 0},
        {"optimizer": "RMSprop", "learning_rate": 1e-4},
        {"averaging_start": 0.3},
        {"unfreeze_epochs": 0.3},
        {"layer_decay": 0.8, "max_grad_norm": 0.1},
    ],
    ids=str,
)
def test_every_weight_becomes_what_it_would_with_all_words(
    changes: dict[str, Any],
    start: Start,
    start_whole: Start,
    tmp_path: Path,
    data: PreparedData,
    pretrained: Pretrained,
) -> None:
    run, whole = start(**changes), start_whole(**changes)
    assert trained_words(run, tmp_path / "few") == occurring(data) + 1
    assert trained_words(whole, tmp_path / "all") == len(pretrained.weights[WORDS])
    train(run)
    train(whole)
    run.export(tmp_path / "one")
    whole.export(tmp_path / "other")
    with (
        safe_open(tmp_path / "one/model.safetensors", framework="pt") as one,
        safe_open(tmp_path / "other/model.safetensors", framework="pt") as other,
    ):
        assert set(one.keys()) == set(other.keys())
        for name in one.keys():  # noqa: SIM118
            expected = other.get_tensor(name)
            torch.testing.assert_close(one.get_tensor(name), expected, rtol=1e-4, atol=1e-5)
    never = torch.ones(len(pretrained.weights[WORDS]), dtype=torch.bool)
    never[data.columns[0].ids] = False
    never[[*data.frame.before, *data.frame.after, data.frame.pad]] = False
    before, after = pretrained.weights[WORDS][never], weights(run)[WORDS][never]
    assert torch.equal(before, after) == (run.config.weight_decay == 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"l1_penalty": 0.01},
        {"optimizer": "Adafactor"},
        {"augmentation": "Deletion"},
    ],
    ids=str,
)
def test_what_treats_every_word_on_its_own_trains_them_all(
    changes: dict[str, Any], start: Start, tmp_path: Path, pretrained: Pretrained
) -> None:
    assert trained_words(start(**changes), tmp_path) == len(pretrained.weights[WORDS])


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"l1_penalty": 0.01}),
        ({"averaging_start": 0.1}, {"l1_penalty": 0.01}),
        ({"optimizer": "SGD"}, {"optimizer": "Adafactor", "learning_rate": 1e-3}),
        ({"optimizer": "SGD"}, {"hidden_dropout": 0.1, "l1_penalty": 0.01}),
        (
            {"optimizer": "RMSprop", "unfreeze_epochs": 0.6},
            {"learning_rate": 1e-4, "l1_penalty": 0.01},
        ),
    ],
    ids=str,
)
def test_all_words_are_taken_in_when_hyperparameters_change_to_what_needs_them(
    first: dict[str, Any],
    then: dict[str, Any],
    start: Start,
    start_whole: Start,
    tmp_path: Path,
    data: PreparedData,
    pretrained: Pretrained,
) -> None:
    """And stay there: a change back, a checkpoint and a resumption change nothing."""
    ends = []
    for run in (start(**first), start_whole(**first)):
        run.train_to(1)
        run.reconfigure(run.config.model_copy(update=then))
        run.train_to(1.5)
        run.save(tmp_path)
        resumed = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE, changed=run.config)
        assert_same(weights(resumed), weights(run))
        resumed.reconfigure(CONFIG.model_copy(update=first))
        assert trained_words(resumed, tmp_path) == len(pretrained.weights[WORDS])
        again = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE)
        train(again)
        ends.append(again)
    assert_close(*ends)


def test_embeddings_that_something_else_uses_too_are_left_alone(data: PreparedData) -> None:
    size = int(data.columns[0].ids.max()) + 1000
    config = BertConfig(
        vocab_size=size,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    model: Any = BertForSequenceClassification(config)
    model.tied = nn.Linear(8, size, bias=False)
    model.tied.weight = model.bert.embeddings.word_embeddings.weight
    assert leave_out(model, dict(model.named_parameters()), data) is None
    model.tied = None
    assert leave_out(model, {}, data) is None  # not trained
    assert isinstance(leave_out(model, dict(model.named_parameters()), data), OccurringWords)


def test_a_word_that_was_left_out_cannot_be_read() -> None:
    embeddings = OccurringWords(nn.Embedding(5, 2), "words", torch.tensor([1, 3]))
    assert embeddings(torch.tensor([3, 1])).shape == (2, 2)
    with pytest.raises(IndexError):
        embeddings(torch.tensor([2]))
