"""What looks alike is alike: cells and columns mean the same, in whatever format and spelling they come."""

import io
import json
import unicodedata
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.dataset import Dataset
from finetune_api.tasks import Task
from finetune_trainer.cells.words import group_of, is_yes, name_of
from finetune_trainer.data.formats import (
    AmbiguousColumn,
    FileRows,
    MissingColumn,
    read_csv,
    read_json,
    read_parquet,
    read_tsv,
)
from finetune_trainer.data.labels import usable_rows
from finetune_trainer.data.load import RawRows
from finetune_trainer.data.steps import Account
from finetune_trainer.errors import DataError

CAFE = "café"
DECOMPOSED = unicodedata.normalize("NFD", CAFE)


def labels(task: Task, *cells: Any, separator: str | None = None) -> list[Any]:
    """What a label column with these cells says."""
    files = {"train": "train.csv"}
    column = {"textColumns": ["text"], "labelColumn": "label", "labelSeparator": separator}
    dataset = Dataset.model_validate({"files": files, **column})
    texts = (["some text"] * len(cells),)
    raw = RawRows("spec.dataset.files.train", "train", texts, (list(cells),), [None] * len(cells))
    return usable_rows(raw, task, dataset, Account()).labels


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        ((0, 0.0, -0.0, "0", "0.0", "0.00", "-0.0", " 0.0 "), "0"),
        ((-12, -12.0, "-12", "-12.0"), "-12"),
        ((10, 10.0, "10.0"), "10"),
        ((CAFE, DECOMPOSED, f" {DECOMPOSED} "), CAFE),
    ],
)
def test_the_same_name_is_one_class(cells: tuple[Any, ...], name: str) -> None:
    assert {name_of(cell) for cell in cells} == {name}


@pytest.mark.parametrize("name", ["007", "00.0", "1.5", "1.", ".0", "1.0.0", "v1.0", "1e0", "٣.0"])
def test_what_only_looks_like_a_whole_number_stays_as_it_is(name: str) -> None:
    assert name_of(name) == name


def test_bytes_are_the_text_that_they_are() -> None:
    assert labels("SingleLabel", b"bill", CAFE.encode()) == ["bill", CAFE]
    assert labels("MultiLabel", b'["a"]', b'["b"]') == [("a",), ("b",)]
    assert is_yes(b"yes", "field")
    assert group_of(b"one") == "one"


@pytest.mark.parametrize(
    "ask",
    [
        lambda cell: labels("SingleLabel", cell),
        lambda cell: is_yes(cell, "spec.dataset.labelColumns[0]"),
        group_of,
    ],
    ids=["label", "yes or no", "group"],
)
def test_bytes_that_are_no_text_are_refused(ask: Callable[[bytes], Any]) -> None:
    with pytest.raises(DataError, match=r"^spec\.dataset\.\S+: .*bytes that are not UTF-8"):
        ask(b"\xff\xfe")


@pytest.mark.parametrize(
    "number", [1e39, -1e300, "1e300", 10**400, "inf"], ids=lambda n: str(n)[:6]
)
def test_a_target_that_float32_cannot_hold_is_refused(number: Any) -> None:
    with pytest.raises(DataError, match=r"^spec\.dataset\.labelColumn: must hold"):
        labels("Regression", 1.0, number)


def test_a_target_that_float32_can_hold_is_taken() -> None:
    assert labels("Regression", 3.4e38, "-3.4e38") == [3.4e38, -3.4e38]


@pytest.mark.parametrize(
    "written",
    [
        '["bill", "urgent"]',
        "['bill', 'urgent']",
        " [ 'urgent' , \"bill\" ] ",
        "['bill',\n'urgent']",
    ],
)
@pytest.mark.parametrize("separator", [None, ","])
def test_a_list_that_is_written_as_text_is_that_list(written: str, separator: str | None) -> None:
    assert labels("MultiLabel", written, separator=separator) == [("bill", "urgent")]


@pytest.mark.parametrize(
    "written", ["['bill' 'urgent']", "['bill', urgent]", '["bill", ["a"]]', "['a]"]
)
def test_what_begins_like_a_list_and_is_none_is_refused(written: str) -> None:
    with pytest.raises(DataError, match=r"^spec\.dataset\.labelColumn: .*must be JSON"):
        labels("MultiLabel", written, separator=",")


def test_labels_may_have_brackets() -> None:
    assert labels("MultiLabel", "[a],[b]", "[c]", separator=",") == [("[a]", "[b]"), ("[c]",)]
    assert labels("SingleLabel", "['a']", "[b]") == ["['a']", "[b]"]


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 1, 0], [1, 0, 0]],
        [[0.0, 0.0], [0.0, 1.0]],
        [[True, False], [False, False]],
        ["[0, 1]", "[1, 1]"],
        [["0", "1"], ["1", "0"]],
    ],
)
def test_yes_and_no_for_each_label_are_no_labels(rows: list[Any]) -> None:
    with pytest.raises(DataError, match=r"labelColumn: .*name them in labelColumns"):
        labels("MultiLabel", *rows)


def test_labels_called_0_and_1_are_labels() -> None:
    assert labels("MultiLabel", [0], [0, 1], []) == [("0",), ("0", "1"), ()]
    assert labels("MultiLabel", [0], [1]) == [("0",), ("1",)]
    assert labels("MultiLabel", [0, 2], [1, 2]) == [("0", "2"), ("1", "2")]


# Columns.


def csv_of(header: list[str], row: list[str]) -> bytes:
    return f"{','.join(header)}\n{','.join(row)}\n".encode()


def tsv_of(header: list[str], row: list[str]) -> bytes:
    return csv_of(header, row).replace(b",", b"\t")


def json_of(header: list[str], row: list[str]) -> bytes:
    pairs = (
        f"{json.dumps(key)}: {json.dumps(cell)}" for key, cell in zip(header, row, strict=True)
    )
    return f"{{{', '.join(pairs)}}}\n".encode()


def parquet_of(header: list[str], row: list[str]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array([cell]) for cell in row], names=header), stream)
    return stream.getvalue()


FORMATS: dict[str, tuple[Callable[..., FileRows], Callable[[list[str], list[str]], bytes]]] = {
    "csv": (read_csv, csv_of),
    "tsv": (read_tsv, tsv_of),
    "json": (read_json, json_of),
    "parquet": (read_parquet, parquet_of),
}


def columns(kind: str, header: list[str], row: list[str], *wanted: str) -> dict[str, list[Any]]:
    read, write = FORMATS[kind]
    return read(io.BytesIO(write(header, row)), wanted).columns


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("asked", "there"), [(CAFE, DECOMPOSED), (DECOMPOSED, CAFE)])
def test_a_column_is_found_however_its_letters_are_composed(
    kind: str, asked: str, there: str
) -> None:
    assert columns(kind, ["text", there], ["a", "b"], "text", asked) == {
        "text": ["a"],
        asked: ["b"],
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_that_is_there_twice_is_refused_by_its_name(kind: str) -> None:
    with pytest.raises(AmbiguousColumn, match="got label, which is there more than once"):
        columns(kind, ["text", "label", "label"], ["a", "b", "c"], "text", "label")


@pytest.mark.parametrize("kind", FORMATS)
def test_other_columns_may_be_there_twice(kind: str) -> None:
    found = columns(kind, ["text", "note", "label", "note"], ["a", "b", "c", "d"], "text", "label")
    assert found == {"text": ["a"], "label": ["c"]}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_with_blanks_around_its_name_is_shown_so(kind: str) -> None:
    with pytest.raises(MissingColumn, match=r"got label; the columns are: text, ' label'"):
        columns(kind, ["text", " label"], ["a", "b"], "text", "label")
