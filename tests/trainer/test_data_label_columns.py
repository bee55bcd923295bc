"""A column for each label, and several columns of text."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.errors import DataError
from tests.trainer.conftest import MakeSpec
from tests.trainer.data_files import Row, prepare_rows, texts_of

MULTI = {"task": "MultiLabel", "objective": {"metric": "f1_micro"}}
COLUMNS = ["toxic", "rude", "mild"]


def marked(make_spec: MakeSpec, folder: Path, rows: list[Row], **dataset: Any) -> PreparedData:
    columns = {"labelColumn": None, "labelColumns": COLUMNS, **dataset}
    return prepare_rows(make_spec, folder, {"train": rows}, dataset=columns, **MULTI)


def marks(*values: Any) -> list[Row]:
    """Thirty rows, each with some of `values` in the columns of the labels."""
    return [
        {
            "text": f"comment {row}",
            **{name: values[(row + at) % len(values)] for at, name in enumerate(COLUMNS)},
        }
        for row in range(30)
    ]


def test_label_columns_say_the_same_as_lists_of_labels(make_spec: MakeSpec, tmp_path: Path) -> None:
    rows = marks(1, 0, 0, 1)
    lists = [
        {"text": row["text"], "label": [name for name in COLUMNS if row[name]]} for row in rows
    ]
    columns = marked(make_spec, tmp_path, rows)
    reference = prepare_rows(make_spec, tmp_path, {"train": lists}, **MULTI)
    assert columns.label_names == tuple(COLUMNS)
    assert reference.label_names == ("mild", "rude", "toxic")
    order = [reference.label_names.index(name) for name in COLUMNS]
    for part in ("train", "validation", "test"):
        assert (columns.part(part) == reference.part(part)).all()
    assert (columns.labels == reference.labels[:, order]).all()
    assert columns.labels.any(axis=0).all()


@pytest.mark.parametrize(
    "values",
    [(True, False), ("1", "0"), ("TRUE", "False"), ("Yes", "NO"), (1.0, None), (" yes ", "")],
)
def test_every_spelling_of_yes_and_no(
    make_spec: MakeSpec, tmp_path: Path, values: tuple[Any, Any]
) -> None:
    data = marked(make_spec, tmp_path, marks(*values))
    assert data.labels.tolist() == marked(make_spec, tmp_path, marks(1, 0)).labels.tolist()
    assert data.warnings == ()


def test_label_columns_of_numbers_with_gaps(make_spec: MakeSpec, tmp_path: Path) -> None:
    rows = marks(1.0, None, 0.0)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    dataset = {
        "files": {"train": "rows.parquet"},
        "labelColumn": None,
        "labelColumns": COLUMNS,
    }
    data = prepare(make_spec(dataset=dataset, **MULTI), tmp_path)
    assert data.labels.sum(axis=0).tolist() == [10, 10, 10]


@pytest.mark.parametrize("value", ["maybe", 2, -1, 0.5, "y", [1]])
def test_other_values_are_refused_at_their_column(
    make_spec: MakeSpec, tmp_path: Path, value: Any
) -> None:
    rows = [*marks(1, 0), {"text": "last", "toxic": 1, "rude": value, "mild": 0}]
    with pytest.raises(DataError, match="must hold 1, true or yes; or 0") as error:
        marked(make_spec, tmp_path, rows)
    assert error.value.field == "spec.dataset.labelColumns[1]"
    assert f"got {value!r}" in error.value.message


def test_a_label_column_that_is_not_there_is_named(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="got kind; the columns are: text, toxic, rude, mild"
    ) as error:
        marked(make_spec, tmp_path, marks(1, 0), labelColumns=["toxic", "rude", "kind"])
    assert error.value.field == "spec.dataset.labelColumns[2]"


def test_a_label_that_no_row_has_stays_an_output_and_is_told(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows: list[Row] = [{**row, "rude": 0} for row in marks(1, 0)]
    data = marked(make_spec, tmp_path, rows)
    assert data.label_names == tuple(COLUMNS)
    assert data.labels[:, 1].sum() == 0
    assert data.warnings == ("spec.dataset.labelColumns: no training row has rude",)


def test_label_columns_that_are_the_same_in_every_row_are_refused(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"at least two values .* \(got only \(\)\)") as error:
        marked(make_spec, tmp_path, marks(0))
    assert error.value.field == "spec.dataset.labelColumns"


# Several columns of text.


def messages(**changes: Any) -> list[Row]:
    return [
        {
            "subject": f"subject {row}",
            "body": f"<b>Body</b> {row}",
            "note": f"note {row}",
            "label": "xy"[row % 2],
            **(changes if row == 0 else {}),
        }
        for row in range(12)
    ]


JOINED = {"textColumns": ["subject", "body", "note"], "joinTextColumns": True}


def all_texts(data: PreparedData) -> list[str]:
    return [text for part in ("train", "validation", "test") for text in texts_of(data, part)]


def test_joined_columns_are_one_text_with_the_models_separator_between(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    dataset = {**JOINED, "cleaning": {"stripHtml": True, "lowercase": True}}
    data = prepare_rows(make_spec, tmp_path, {"train": messages()}, dataset=dataset)
    assert len(data.columns) == 1
    assert "subject 3 [SEP] body 3 [SEP] note 3" in all_texts(data)
    separator = data.model.tokenizer().sep_token_id
    assert (data.columns[0].ids == separator).sum() == 24


@pytest.mark.parametrize("cleaning", [{}, {"stripHtml": True}])
def test_a_unit_separator_in_a_text_is_no_separator_token(
    cleaning: dict[str, Any], make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows = messages(subject="sub\x1fject", body="one\ttwo", note="\x1f<br>")
    dataset = {**JOINED, "cleaning": cleaning}
    data = prepare_rows(make_spec, tmp_path, {"train": rows}, dataset=dataset)
    note = [] if cleaning else ["< br >"]
    assert " [SEP] ".join(["subject", "one two", *note]) in all_texts(data)
    alone = {"textColumns": ["subject"]}
    data = prepare_rows(make_spec, tmp_path, {"train": rows}, dataset=alone)
    assert "subject" in all_texts(data)


def test_empty_cells_are_left_out_and_rows_of_them_dropped(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    dataset = {**JOINED, "cleaning": {"stripHtml": True}}
    rows = messages(subject=None, body="<br>", note="only this")
    data = prepare_rows(make_spec, tmp_path, {"train": rows}, dataset=dataset)
    assert "only this" in all_texts(data)
    rows = messages(subject=None, body="<br>", note=" ")
    data = prepare_rows(make_spec, tmp_path, {"train": rows}, dataset=dataset)
    assert len(data.labels) == 11
    told = "1 of 12 train rows (8.3%) have no text and are left out (line 1)"
    assert f"spec.dataset.files.train: {told}" in data.warnings


def test_each_model_has_its_own_separator_and_one_without_has_lines(
    make_spec: MakeSpec, tmp_path: Path, examples: Path
) -> None:
    source, model = examples / "models" / "all-MiniLM-L6-v2", tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).symlink_to(source / name)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    # A text is one word to it, and two letters on two lines are a word that it knows.
    tokenizer["normalizer"] = tokenizer["pre_tokenizer"] = tokenizer["post_processor"] = None
    number = tokenizer["model"]["vocab"].pop("the")
    tokenizer["model"]["vocab"]["s\nb"] = number
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = [{"subject": "s", "body": "b", "label": "xy"[row % 2]} for row in range(12)]
    dataset = {"textColumns": ["subject", "body"], "joinTextColumns": True}
    models = [{"pretrainedModel": {"values": ["model"]}}]
    data = prepare_rows(make_spec, tmp_path, {"train": rows}, dataset=dataset, searchSpaces=models)
    assert texts_of(data, "train")[0] == "s [SEP] b"
    assert data.read_by("model").columns[0].ids.tolist() == [number] * 12
