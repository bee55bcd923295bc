"""Slices of the rows: how they are divided, what is measured of each, and where that is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

from finetune_api.hyperparameters import resolve
from finetune_api.metrics import METRIC_WORDS, best_value, natural_goal, over_slices
from finetune_api.study import StudySpec
from finetune_api.tasks import TASKS, Task
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.data.load import PARTS
from finetune_trainer.data.slices import Slices
from finetune_trainer.errors import DataError
from finetune_trainer.records import events as ev
from finetune_trainer.training import Pretrained, TrialRun, baseline_metrics
from finetune_trainer.training.metrics import compute_metrics
from finetune_trainer.training.out_of_fold import metrics_out_of_fold, tuning_folds
from finetune_trainer.training.slices import slice_reports
from tests.trainer.speller import VOCABULARY, speller_spec
from tests.trainer.test_refit import Place
from tests.trainer.test_tasks import encoded, logits_for

pytestmark = pytest.mark.usefixtures("one_thread")

LANGUAGES = ("de", "en", "fr")
BY_LANGUAGE = {"slices": [{"column": "language"}]}


def frame(rows: int = 90) -> pd.DataFrame:
    """Words of letters, whether they begin with a vowel, their language and length."""
    generator = np.random.default_rng(3)
    words = ["".join(generator.choice([*"aeioubcdfg"], 3)) for _ in range(rows)]
    return pd.DataFrame(
        {
            "word": [f"{word}{number:02}" for number, word in enumerate(words)],
            "vowels": ["yes" if word[0] in "aeiou" else "no" for word in words],
            "language": [LANGUAGES[number % 3] for number in range(rows)],
            "length": [float(number % 7) for number in range(rows)],
        }
    )


def spec_of(
    folder: Path, validation: dict[str, Any], table: pd.DataFrame, **changes: Any
) -> StudySpec:
    """A study of the table with slices, as CSV or, where a column is no text, Parquet."""
    speller_spec(folder)
    files = {"train": str(folder / f"rows{changes.pop('suffix', '.csv')}")}
    if files["train"].endswith(".csv"):
        table.to_csv(files["train"], index=False)
    else:
        table.to_parquet(files["train"], index=False)
    dataset = {
        "files": files,
        "textColumns": ["word"],
        "labelColumn": "vowels",
        "allowLabelInText": True,
        "cleaning": {"duplicates": "Drop"},
    }
    return speller_spec(folder, dataset=dataset, validation=validation, **changes)


def divided(
    folder: Path, validation: dict[str, Any], table: pd.DataFrame, **changes: Any
) -> PreparedData:
    return prepare(spec_of(folder, validation, table, **changes), Path("/"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_keep_their_slice_through_cleaning_and_splitting(tmp_path: Path, suffix: str) -> None:
    table = frame()
    table.loc[[5, 17], "vowels"] = None  # rows without a label are left out
    table.loc[40] = table.loc[4]  # and repeated ones
    table.loc[7, "language"] = None
    expression = {"name": "long", "expression": "double(length) >= 4.0"}
    data = divided(tmp_path, {"slices": [*BY_LANGUAGE["slices"], expression]}, table, suffix=suffix)
    language, long = data.slices
    assert (language.division, language.values) == ("language", ("(none)", *LANGUAGES))
    assert (long.division, long.values) == ("long", ("false", "true"))
    # The speller reads letter by letter: the last two tokens of a word are its number in the table.
    digits = data.columns[0]
    seen = 0
    for part in PARTS:
        for row in data.part(part).tolist():
            start, end = digits.offsets[row : row + 2]
            text = "".join(_letter(int(token)) for token in digits.ids[start:end])
            at = int(text[-2:])
            expected = table.loc[at, "language"]
            assert language.values[language.of_row[row]] == (
                "(none)" if pd.isna(expected) else expected
            )
            assert long.values[long.of_row[row]] == str(table.loc[at, "length"] >= 4).lower()
            seen += 1
    assert seen == len(table) - 2 - 1


def _letter(token: int) -> str:
    word: str = VOCABULARY[token]
    return word.removeprefix("##")


def test_training_is_the_same_with_slices(tmp_path: Path) -> None:
    plain, sliced = divided(tmp_path, {}, frame()), divided(tmp_path, BY_LANGUAGE, frame())
    assert plain.fingerprint == sliced.fingerprint
    assert plain.slices == ()


@pytest.mark.parametrize(
    ("slices", "field", "message"),
    [
        ({"column": "word"}, "slices[0].column", "at most 32 values (got 90 in word, such as "),
        ({"column": "lang"}, "slices[0].column", "lang"),
        ({"name": "x", "expression": "lang == 'de'"}, "slices[0].expression", "lang"),
        (
            {"name": "x", "expression": "language =="},
            "slices[0].expression",
            "must be a CEL expression",
        ),
        ({"name": "x", "expression": "language"}, "slices[0].expression", "must be true or false"),
        ({"name": "x", "expression": "length > 3"}, "slices[0].expression", "must be defined for"),
        (
            {"name": "x", "expression": "[1].exists(a, a > 0)"},
            "slices[0].expression",
            "must not use all",
        ),
    ],
)
def test_what_cannot_divide_rows_is_named(
    tmp_path: Path, slices: dict[str, str], field: str, message: str
) -> None:
    with pytest.raises(DataError) as error:
        divided(tmp_path, {"slices": [slices]}, frame())
    assert error.value.field == f"spec.validation.{field}"
    assert message in error.value.message


def test_slices_of_few_rows_are_told(tmp_path: Path) -> None:
    table = frame(200)
    table["language"] = ["de"] * 199 + ["fr"]
    data = divided(tmp_path, BY_LANGUAGE, table, **{})
    (warning,) = [text for text in data.warnings if "slices" in text]
    assert warning.startswith(
        "spec.validation.slices[0]: 2 of 2 slices of language have fewer than 30"
    )
    table = pd.concat([table.assign(word=table["word"] + f"{n}") for n in range(3)])
    table.loc[table.index[-1], "language"] = "fr"
    data = divided(tmp_path, BY_LANGUAGE, table)
    (warning,) = [text for text in data.warnings if "slices" in text]
    assert "1 of 2 slices" in warning


def test_metrics_are_of_each_slice_and_of_the_worst(tmp_path: Path) -> None:
    objective = {"metric": "accuracy@worst", "additionalMetrics": ["accuracy@gap", "f1_macro"]}
    spec = spec_of(tmp_path, BY_LANGUAGE, frame(), objective=objective)
    data = prepare(spec, Path("/"))
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    config = resolve(spec.hyperparameters, {"learningRate": 1e-2})
    run = TrialRun(pretrained, data, config, 0, spec.objective)
    result = run.train_to(1)
    assert result is not None
    rows, language = data.validation, data.slices[0]
    predicted = run.predict(rows).argmax(axis=1)
    expected = {
        value: accuracy_score(data.labels[rows][chosen], predicted[chosen])
        for at, value in enumerate(language.values)
        if (chosen := language.of_row[rows] == at).any()
    }
    found = result.metrics
    assert {value: found[f"accuracy@language={value}"] for value in expected} == pytest.approx(
        expected
    )
    assert found["accuracy@worst"] == pytest.approx(min(expected.values()))
    assert found["accuracy@gap"] == pytest.approx(max(expected.values()) - min(expected.values()))
    assert found["accuracy"] == pytest.approx(accuracy_score(data.labels[rows], predicted))
    assert {"f1_macro", "f1_macro@language=de", "loss@language=en"} <= set(found)
    constant = baseline_metrics(data, found, "validation")
    assert {"accuracy@language=de", "accuracy@worst", "loss@language=en"} <= set(constant)


def test_worst_and_gap_follow_the_direction_and_stay_within_a_division() -> None:
    metrics = {"rmse@a=1": 2.0, "rmse@a=2": 5.0, "rmse@b=1": 9.0, "r2@a=1": 0.5, "r2@a=2": -1.0}
    asked = ["rmse@worst", "rmse@gap", "r2@worst", "r2@gap", "mae@gap", "rmse"]
    assert over_slices(metrics, asked) == {
        "rmse@worst": 9.0,
        "rmse@gap": 3.0,
        "r2@worst": -1.0,
        "r2@gap": 1.5,
    }
    assert {natural_goal(word) for word in METRIC_WORDS if word.endswith("@gap")} == {"Minimize"}
    assert best_value("accuracy@gap") == 0
    assert (natural_goal("loss@worst"), best_value("f1_macro@worst")) == ("Minimize", 1)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_metrics_over_slices(task: Task) -> None:
    _, labels, outputs = encoded(task)
    logits = logits_for(labels, outputs)
    half = Slices("half", ("a", "b"), np.arange(len(labels), dtype=np.int64) % 2)
    metric = TASKS[task].usual_metric
    found = compute_metrics(
        task, logits, labels, [f"{metric}@worst", f"{metric}@gap"], slices=[half]
    )
    rows = [np.arange(len(labels)) % 2 == at for at in (0, 1)]
    each = [compute_metrics(task, logits[r], labels[r], [metric])[metric] for r in rows]
    assert found[f"{metric}@gap"] == pytest.approx(max(each) - min(each))
    reports = slice_reports(task, logits, labels, [metric], None, [half])
    assert [(one.value, one.rows) for one in reports] == [
        ("a", int(rows[0].sum())),
        ("b", int(rows[1].sum())),
    ]
    for one in reports:
        assert one.interval is not None
        low, high = one.interval
        assert low <= high


def test_out_of_fold_the_worst_slice_is_that_of_the_means() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random((60, 3)) < 0.4
    logits = generator.normal(size=(60, 3)).astype(np.float32)
    third = Slices("third", ("a", "b", "c"), np.arange(60, dtype=np.int64) % 3)
    found = metrics_out_of_fold(
        "MultiLabel",
        logits,
        labels,
        tuning_folds(labels, None),
        ["f1_micro@worst", "f1_micro@gap", "f1_micro"],
        lambda _, labels: np.full(labels.shape[1], 0.5),
        [third],
    )
    each = [found[f"f1_micro@third={value}"] for value in "abc"]
    assert found["f1_micro@worst"] == min(each)
    assert found["f1_micro@gap"] == max(each) - min(each)


def test_the_final_model_is_judged_by_slice(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "artifacts": {"onnx": False, "attributedRows": 0, "texts": False},
        "hyperparameters": {"epochs": 3, "maxLength": 8, "batchSize": 16},
    }
    spec = spec_of(tmp_path, BY_LANGUAGE, frame(300), **changes)
    folder = tmp_path / "study"
    done = Place(folder, spec, prepare(spec, Path("/"))).refit()
    assert isinstance(done, ev.RefitDone)
    assert {f"accuracy@language={value}" for value in LANGUAGES} <= set(done.test_metrics)
    report = json.loads((folder / "results" / "test_report.json").read_text())
    assert [one["value"] for one in report["slices"]] == list(LANGUAGES)
    assert all(one["rows"] for one in report["slices"])
    assert not any("text" in one for one in report["mistakes"]), "the study shows no texts"
    card = (folder / "model" / "README.md").read_text()
    assert "By slice of the test rows:" in card
    assert "| language de |" in card
    assert "@language" not in card
