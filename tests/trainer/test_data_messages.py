"""What is lost or wrong in the data is told: which value, in how many rows, on which lines, and how to write it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.dataset import Dataset
from finetune_trainer.cells.numbers import plain
from finetune_trainer.cells.places import Places, WrongCell, read_each
from finetune_trainer.cells.words import with_one_spelling
from finetune_trainer.data import PreparedData
from finetune_trainer.data.formats import is_near
from finetune_trainer.data.labels import usable_rows
from finetune_trainer.data.load import RawRows, load
from finetune_trainer.data.steps import Account
from finetune_trainer.errors import DataError
from tests.trainer.conftest import MakeSpec
from tests.trainer.data_files import prepare_rows

FIELD = "spec.dataset.files.train"


def rows_of(cells: Sequence[Any], part: str = "train") -> RawRows:
    """Rows of a CSV with a header: the first is on line 2."""
    places = Places(range(2, len(cells) + 2), "line", f"{part}.csv")
    texts, groups = ["some text"] * len(cells), [None] * len(cells)
    return RawRows(FIELD, part, (texts,), ([*cells],), groups, places)


def read(task: Any, *cells: Any, separator: str | None = None) -> tuple[list[Any], list[str]]:
    """The labels of a column with these cells, and the warnings."""
    column = {"textColumns": ["text"], "labelColumn": "label", "labelSeparator": separator}
    dataset = Dataset.model_validate({"files": {"train": "train.csv"}, **column})
    account = Account()
    return usable_rows(rows_of(cells), task, dataset, account).labels, account.warnings


def loaded(
    folder: Path, files: dict[str, Any], **changes: Any
) -> tuple[dict[str, RawRows], list[str]]:
    """The rows that files in `folder` have, and the warnings."""
    columns = {"textColumns": ["text"], "labelColumn": "label", **changes}
    account = Account()
    return load(
        Dataset.model_validate({"files": files, **columns}), folder, account
    ), account.warnings


def write_lines(path: Path, objects: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in objects))
    return path.name


# Labels that are lost.


@pytest.mark.parametrize("word", ["nan", "NaN", "NAN"])
def test_a_class_that_is_read_as_missing_is_named_with_its_lines(word: str) -> None:
    found, warnings = read("SingleLabel", word, "cats", "dogs", word)
    assert found == ["cats", "dogs"]
    assert warnings == [
        f"{FIELD}: 2 of 4 train rows (50.0%) say '{word}' as their label, which is read as no label, and are left out "
        "(lines 2, 5); rename it if it is a class"
    ]


@pytest.mark.parametrize("empty", ["", "  ", None, float("nan")])
def test_rows_that_plainly_have_no_label_are_counted_and_never_refused(empty: Any) -> None:
    found, warnings = read("SingleLabel", *["a", "b"], *[empty] * 8)
    assert found == ["a", "b"]
    lines = "lines 4, 5, 6, 7, 8, …"
    assert warnings == [
        f"{FIELD}: 8 of 10 train rows (80.0%) have no label and are left out ({lines})"
    ]


def test_a_label_in_a_list_that_is_read_as_missing_is_named_though_its_row_stays() -> None:
    found, warnings = read("MultiLabel", ["a", "nan"], ["b"], ["nan"])
    assert found == [("a",), ("b",), ()]
    (warning,) = warnings
    assert (
        "2 of 3 train rows (66.7%) say 'nan' as their label, which is read as no label (lines 2, 4)"
        in warning
    )
    assert read("MultiLabel", "a;nan", "b;a", separator=";")[1]


def test_nan_is_no_surprise_where_targets_are_numbers() -> None:
    found, warnings = read("Regression", 1, "nan", "", 2)
    assert found == [1.0, 2.0]
    assert warnings == [
        f"{FIELD}: 2 of 4 train rows (50.0%) have no label and are left out (lines 3, 4)"
    ]


def test_a_separator_that_no_row_has_is_told_with_the_one_that_they_have() -> None:
    field = "spec.dataset.labelSeparator"
    escaped = read("MultiLabel", "a|b", "b", "", "b|c", separator="\\|")[1]
    assert escaped[0] == f"{field}: '\\|' is in none of 3 rows with labels; '|' is in 2"
    other = read("MultiLabel", "a, b", "b", separator=";")[1]
    assert other == [f"{field}: ';' is in none of 2 rows with labels; ',' is in 1"]
    single = read("MultiLabel", "a", "b", separator=";")[1]
    assert single == [f"{field}: ';' is in none of 2 rows with labels, so each has one label"]


@pytest.mark.parametrize("cells", [("a;b", "c"), (["a"], ["b"]), ('["a"]', '["b"]')])
def test_a_separator_in_one_row_or_not_needed_is_fine(cells: tuple[Any, ...]) -> None:
    assert read("MultiLabel", *cells, separator=";")[1] == []


# Keys of JSON objects.

NAMED = {"text": "a text", "label": "a"}
OTHERWISE = {"text": "a text", "Label": "b"}


def test_a_key_that_is_nearly_the_column_is_refused_with_its_lines(tmp_path: Path) -> None:
    files = {"train": write_lines(tmp_path / "train.jsonl", [OTHERWISE, NAMED] * 10)}
    says = (
        r"^spec\.dataset\.files\.train: must have the key label in each row: 10 of 20 rows \(50\.0%\) have no key label, "
        r"but Label \(lines 1, 3, 5, 7, 9, …\); rename Label, or accept it with .*maxUnreadable of at least 0\.5 "
    )
    with pytest.raises(DataError, match=says):
        loaded(tmp_path, files)
    rows, warnings = loaded(tmp_path, {**files, "maxUnreadable": 0.5})
    assert rows["train"].labels[0].count(None) == 10
    assert warnings == [
        f"{FIELD}: 10 of 20 rows (50.0%) have no key label, but Label (lines 1, 3, 5, 7, 9, …)"
    ]


def test_a_few_rows_with_such_a_key_are_a_warning(tmp_path: Path) -> None:
    files = {"train": write_lines(tmp_path / "train.jsonl", [*[NAMED] * 99, OTHERWISE])}
    assert loaded(tmp_path, files)[1] == [
        f"{FIELD}: 1 of 100 rows (1.0%) have no key label, but Label (line 100)"
    ]


def test_texts_and_elements_of_an_array_are_told_alike(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([NAMED, {"Text ": "other", "label": "b"}]))
    with pytest.raises(DataError, match=r"have no key text, but Text  \(row 2\)"):
        loaded(tmp_path, {"train": "train.json"})


@pytest.mark.parametrize(
    "rows",
    [
        [NAMED, {"text": "unlabelled"}],
        [NAMED, {"text": "unlabelled", "label": None}],
        [{**NAMED, "labels": ["x"]}, {"text": "unlabelled", "labels": ["y"]}],
        [NAMED, {"text": "unlabelled", "source": "mail"}],
    ],
    ids=["no key", "null", "a column of its own", "another key"],
)
def test_rows_that_are_only_unlabelled_are_no_mistake(tmp_path: Path, rows: list[Any]) -> None:
    assert loaded(tmp_path, {"train": write_lines(tmp_path / "train.jsonl", rows)})[1] == []


def test_names_are_near_if_only_case_marks_or_a_plural_differ() -> None:
    for other in ("Label", "LABEL", " label", "label ", "labels", "la_bel"):
        assert is_near("label", other)
    for other in ("label", "lab", "labelled", "text", ""):
        assert not is_near("label", other)
    assert not is_near("caf\u00e9", "cafe\u0301"), "the same name"


# True and false.

TEXTS = [f"message {row} of the day" for row in range(20)]


def of_format(folder: Path, suffix: str, part: str, labels: Sequence[Any]) -> str:
    texts = [f"{text} for {part}" for text in TEXTS[: len(labels)]]
    path = folder / f"{part}.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": texts, "label": [*labels]}), path)
    elif suffix == "jsonl":
        write_lines(
            path, [{"text": t, "label": label} for t, label in zip(texts, labels, strict=True)]
        )
    else:
        lines = [f"{t},{label}" for t, label in zip(texts, labels, strict=True)]
        path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path.name


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("spelling", [("false", "true"), ("FALSE", "TRUE"), ("False", "True")])
def test_true_is_one_class_in_whatever_format_it_comes(
    tmp_path: Path, suffix: str, spelling: tuple[str, str]
) -> None:
    files = {
        "train": of_format(tmp_path, suffix, "train", [True, False] * 10),
        "validation": of_format(tmp_path, "csv", "validation", [*spelling, spelling[0]]),
    }
    rows, _ = loaded(tmp_path, files)
    assert {*rows["train"].labels[0]} == {*rows["validation"].labels[0]} == {*spelling}


def test_files_of_one_format_keep_their_classes(tmp_path: Path) -> None:
    files = {
        "train": of_format(tmp_path, "jsonl", "train", [True, False] * 10),
        "test": of_format(tmp_path, "jsonl", "test", ["true", "false"]),
    }
    rows, _ = loaded(tmp_path, files)
    assert rows["train"].labels[0][:2] == [True, False]
    assert rows["test"].labels[0] == ["true", "false"]


def test_one_spelling_changes_no_other_cell() -> None:
    assert with_one_spelling([[True, "maybe", None], ["no", "other"]]) == [
        [True, "maybe", None],
        ["no", "other"],
    ]
    assert with_one_spelling([["true", "True"], ["x"]]) == [["true", "True"], ["x"]]
    assert with_one_spelling([[True, False, 1, None], [" true ", "x"]]) == [
        ["true", "false", 1, None],
        ["true", "x"],
    ]


# Rows that are no CSV.


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            '"he said \\"no\\" twice",a',
            'quotes inside a field must be doubled (""), not escaped by a backslash (line 3)',
        ),
        ('some text,"["x"]"', 'quotes inside a quoted field must be doubled ("") (line 3)'),
        ('"some text,a', "a quote that opens a field must be closed at its end (line 3)"),
        ("some, text,a", "3 fields where the header has 2 (line 3)"),
    ],
)
def test_a_row_that_is_no_csv_says_how_to_write_it(tmp_path: Path, row: str, says: str) -> None:
    (tmp_path / "train.csv").write_text(f"text,label\none,a\n{row}\n")
    with pytest.raises(DataError) as error:
        loaded(tmp_path, {"train": "train.csv"})
    assert error.value.message == (
        f"must be readable (got 1 of 2 rows (50.0%) that cannot be read: {says}); correct them, or leave them out "
        "with spec.dataset.files.maxUnreadable of at least 0.5 (it is 0.01)"
    )


# Wrong cells.


def test_wrong_numbers_are_told_with_line_and_count() -> None:
    with pytest.raises(DataError) as error:
        read("Regression", "1", "NA", "3,14", "2", "NA", "NA", "x")
    assert str(error.value) == (
        "spec.dataset.labelColumn: must hold finite numbers with task Regression (got 'NA' on line 3 of train.csv and "
        "in 2 other rows; '3,14' on line 4; 'x' on line 8); only an empty cell or nan counts as missing; "
        "write '3,14' as 3.14"
    )


@pytest.mark.parametrize(
    "written", ["1_000", "1_2", "\u0967\u0968", "0x1F", "1e", "1 000", "infinity"]
)
def test_what_no_file_means_as_a_number_is_none(written: str) -> None:
    with pytest.raises(DataError, match="must hold finite numbers"):
        read("Regression", 1, 2, written)


@pytest.mark.parametrize("written", ["1", "-1.5", "+.5", "5.", " 2 ", "1e-3", "1E+3", "007"])
def test_numbers_as_programs_write_them_are_read(written: str) -> None:
    assert read("Regression", 1, 2, written)[0][-1] == float(written)


@pytest.mark.parametrize("word", ["NA", "N/A", "null", "None", "-", "?", "<NA>"])
def test_words_for_no_number_are_told_what_is_read_as_one(word: str) -> None:
    with pytest.raises(DataError, match=r"; only an empty cell or nan counts as missing$"):
        read("Regression", 1, 2, word)


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("3,14", "3.14"),
        ("1,234.5", "1234.5"),
        ("1.234,5", "1234.5"),
        ("1 234,5", "1234.5"),
        ("1'234.5", "1234.5"),
        ("1,234,567", "1234567"),
        ("1_234", "1234"),
        ("1.234.567", "1234567"),
        ("1,234", "1234 or 1.234"),
        ("-0,5", "-0.5"),
        ("45%", "45"),
        ("$5", "5"),
        ("1.50 €", "1.50"),
        ("\u22125", "-5"),
        ("0x1F", "31"),
        ("True", "1"),
        ("NA", None),
        ("five", None),
        ("3 4", None),
        ("12-05", None),
        ("1.2.3", None),
    ],
)
def test_numbers_for_people_are_shown_as_numbers_for_programs(
    written: str, right: str | None
) -> None:
    assert plain(written) == right


def test_a_number_that_is_too_large_is_told_with_its_line() -> None:
    with pytest.raises(
        DataError, match=r"float32 can hold \(got '1e300' on line 4 of train\.csv\)"
    ):
        read("Regression", 1, 2, "1e300")


def test_other_wrong_cells_are_told_alike(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"got \['a'\] on line 2 of train\.csv and in 1 other row\)"
    ):
        read("SingleLabel", ["a"], "b", ["a"])
    rows = [{"text": f"text {row}", "label": "ab"[row % 2]} for row in range(12)]
    rows[4] = {"text": ["a", "list"], "label": "a"}  # type: ignore[dict-item]  # what is refused
    with pytest.raises(
        DataError, match=r"columns of text \(got \['a', 'list'\] on line 5 of train\.jsonl\)"
    ):
        prepare_rows(make_spec, tmp_path, {"train": rows})


def test_many_different_wrong_cells_are_counted() -> None:
    def refuse(cell: int) -> int:
        raise WrongCell("spec.field", "must be right", str(cell))

    with pytest.raises(DataError) as error:
        read_each(range(10), refuse)
    told = "0 on row 1; 1 on row 2; 2 on row 3; 7 other values"
    assert str(error.value) == f"spec.field: must be right (got {told})"


# Whole columns.


def numbered(labels: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"text": f"message {row} of the day", "label": label} for row, label in enumerate(labels)
    ]


def warnings_of(data: PreparedData, field: str) -> list[str]:
    return [text for text in data.warnings if text.startswith(f"{field}: ")]


def test_a_class_with_a_single_row_is_named(make_spec: MakeSpec, tmp_path: Path) -> None:
    data = prepare_rows(make_spec, tmp_path, {"train": numbered(["a", "b"] * 10 + ["rare"])})
    assert warnings_of(data, "spec.dataset.labelColumn") == [
        "spec.dataset.labelColumn: 1 of 3 classes has a single row (rare), which cannot be both trained on and measured"
    ]


def test_a_column_of_different_values_is_asked_about(make_spec: MakeSpec, tmp_path: Path) -> None:
    rows = numbered([f"id{number}" for number in range(30)])
    with pytest.raises(DataError) as error:
        prepare_rows(make_spec, tmp_path, {"train": rows})
    assert str(error.value) == (
        "spec.dataset.labelColumn: must hold classes that several rows have: label has 30 different values in 30 rows; "
        "is it the right column?"
    )
    loose = {"split": {"stratify": False}}
    spare = [*rows, *numbered(["id0"] * 30)]
    data = prepare_rows(
        make_spec, tmp_path, {"train": spare, "validation": rows, "test": rows}, dataset=loose
    )
    assert warnings_of(data, "spec.dataset.labelColumn") == []
    given = {"train": rows, "validation": rows[:1], "test": rows[1:2]}
    data = prepare_rows(make_spec, tmp_path, given, dataset=loose)
    (warning,) = warnings_of(data, "spec.dataset.labelColumn")
    assert warning.endswith("; is it the right column?")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hyperparameters": {"maxLength": 1024}}, "spec.hyperparameters.maxLength"),
        ({"searchSpaces": [{"maxLength": {"values": [64, 1024]}}]}, "spec.searchSpaces"),
    ],
)
def test_rows_that_the_model_cuts_are_told_where_their_length_is_set(
    make_spec: MakeSpec, tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    rows = numbered(["a", "b"] * 10)
    rows[0]["text"] = "word " * 2000
    data = prepare_rows(make_spec, tmp_path, {"train": rows}, **changes)
    assert warnings_of(data, field) == [
        f"{field}: the model reads {data.max_tokens} tokens at most, so maxLength 1024 is lowered to {data.max_tokens}; "
        "1 of 20 rows are cut off there (the longest has 2002)"
    ]
