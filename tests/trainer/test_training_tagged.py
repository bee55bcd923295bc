"""Training models that tag words: what they learn from, how they are judged, and what they hand over."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.artifacts.exported import load_exported
from finetune_trainer.artifacts.onnx_export import export_onnx
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.data.windows import units_of
from finetune_trainer.errors import TrialFailure
from finetune_trainer.tasks import task_of
from finetune_trainer.training import Pretrained, TrialRun, baseline_metrics
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import assert_same, outcome, small, train, weights

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = task_of("TokenClassification")
OBJECTIVE = Objective(metric="f1_micro", additional_metrics=["accuracy", "recall_macro"])
CONFIG = Hyperparameters(epochs=2, batch_size=4, max_length=24, learning_rate=1e-3)


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec, shallow: Path, examples: Path) -> PreparedData:
    """A few docstrings with the names of the code in them, most longer than the 24 tokens that trials read at a time."""
    spec = make_spec(
        task="TokenClassification",
        model={"name": str(shallow)},
        dataset={
            "files": {"train": str(examples / "data" / "names.jsonl")},
            "labelColumn": None,
            "spansColumn": "names",
        },
        objective={"metric": "f1_micro"},
        hyperparameters={"maxLength": 24},
    )
    return small(prepare(spec, Path("/")), 16, 12)


@pytest.fixture(scope="module")
def pretrained(data: PreparedData) -> Pretrained:
    return Pretrained.load(data.model, data.task, data.label_names)


Begin = Callable[..., TrialRun]


@pytest.fixture
def begin(data: PreparedData, pretrained: Pretrained) -> Begin:
    def begun(**changes: Any) -> TrialRun:
        config = CONFIG.model_copy(update=changes)
        return TrialRun(pretrained, data, config, 5, OBJECTIVE)

    return begun


def test_a_model_learns_tags_and_its_loss_is_that_of_words(
    begin: Begin, data: PreparedData
) -> None:
    run = begin(epochs=6)
    results = train(run)
    assert results[-1].train_loss < results[0].train_loss / 2
    answers, labels = run.predict(data.train), data.labels[data.train]
    constant = TASK.tiled(TASK.constant(labels, len(data.label_names)), labels)
    assert TASK.metric("accuracy", answers, labels, None) > TASK.metric(
        "accuracy", constant, labels, None
    )
    assert TASK.metric("f1_micro", answers, labels, None) > 0.5
    assert baseline_metrics(data, OBJECTIVE.named, "validation")["f1_micro"] == 0
    assert results[-1].metrics.keys() == {"f1_micro", "accuracy", "recall_macro", "loss"}


def whole_outputs(run: TrialRun, row: int) -> Any:
    """The outputs (words, outputs) for a row, each word in the window that labels it, straight from the model."""
    units = units_of(run.data, run.config.max_length)
    frame, found = units.data.frame, []
    for unit in units.of(np.array([row])):
        ids = [*frame.before, *units.data.columns[0][unit], *frame.after]
        with torch.inference_mode():
            logits = run.model(input_ids=torch.tensor([ids])).logits[0]
        assert units.data.word_tokens is not None
        found.append(logits[len(frame.before) + units.data.word_tokens.row(unit)])
    return torch.cat(found)


def test_judging_is_of_each_word_in_its_window(begin: Begin, data: PreparedData) -> None:
    run = begin()
    train(run)
    rows = data.validation
    assert len(units_of(data, 24).of(rows)) > len(rows), "some rows are read in windows"
    outputs = torch.cat([whole_outputs(run, row) for row in rows])
    labels = torch.from_numpy(data.labels[rows].values)
    answers = run.predict(rows)
    assert TASK.predictions(answers).values.tolist() == outputs.argmax(dim=1).tolist()
    expected = torch.nn.functional.cross_entropy(outputs, labels)
    assert run.measure("validation", answers)["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert answers.values.shape == (len(labels), 2), "no outputs are kept"


def test_gradients_do_not_depend_on_how_a_batch_is_divided(begin: Begin) -> None:
    """A step over 8 rows is the same as 8 rows at once and as 4 times 2 of them, with different numbers of words."""
    calm: dict[str, Any] = dict.fromkeys(
        ("hidden_dropout", "attention_dropout", "classifier_dropout"), 0.0
    )
    calm["optimizer"] = "SGD"
    at_once = begin(batch_size=8, epochs=1, **calm)
    parts = begin(batch_size=2, gradient_accumulation=4, epochs=1, **calm)
    split = begin(batch_size=8, epochs=1, **calm)
    split.learner.split = 4
    rows = at_once._units.data.train[:8]
    losses = []
    for run, batches in (
        (at_once, [rows]),
        (parts, [rows[at : at + 2] for at in range(0, 8, 2)]),
        (split, [rows]),
    ):
        with run.learner.training(run._units.data):
            run.learner.thaw(0)
            loss = run.learner.step(batches, 1e-2)
            assert loss is not None
            losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    for name, weight in weights(at_once).items():
        torch.testing.assert_close(weights(parts)[name], weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weights(split)[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"freeze": "Encoder"},
        {"freeze": "Layers"},
        {"lora_rank": 2},
        {"class_balance": "Weights"},
    ],
    ids=str,
)
def test_a_training_resumes_bit_for_bit(
    changes: Any, begin: Begin, data: PreparedData, pretrained: Pretrained, tmp_path: Path
) -> None:
    whole, part = begin(**changes), begin(**changes)
    expected = outcome(train(whole))
    seen = []
    for pauses in (3, 7, 12):
        asked = iter(range(100))
        result = part.train_to(9, lambda asked=asked, pauses=pauses: next(asked) >= pauses)  # type: ignore[misc]  # of this round
        if result is not None:
            seen.append(result)
        part.save(tmp_path)
        part = TrialRun.resume(tmp_path, pretrained, data, OBJECTIVE)
    assert outcome([*seen, *train(part)]) == expected
    assert_same(weights(part), weights(whole))


def test_frozen_layers_answer_as_the_whole_model_does(
    begin: Begin, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = begin(freeze="Layers")
    assert fast.learner._taken, "the frozen part is computed once"
    monkeypatch.setattr("finetune_trainer.training.frozen.can_be_cut", lambda model: False)
    whole = begin(freeze="Layers")
    assert not whole.learner._taken
    train(fast)
    train(whole)
    np.testing.assert_allclose(
        fast.predict(data.test).values, whole.predict(data.test).values, atol=1e-3
    )


def test_other_length_in_mid_training_cuts_other_windows(begin: Begin, data: PreparedData) -> None:
    """PBT may change `maxLength` between epochs."""
    run = begin()
    assert run.train_to(1) is not None
    before = len(run._units.data.labels)
    run.reconfigure(run.config.model_copy(update={"max_length": 64}))
    assert len(run._units.data.labels) < before
    assert run.train_to(2) is not None
    assert len(run.predict(data.test)) == len(data.test)


def test_nan_anywhere_in_the_outputs_is_a_divergence(begin: Begin) -> None:
    run = begin()
    with torch.no_grad():
        run.model.classifier.bias[0] = float("nan")
    with pytest.raises(TrialFailure, match="NaN"):
        run.evaluate("validation")


def test_exported_model_is_loaded_by_transformers_and_tags_as_the_trial_did(
    begin: Begin, data: PreparedData, tmp_path: Path
) -> None:
    run = begin(epochs=4)
    train(run)
    run.export(tmp_path)
    auto = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert auto.config.id2label[1] == data.label_names[1]
    loaded = load_exported(tmp_path)
    assert type(loaded) is type(auto)
    tagger: Any = transformers.pipeline(
        "token-classification", str(tmp_path), aggregation_strategy="none"
    )
    row = int(data.test[data.columns[0].lengths[data.test].argmin()])
    text = tagger.tokenizer.decode(data.columns[0][row])
    said = {one["index"]: one["entity"] for one in tagger(text, ignore_labels=[])}
    mine = TASK.predictions(run.predict(np.array([row]))).values
    assert data.word_tokens is not None
    places = 1 + data.word_tokens.row(row)
    assert [said[at] for at in places] == [data.label_names[tag] for tag in mine]


def test_onnx_gives_the_outputs_of_each_token(
    begin: Begin, data: PreparedData, tmp_path: Path
) -> None:
    run = begin()
    run.export(tmp_path)
    worst = export_onnx(load_exported(tmp_path), run.data, 24, tmp_path / "model.onnx")
    assert worst < 1e-4


def test_a_row_whose_words_have_no_token_counts_as_not_found(
    data: PreparedData, pretrained: Pretrained
) -> None:
    tokens = data.word_tokens
    assert tokens is not None
    without = replace(tokens, values=np.where(tokens.rows == data.validation[0], -1, tokens.values))
    changed = replace(data, word_tokens=without)
    run = TrialRun(pretrained, changed, CONFIG, 5, OBJECTIVE)
    answers = run.predict(data.validation)
    assert np.isnan(answers.row(0)).all()
    assert TASK.named(TASK.predictions(answers).row(0), data.label_names) == ["O"] * len(
        answers.row(0)
    )
    assert np.isfinite([*run.measure("validation", answers).values()]).all()
    assert run.train_to(1) is not None


def test_folds_keep_documents_whole_and_spread_their_types(data: PreparedData) -> None:
    folds = data.folds(4, stratify=True, seed=0)
    assert sorted(np.concatenate(folds).tolist()) == sorted([*data.train, *data.validation])
    fold = data.fold(0, 4, stratify=True, seed=0)
    units = units_of(fold, 24)
    of_fold = set(units.of(fold.validation).tolist())
    assert of_fold.isdisjoint(units.data.train.tolist())
    assert of_fold == {*units.data.validation.tolist()}
