"""`finetune predict`, `evaluate` and `export --onnx`: a final model does for others what it did for its study."""

import gzip
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet
import pytest
from sklearn import metrics as sk

from finetune_trainer.artifacts.predictor import Predictor, load_predictor
from finetune_trainer.cli import main
from finetune_trainer.data import prepare
from tests.trainer.conftest import MakeSpec
from tests.trainer.final_models import STUDIES, Ended, ended
from tests.trainer.one_slot import run_study

pytestmark = pytest.mark.usefixtures("one_thread")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", params=STUDIES)
def study(
    request: pytest.FixtureRequest,
    make_spec: MakeSpec,
    shallow: Path,
    examples: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Ended:
    folder = tmp_path_factory.mktemp(request.param)
    found = ended(request.param, make_spec, shallow, examples, folder)
    together = (found.folder / "model" / "ensemble.json").is_file()
    assert together == (request.param == "Ensemble"), "with these rows two are better than one"
    return found


def letters(text: str) -> str:
    """A text as every tokenizer reads it."""
    return "".join(filter(str.isalnum, text.lower()))


def test_the_worst_mistakes_of_the_report_are_rows_with_their_texts(study: Ended) -> None:
    mistakes = study.report["mistakes"]
    assert mistakes, "so few rows and epochs leave some"
    for one in mistakes:
        read = letters(one["text"])[:30]
        row = study.rows[one["row"]]
        assert any(letters(str(cell)).startswith(read) for cell in row.values()), (one, row)
        assert one["label"] != one["prediction"]
        if "library" in row:
            assert one["label"] == row["library"]
            wrong = study.report["rows"] - np.trace(np.array(study.report["confusion"]))
            assert len(mistakes) == min(20, wrong)


@pytest.fixture(scope="module")
def single(
    make_spec: MakeSpec, shallow: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Ended:
    return ended("SingleLabel", make_spec, shallow, examples, tmp_path_factory.mktemp("single"))


def lines(capsys: Capture) -> list[dict[str, Any]]:
    """What was written to stdout."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_what_is_predicted_for_the_test_rows_has_the_metrics_of_the_study(
    study: Ended, capsys: Capture
) -> None:
    assert main(["predict", str(study.folder), str(study.test_file)]) == 0
    found, rows, tested = lines(capsys), study.rows, study.tested
    assert len(found) == len(rows) == 40
    if "library" in rows[0]:
        known, said = [row["library"] for row in rows], [one["label"] for one in found]
        assert sk.accuracy_score(known, said) == tested["accuracy"]
        losses = [-np.log(one["scores"][label]) for one, label in zip(found, known, strict=True)]
        assert np.mean(losses) == pytest.approx(tested["loss"], rel=1e-4)
        assert all(max(one["scores"], key=one["scores"].get) == one["label"] for one in found)
        assert all(sum(one["scores"].values()) == pytest.approx(1) for one in found)
    elif "parameters" in rows[0]:
        names = sorted(found[0]["scores"])
        there, chosen = (
            np.array([[name in labels for name in names] for labels in each])
            for each in ([row["parameters"] for row in rows], [one["labels"] for one in found])
        )
        assert sk.f1_score(there, chosen, average="micro") == pytest.approx(tested["f1_micro"])
        tuned = [one["threshold"] for one in study.report["labels"]]
        assert len({*tuned}) > 1, "thresholds were tuned"
    elif "arity" in rows[0]:
        known, said = [row["arity"] for row in rows], [one["value"] for one in found]
        assert sk.root_mean_squared_error(known, said) == pytest.approx(tested["rmse"], rel=1e-5)
        assert sk.mean_absolute_error(known, said) == pytest.approx(tested["mae"], rel=1e-5)
    else:
        counts = np.zeros(3)
        for row, one in zip(rows, found, strict=True):
            entities = one["entities"]
            assert all(row["text"][e["start"] : e["end"]] == e["text"] for e in entities)
            assert all(0 < e["score"] <= 1 for e in entities)
            told, marked = (
                {(e["start"], e["end"], e["label"]) for e in each}
                for each in (entities, row["names"])
            )
            counts += len(told & marked), len(told), len(marked)
        assert counts[0], "with these rows it finds some"
        assert 2 * counts[0] / counts[1:].sum() == pytest.approx(tested["f1_micro"])


def test_a_row_has_the_same_answer_alone_as_among_others(study: Ended) -> None:
    predictor = load_predictor(study.folder / "model", batch_size=3)
    texts = [row["text"] for row in study.rows]
    together = predictor.predict(texts)
    for text, expected in zip(texts[:5], together, strict=False):
        (alone,) = predictor.predict([text])
        assert flat(alone.to_json()) == pytest.approx(flat(expected.to_json()), abs=1e-4)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a JSON value by their paths."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, each in pairs for k, v in flat(each, f"{name}/{key}").items()}
    return {name: value}


@pytest.fixture(scope="module")
def predictor(single: Ended) -> Predictor:
    return load_predictor(single.folder)


AWKWARD = ["one text", "", "another, with a comma", "  ", "the last one " * 30]
"""Two of them are none, and one is longer than the model reads."""


def in_format(suffix: str, folder: Path, column: str) -> Path:
    """A file of the awkward texts."""
    path, rows = folder / f"rows{suffix}", [{column: text} for text in AWKWARD]
    match suffix:
        case ".csv" | ".csv.gz":
            text = f"{column},n\n" + "".join(f'"{text}",1\n' for text in AWKWARD)
        case ".tsv":
            text = f"n\t{column}\n" + "".join(f"1\t{text}\n" for text in AWKWARD)
        case ".jsonl":
            text = "".join(json.dumps(row) + "\n" for row in rows)
        case ".json":
            text = json.dumps(rows)
        case _:
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
            return path
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_an_answer_for_each_row_in_order(
    suffix: str,
    single: Ended,
    predictor: Predictor,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finetune_trainer.commands.predict._CHUNK", 2)
    path = in_format(suffix, tmp_path, "words")
    expected = [one.to_json() for one in predictor.predict(AWKWARD)]
    asked = ["predict", str(single.folder), str(path), "--text-column", "words"]
    assert main(asked) == 0
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [flat(one) for one in found] == [pytest.approx(flat(one), abs=1e-4) for one in expected]
    assert [at for at, one in enumerate(found) if one == {"error": "has no text"}] == [1, 3]
    assert "1 text is longer than 32 tokens and cut off there, as in training" in err
    assert "2 of 5 rows have an error in place of an answer (row 2 has no text)" in err


def test_a_row_that_cannot_be_read_keeps_its_line(
    single: Ended, tmp_path: Path, capsys: Capture
) -> None:
    path, out = tmp_path / "rows.csv", tmp_path / "answers.jsonl"
    path.write_text('text,n\none,1\ntwo,1,too many\n"three\nlines",1\n')
    assert main(["predict", str(single.folder), str(path), "--output-file", str(out)]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    why = "cannot be read: 3 fields where the header has 2"
    assert [one.get("error") for one in found] == [None, why, None]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "typed",
    [b"one text\r\nanother \xe2\x82\xac\n", b'{"text": "one text"}\n{"text": "another \\u20ac"}\n'],
    ids=["text", "json"],
)
def test_stdin_is_lines_of_text_or_of_json(
    typed: bytes,
    single: Ended,
    predictor: Predictor,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = io.TextIOWrapper(io.BufferedReader(io.BytesIO(typed)))
    monkeypatch.setattr(sys, "stdin", given)
    assert main(["predict", str(single.folder), "-"]) == 0
    expected = predictor.predict(["one text", "another €"])
    for one, other in zip(lines(capsys), expected, strict=True):
        assert flat(one) == pytest.approx(flat(other.to_json()), abs=1e-4)


def test_a_reader_that_has_seen_enough_is_no_error(
    single: Ended, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["predict", str(single.folder), str(single.test_file)]) == 0
    assert "Broken" not in capsys.readouterr().err


def test_a_copied_model_knows_the_columns_and_the_cleaning_of_its_study(
    make_spec: MakeSpec, shallow: Path, examples: Path, tmp_path: Path
) -> None:
    made = ended("Pooled", make_spec, shallow, examples, tmp_path)
    shutil.copytree(made.folder / "model", tmp_path / "copy")
    predictor = load_predictor(tmp_path / "copy")
    assert predictor.about.dataset["cleaning"]["lowercase"]
    assert predictor.about.dataset["textColumns"] == ["text"]
    one, other = predictor.predict(["A Text In Capitals", "a text in capitals"])
    assert one == other
    (tmp_path / "copy" / "finetune.json").unlink()
    unknowing = load_predictor(tmp_path / "copy")
    assert unknowing.about.task == "SingleLabel"
    (made.folder / "model" / "finetune.json").unlink()
    assert load_predictor(made.folder).about == predictor.about, "the records of its study say it"


def test_lists_of_words_are_tagged_as_given(
    make_spec: MakeSpec, shallow: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = [
        {"tokens": ["call", f"x.{n}", "now", "!"], "tags": ["O", "NAME", "O", "O"]}
        for n in range(40)
    ]
    for part, some in (("train", rows[:24]), ("validation", rows[24:32]), ("test", rows[32:])):
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in some))
    spec = make_spec(
        task="TokenClassification",
        model={"name": str(shallow)},
        dataset={
            "files": {part: f"{part}.jsonl" for part in ("train", "validation", "test")},
            "textColumns": None,
            "labelColumn": None,
            "tokensColumn": "tokens",
            "tagsColumn": "tags",
        },
        objective={"metric": "f1_micro"},
        hyperparameters={"epochs": 4, "batchSize": 4},
        searchSpaces=[{"learningRate": {"values": [3e-3]}}],
    )
    run_study(spec, prepare(spec, tmp_path), tmp_path / "study")
    assert main(["predict", str(tmp_path / "study"), str(tmp_path / "test.jsonl")]) == 0
    for one, row in zip(lines(capsys), rows[32:], strict=True):
        (entity,) = one["entities"]
        assert (entity["text"], entity["start"]) == (row["tokens"][1], 5)
    found = load_predictor(tmp_path / "study").predict(["call x now!"])
    assert found[0].entities is not None, "texts are read too"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "rows.csv"], "MODEL: must be the folder of a model, or of a study"),
        (["STUDY", "rows.txt"], "FILE: must end in .csv"),
        (["STUDY", "none.csv"], "FILE: must be a file that exists"),
        (["STUDY", "rows.csv"], "--text-column: must name a column of the data (got text; the columns are: a, b)"),
        (["STUDY", "rows.csv", "--text-column", "A"], "is a meant?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str],
    message: str,
    single: Ended,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.csv", "rows.txt"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    given = [str(single.folder) if each == "STUDY" else each for each in arguments]
    assert main(["predict", *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_evaluate_measures_what_the_study_measured_on_its_test_rows(
    study: Ended, capsys: Capture
) -> None:
    assert main(["evaluate", str(study.folder), str(study.test_file), "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 40
    for name, value in study.tested.items():
        assert found["metrics"][name] == pytest.approx(value, rel=1e-4)
    for part in ("task", "rows", "confusion"):
        assert found["report"].get(part) == study.report.get(part)
    theirs, ours = study.report, found["report"]
    sure, known = (
        {one["row"]: one["prediction"] for one in each.pop("mistakes")} for each in (theirs, ours)
    )
    assert sure.keys() == known.keys()
    assert flat(known) == pytest.approx(flat(sure), abs=1e-4)
    assert flat(ours) == pytest.approx(flat(theirs), abs=1e-3)
    objective = next(iter(found["metrics"]))
    assert objective in study.tested
    low, high = ours["intervals"][objective]
    assert low <= found["metrics"][objective] <= high


def test_evaluate_tells_of_slices_and_of_rows_it_leaves_out(
    single: Ended, tmp_path: Path, capsys: Capture
) -> None:
    lines = [
        f"{json.dumps({'words': row['text'], 'kind': row['library'], 'half': n % 2})}\n"
        for n, row in enumerate(single.rows)
    ]
    lines += ['{"words": "of another library", "kind": "none of them", "half": 1}\n']
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(lines))
    asked = ["evaluate", str(single.folder), str(path), "--slice", "half"]
    assert main([*asked, "--text-column", "words", "--label-column", "kind"]) == 0
    told = capsys.readouterr().out
    assert "40 rows" in told
    assert "By label" in told
    assert "half 0" in told
    assert "half 1" in told
    assert "1 of 41 given rows have labels that no training row has and are left out" in told
    assert main(asked) == 2
    err = capsys.readouterr().err
    assert "--text-column: must name a column of the data (got text; the columns are:" in err
    assert main([*asked, "--text-column", "words", "--label-column", "Kind"]) == 2
    err = capsys.readouterr().err
    assert "--label-column: must name a column of the data (got Kind" in err


def test_a_single_model_is_exported_as_onnx_that_says_the_same(
    single: Ended, predictor: Predictor, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "model.onnx"
    assert main(["export", str(single.folder), "--onnx", str(path)]) == 0
    assert "outputs differ from PyTorch by at most" in capsys.readouterr().err
    (model,) = predictor.members
    inputs = model.tokenizer(["one text", "another, longer one"], padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(inputs))[0]
    expected = predictor.logits([["one text", "another, longer one"]])
    np.testing.assert_allclose(found, expected, atol=1e-4)
