"""What is made of the winner: ONNX, attributions and the card say what the model says."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from finetune_api.hyperparameters import Hyperparameters, resolve
from finetune_api.manifest import load_yaml
from finetune_api.objective import Objective
from finetune_api.study import StudySpec
from finetune_trainer.artifacts.attributions import Attributor
from finetune_trainer.artifacts.exported import load_exported
from finetune_trainer.artifacts.onnx_export import export_onnx
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.data.near_duplicates import NearDuplicates
from finetune_trainer.errors import TrialFailure
from finetune_trainer.records import events as ev
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from finetune_trainer.training import Pretrained, TrialRun
from finetune_trainer.training.batches import Batcher
from finetune_trainer.worker.final_model import Judgement, card
from finetune_trainer.worker.refit import Refit
from finetune_trainer.worker.runs import Workbench
from tests.trainer.conftest import MakeSpec
from tests.trainer.one_slot import run_study
from tests.trainer.small_trials import assert_same, weights

pytestmark = pytest.mark.usefixtures("one_thread")

OBJECTIVE = Objective(metric="accuracy")
FILLERS = ("the", "a", "old", "big", "blue", "house", "street", "table", "paper", "train")


def few(data: PreparedData, rows: int, others: int) -> PreparedData:
    cut = replace(
        data, train=data.train[:rows], validation=data.validation[:others], test=data.test[:others]
    )
    return replace(cut, fingerprint=cut.digest())


def exported(data: PreparedData, folder: Path, epochs: int = 0, **changes: Any) -> TrialRun:
    """A trial after `epochs` of training, with its model written to `folder`."""
    config = Hyperparameters(
        **{"epochs": max(1, epochs), "max_length": 32, "encoder_layers": 2, **changes}
    )
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    run = TrialRun(pretrained, data, config, 5, OBJECTIVE)
    while run.position < epochs:
        run.train_to(epochs)
    folder.mkdir(exist_ok=True)
    run.export(folder)
    return run


@pytest.fixture(scope="module")
def library(make_spec: MakeSpec) -> PreparedData:
    return few(prepare(make_spec(), Path("/")), 16, 6)


@pytest.mark.parametrize(
    "changes", [{}, {"pooling": "Mean", "head_layers": 1}], ids=["architecture", "own-head"]
)
def test_the_onnx_model_says_what_pytorch_says_of_rows_of_any_number_and_length(
    changes: dict[str, Any], library: PreparedData, tmp_path: Path
) -> None:
    exported(library, tmp_path, **changes)
    model = load_exported(tmp_path)
    path = tmp_path / "model.onnx"
    worst = export_onnx(model, library, 32, path)
    assert 0 < worst <= 1e-4
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tokenizer = library.model.tokenizer()
    for texts in (["one"], ["short", "a longer text " * 60], ["some rows"] * 11):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")  # longer than any row checked
        with torch.inference_mode():
            expected = model(**inputs).logits.numpy()
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert found.shape == (len(texts), 8)


def test_large_numbers_are_as_exact_in_onnx_as_small_ones(
    make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    data = few(prepare(make_spec(**TASKS["Regression"]), examples), 16, 6)
    exported(data, tmp_path)
    model: Any = load_exported(tmp_path)
    with torch.no_grad():
        model.classifier.weight *= 1e7  # as for prices or populations
    path = tmp_path / "model.onnx"
    worst = export_onnx(model, data, 32, path)
    assert worst <= 1e-4
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = Batcher(data, 32, torch.device("cpu"))(data.test).inputs
    with torch.inference_mode():
        expected = model(**inputs).logits.numpy()
    found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
    assert np.abs(found - expected).max() > 1e-2  # of numbers like these that is rounding
    assert np.abs(expected).max() > 1e5


class Estranged(nn.Module):
    """A model that is another in its export, or none."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(40_000, 8)
        self._how = how

    def forward(self, input_ids: Tensor, **_: Tensor) -> SequenceClassifierOutput:
        logits = self.embed(input_ids).mean(dim=1)
        if self._how == "is narrow":
            return SequenceClassifierOutput(logits=logits.bfloat16().relu().float())
        if self._how == "branches":
            return SequenceClassifierOutput(logits=logits if logits.sum() > 0 else -logits)
        shift = 0.0 if torch.compiler.is_exporting() else 0.1
        return SequenceClassifierOutput(logits=logits + shift)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("drifts", r"differ by 0\.\d+ in ONNX"),
        ("branches", "torch cannot export"),
        ("is narrow", "ONNX Runtime cannot run"),
    ],
)
def test_a_model_that_is_another_in_onnx_is_refused(
    how: str, message: str, library: PreparedData, tmp_path: Path
) -> None:
    with pytest.raises(TrialFailure, match=rf"^spec\.artifacts\.onnx: must be false .*{message}"):
        export_onnx(Estranged(how).eval(), library, 32, tmp_path / "model.onnx")


Searched = tuple[StudySpec, PreparedData, Path, list[ev.Event]]


@pytest.fixture(scope="module")
def searched(make_spec: MakeSpec, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A study of one trial that is at its best before its end, and the folder of its refit on train rows."""
    spec = make_spec(
        objective={"metric": "loss"},
        hyperparameters={
            "epochs": 8,
            "maxLength": 16,
            "batchSize": 8,
            "lrSchedule": "Constant",
            "encoderLayers": 2,
        },
        searchSpaces=[{"learningRate": {"values": [6e-4]}}],
        search={"algorithm": "Grid"},
        refitRows="Train",
    )
    data, folder = few(prepare(spec, Path("/")), 96, 24), tmp_path_factory.mktemp("searched")
    return spec, data, folder, run_study(spec, data, folder)


@pytest.mark.slow
def test_the_weights_of_the_best_epoch_are_restored(searched: Searched) -> None:
    """The model of `refitRows: Train` is the winner as it was then, not as it was in the end."""
    spec, data, folder, events = searched
    (started,) = (event for event in events if isinstance(event, ev.Started))
    done = [event for event in events if isinstance(event, ev.EpochDone)]
    best = min(done, key=lambda event: event.metrics["loss"])
    assert 1 < best.epoch < 8
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    config = resolve(spec.hyperparameters, {"learningRate": 6e-4})
    run = TrialRun(pretrained, data, config, started.seed, spec.objective)
    while run.position < best.epoch:
        run.train_to(best.epoch)
    assert run.evaluate("validation")["loss"] == best.metrics["loss"]
    assert_same(load_file(folder / "model/model.safetensors"), weights(run))
    assert "It was trained on 96 training rows, for" in (folder / "model/README.md").read_text()


def test_the_card_tells_how_long_and_on_which_rows_the_model_was_trained(
    searched: Searched,
) -> None:
    spec, data, folder, events = searched
    state = StudyState.replayed(Problem.of(spec), events)
    item, storage = state.refit_item(state.trials[0]), Storage.open(str(folder))
    count = len(data.labels)
    pairs = np.arange(1, count, dtype=np.int32)
    alike = replace(
        data,
        near_duplicates=NearDuplicates(
            np.arange(count, dtype=np.int32),
            later=pairs,
            earlier=pairs - 1,  # each row is like the one before it
            cosine=np.where(pairs < 4, 0.9, 0.7).astype(np.float32),
        ),
    )

    def told(rows: str, threshold: float) -> tuple[str, PreparedData]:
        asked = spec.model_copy(update={"refit_rows": rows})
        config = resolve(spec.hyperparameters, {"duplicateThreshold": threshold})
        text = card(
            Workbench(asked, alike, storage, "cpu", "tickets"), item, config, Judgement({}, [])
        ).text()
        merged = alike if rows == "Train" else alike.merged()
        return text, merged.deduplicated(threshold)

    text, _ = told("Train", 1.0)
    assert "\n# tickets\n" in text
    assert (
        f"trained on 96 training rows, for {item.epochs:g} epochs. Its trial had the best loss"
        in text
    )
    assert (
        f"after {item.epochs:g} epochs of 8; the learning-rate schedule is that of 8 epochs."
        in text
    )
    assert "On 24 test rows, which no trial has seen" in text
    text, _ = told("TrainAndValidation", 1.0)
    assert "trained on 120 rows (96 for training and 24 for validation), for" in text
    for rows, given in (("Train", "the 96 training rows"), ("TrainAndValidation", "120 rows (96")):
        text, left = told(rows, 0.8)
        assert len(left.train) < 120
        assert f"trained on {len(left.train)} of {given}" in text
        assert "duplicateThreshold 0.8" in text


def test_a_refit_goes_on_from_its_last_save_that_is_whole(
    searched: Searched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec, data, folder, events = searched
    state = StudyState.replayed(Problem.of(spec), events)
    item, storage = state.refit_item(state.trials[0]), Storage.open(str(tmp_path))
    shutil.copytree(folder / "records", tmp_path / "records")
    asked = 0

    def refit(*pauses: int) -> list[ev.Event]:
        def should_pause() -> bool:
            nonlocal asked
            asked += 1
            return asked in pauses

        return Refit(Workbench(spec, data, storage, "cpu"), item, should_pause, 0).run()

    refits = tmp_path / "checkpoints/refit"

    def saves() -> list[str]:
        return sorted(path.name for path in refits.glob("*/*"))

    assert isinstance(refit(3)[-1], ev.RefitRequeued)
    assert saves() == ["1"]
    assert isinstance(refit(8)[-1], ev.RefitRequeued)
    assert saves() == ["2"]
    (whole,) = refits.glob("*/2")
    (whole.parent / "3").mkdir()
    shutil.copy(whole / "model.safetensors", whole.parent / "3")
    assert isinstance(refit()[-1], ev.RefitDone)
    assert "cannot go on from its save 3" in caplog.text
    epochs, batches = int(item.epochs), 96 // 8 + 1  # one of validation rows
    assert asked == epochs * batches + 2  # and the two that it paused at
    assert_same(*(load_file(at / "model/model.safetensors") for at in (folder, tmp_path)))


TASKS: dict[str, dict[str, Any]] = {
    "SingleLabel": {},
    "MultiLabel": {
        "task": "MultiLabel",
        "dataset": {"files": {"train": "data/parameters.jsonl"}, "labelColumn": "parameters"},
        "objective": {"metric": "f1_micro"},
    },
    "Regression": {
        "task": "Regression",
        "dataset": {"files": {"train": "data/arity.csv"}, "labelColumn": "arity"},
        "objective": {"metric": "rmse"},
    },
}


@pytest.mark.parametrize("task", TASKS)
def test_attributions_add_up_to_what_the_text_changes(
    task: str, make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    data = few(prepare(make_spec(**TASKS[task]), examples), 16, 6)
    run = exported(data, tmp_path)
    model = load_exported(tmp_path)
    attribute = Attributor(model, data, 32, run.thresholds)
    logits = run.predict(data.test)
    frame = data.frame
    for number in range(3):
        found = attribute(number)
        row = data.test[number]
        kept = int(data.lengths(data.test[number : number + 1], 32)[0])
        ids = [*frame.before, *data.columns[0][row][: kept - frame.special], *frame.after]
        assert found.tokens == data.model.tokenizer().convert_ids_to_tokens(ids)
        for output in found.outputs:
            at = data.label_names.index(output.output)
            assert output.value == pytest.approx(float(logits[number, at]), abs=1e-5)
            assert output.reference == pytest.approx(empty(model, data, kept)[at], abs=1e-5)
            change = output.value - output.reference
            assert sum(output.attributions) == pytest.approx(change, abs=0.02)
            assert output.delta == pytest.approx(sum(output.attributions) - change, abs=1e-6)
            assert len(output.attributions) == len(found.tokens)
            assert output.attributions[0] == output.attributions[-1] == 0
        assert_named(found.prediction, [output.output for output in found.outputs], logits[number])


def test_of_a_pair_of_texts_both_are_attributed_and_what_frames_them_is_not(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows = (
        f"a {word} here,there is no {word},{number % 2}" for number, word in enumerate(FILLERS * 3)
    )
    (tmp_path / "pairs.csv").write_text("\n".join(["one,other,label", *rows]))
    dataset = {
        "files": {"train": "pairs.csv"},
        "textColumns": ["one", "other"],
        "labelColumn": "label",
    }
    data = prepare(make_spec(dataset=dataset), tmp_path)
    run = exported(data, tmp_path)
    found = Attributor(run.model, data, 32, None)(0)
    (output,) = found.outputs
    frame = ("[CLS]", "[SEP]")
    assert [token for token in found.tokens if token in frame] == ["[CLS]", "[SEP]", "[SEP]"]
    silent = [token for token, v in zip(found.tokens, output.attributions, strict=True) if v == 0]
    assert silent == ["[CLS]", "[SEP]", "[SEP]"]
    assert output.value == pytest.approx(float(run.predict(data.test[:1]).max()), abs=1e-5)
    assert abs(output.delta) < 1e-3


def empty(model: Any, data: PreparedData, length: int) -> list[float]:
    """The logits of a row of that length with padding in place of its text."""
    frame = data.frame
    text = [frame.pad] * (length - frame.special)
    ids = torch.tensor([[*frame.before, *text, *frame.after]])
    with torch.inference_mode():
        logits: list[float] = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].tolist()
        )
    return logits


def assert_named(prediction: object, outputs: list[str], logits: Any) -> None:
    match prediction:
        case str():
            assert outputs == [prediction]
        case []:
            assert len(outputs) == 1
        case list():
            assert outputs == prediction
        case float():
            assert prediction == pytest.approx(float(logits[0]), abs=1e-5)
        case _:
            raise AssertionError(f"{prediction!r} is no prediction")


def test_the_word_that_decides_the_class_is_what_a_trained_model_goes_by(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    generator = np.random.default_rng(7)
    lines = ["text,label"]
    for number in range(80):
        words = generator.choice(FILLERS, 6).tolist()
        label = ("fruit", "music")[number % 2]
        words.insert(int(generator.integers(6)), {"fruit": "apple", "music": "violin"}[label])
        lines.append(f"{' '.join(words)},{label}")
    (tmp_path / "planted.csv").write_text("\n".join(lines))
    dataset = {"files": {"train": "planted.csv"}, "labelColumn": "label", "allowLabelInText": True}
    data = prepare(make_spec(dataset=dataset, objective={"metric": "accuracy"}), tmp_path)
    run = exported(data, tmp_path, 3, batch_size=4, learning_rate=5e-4, pooling="Mean")
    assert run.evaluate("test")["accuracy"] == 1
    attribute = Attributor(run.model, data, 32, None)
    for number in range(len(data.test)):
        found = attribute(number)
        (output,) = found.outputs
        assert found.label == found.prediction == output.output
        assert output.probability is not None
        assert output.probability > 0.9
        strongest = found.tokens[int(np.argmax(output.attributions))]
        assert strongest == {"fruit": "apple", "music": "violin"}[output.output]


@pytest.fixture(scope="module")
def refitted(
    make_spec: MakeSpec, library: PreparedData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreparedData, list[ev.Event]]:
    """A study with everything, told to pause once while it attributes."""
    spec = make_spec(
        objective={"metric": "accuracy", "additionalMetrics": ["f1_macro"]},
        hyperparameters={"epochs": 1, "maxLength": 32, "encoderLayers": 1, "pooling": "Mean"},
        searchSpaces=[{"learningRate": {"values": [1e-4, 3e-4]}}],
        artifacts={"onnx": True, "attributedRows": 4},
    )
    data = replace(library, warnings=("the texts are short",))
    folder = tmp_path_factory.mktemp("refitted")
    asked: list[bool] = []

    def should_pause() -> bool:
        """Once, at the second row to attribute."""
        if (folder / "model" / "README.md").exists():
            asked.append(True)
        return len(asked) == 2

    events = run_study(spec, data, folder, should_pause)
    assert len(asked) == 2 + 4
    return folder, data, events


def test_a_refit_that_pauses_among_its_attributions_makes_them_all_in_the_end(
    refitted: tuple[Path, PreparedData, list[ev.Event]],
) -> None:
    folder, data, events = refitted
    assert [event.message for event in events if isinstance(event, ev.RefitRequeued)] == [""]
    lines = (folder / "results" / "attributions.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    spread = [0, 2, 3, 5]  # of six test rows
    assert [row["row"] for row in found] == spread
    expected = [data.label_names[label] for label in data.labels[data.test[spread]]]
    assert [row["label"] for row in found] == expected
    assert (folder / "model" / "model.onnx").is_file()


def test_the_card_tells_what_the_model_was_made_of(
    refitted: tuple[Path, PreparedData, list[ev.Event]],
) -> None:
    folder, data, events = refitted
    card = (folder / "model" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    about = load_yaml(front)
    assert about["pipeline_tag"] == "text-classification"
    assert about["metrics"] == ["accuracy", "f1_macro", "loss"]
    assert "license" not in about
    assert "base_model" not in about  # a folder is no model of the hub
    (done,) = (event for event in events if isinstance(event, ev.RefitDone))
    for name, value in done.test_metrics.items():
        assert f"| {name} | {value:.4f} | {done.baseline[name]:.4f} |" in text
    values = [event.value for event in events if isinstance(event, ev.EpochDone)]
    told = [
        "all-MiniLM-L6-v2",
        "| train | 16 |",
        "| validation | 6 |",
        "| test | 6 |",
        data.fingerprint,
        "- the texts are short",
        "| pooling | Mean | the study |",
        "| learningRate | ",
        f"Grid, seed 0: 2 trials, of which trial {done.trial} won",
        "It was trained on 22 rows (16 for training and 6 for validation), for 1 epoch.",
        "On 6 test rows, which no trial has seen",
        f"after 1 epoch: {max(values):.4f}",
        f"| torch | {torch.__version__} |",
        "`model.onnx`",
    ]
    assert [part for part in told if part not in text] == []


def test_the_code_of_the_card_predicts(
    refitted: tuple[Path, PreparedData, list[ev.Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data, _ = refitted
    card = (folder / "model" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(folder / "model")
    names: dict[str, Any] = {}
    exec(code.replace("a text", "Return the mean of the columns of a DataFrame."), names)
    model = load_exported(folder / "model")
    with torch.inference_mode():
        expected = model(**names["inputs"]).logits[0]
    torch.testing.assert_close(names["logits"][0].detach(), expected)
    assert names["label"] == data.label_names[int(expected.argmax())]


def test_the_code_of_the_card_predicts_labels_by_their_thresholds(
    make_spec: MakeSpec, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(
        **TASKS["MultiLabel"],
        hyperparameters={"epochs": 1, "encoderLayers": 1, "decisionThreshold": 0.01},
    )
    run_study(spec, few(prepare(spec, examples), 16, 6), tmp_path)
    card = (tmp_path / "model" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path / "model")
    names: dict[str, Any] = {}
    exec(code, names)
    shares = names["logits"][0].sigmoid().tolist()
    known = names["model"].config.id2label
    assert names["labels"] == [known[n] for n, share in enumerate(shares) if share >= 0.01]
    assert names["labels"]
