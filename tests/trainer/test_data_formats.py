"""Files are read as they are; a broken row costs itself and nothing else."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_trainer.data.formats import (
    FileRows,
    MissingColumn,
    Unreadable,
    read_csv,
    read_json_lines,
    read_parquet,
    read_tsv,
)

WANTED = ("text", "label")


def read(reader: Callable[..., FileRows], content: str | bytes) -> FileRows:
    data = content.encode() if isinstance(content, str) else content
    return reader(io.BytesIO(data), WANTED)


def pairs(rows: FileRows) -> list[tuple[Any, ...]]:
    return list(zip(*rows.columns.values(), strict=True))


def test_csv_columns_are_found_by_name_whatever_their_order() -> None:
    rows = read(read_csv, '\ufefflabel,id,text\na,1,"two\nlines, and ""quotes"""\n\nb,2,plain\n')
    assert pairs(rows) == [('two\nlines, and "quotes"', "a"), ("plain", "b")]
    assert rows.broken_lines == []


def test_csv_quote_that_never_closes_costs_one_line() -> None:
    rows = read(read_csv, 'text,label\none,a\n"two,b\nthree,c\nfour,d\n')
    assert pairs(rows) == [("one", "a"), ("three", "c"), ("four", "d")]
    assert rows.broken_lines == [3]


def test_csv_quote_that_closes_in_a_later_row_costs_one_line() -> None:
    rows = read(read_csv, 'text,label\n"one,a\n"two, too",b\n"three",c\n')
    assert pairs(rows) == [("two, too", "b"), ("three", "c")]
    assert rows.broken_lines == [2]


@pytest.mark.parametrize("broken", ["too,many,fields", "few", '"text" trailing,a'])
def test_csv_row_of_another_shape_is_skipped_and_counted(broken: str) -> None:
    rows = read(read_csv, f"text,label\none,a\n{broken}\ntwo,b\n")
    assert pairs(rows) == [("one", "a"), ("two", "b")]
    assert rows.broken_lines == [3]


def test_csv_row_that_is_not_utf8_is_skipped_and_counted() -> None:
    rows = read(read_csv, b"text,label\none,a\nna\xefve,b\ntwo,c\n")
    assert pairs(rows) == [("one", "a"), ("two", "c")]
    assert rows.broken_lines == [3]


def test_csv_field_longer_than_pythons_default_limit() -> None:
    text = "word " * 40_000
    assert pairs(read(read_csv, f"text,label\n{text},a\n")) == [(text, "a")]


def test_tsv() -> None:
    assert pairs(read(read_tsv, "text\tlabel\na, b\tc\n")) == [("a, b", "c")]


def test_json_lines_that_are_no_objects_are_skipped_and_counted() -> None:
    lines = ['{"text": "one", "label": ["a"]}', "{broken", "[1]", "", '{"text": "two"}']
    lines.append('{"text": "\\ud800", "label": []}')
    rows = read(read_json_lines, "\n".join(lines))
    assert pairs(rows)[:2] == [("one", ["a"]), ("two", None)]
    assert rows.broken_lines == [2, 3]


def test_parquet_keeps_types(tmp_path: Path) -> None:
    table = pa.table({"label": [1, None], "text": ["one", "two"], "more": [0.5, 0.5]})
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = read(read_parquet, (tmp_path / "rows.parquet").read_bytes())
    assert pairs(rows) == [("one", 1), ("two", None)]


def test_file_that_is_no_parquet_is_refused() -> None:
    with pytest.raises(Unreadable, match="is not a Parquet file"):
        read(read_parquet, "text,label\n")


@pytest.mark.parametrize(
    ("reader", "content"),
    [(read_csv, "text,class,id\n"), (read_json_lines, '{"text": "a", "class": "b", "id": 1}')],
)
def test_missing_column_names_those_there_are(
    reader: Callable[..., FileRows], content: str
) -> None:
    with pytest.raises(MissingColumn, match="got label, there are: text, class, id"):
        read(reader, content)
