"""Files are read as they are; a broken row costs itself and nothing else."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_trainer.data.formats import (
    FileRows,
    Layout,
    MissingColumn,
    Unreadable,
    read_csv,
    read_json,
    read_parquet,
    read_tsv,
    reader_for,
)

WANTED = ("text", "label")


def read(reader: Callable[..., FileRows], content: str | bytes) -> FileRows:
    data = content.encode() if isinstance(content, str) else content
    return reader(io.BytesIO(data), WANTED)


def lines_of(rows: FileRows) -> list[int]:
    return [row.line for row in rows.unread]


def pairs(rows: FileRows) -> list[tuple[Any, ...]]:
    return list(zip(*rows.columns.values(), strict=True))


def test_csv_columns_are_found_by_name_whatever_their_order() -> None:
    rows = read(read_csv, '\ufefflabel,id,text\na,1,"two\nlines, and ""quotes"""\n\nb,2,plain\n')
    assert pairs(rows) == [('two\nlines, and "quotes"', "a"), ("plain", "b")]
    assert rows.unread == []


def test_csv_quote_that_never_closes_costs_one_line() -> None:
    rows = read(read_csv, 'text,label\none,a\n"two,b\nthree,c\nfour,d\n')
    assert pairs(rows) == [("one", "a"), ("three", "c"), ("four", "d")]
    assert lines_of(rows) == [3]


def test_csv_quote_that_closes_in_a_later_row_costs_one_line() -> None:
    rows = read(read_csv, 'text,label\n"one,a\n"two, too",b\n"three",c\n')
    assert pairs(rows) == [("two, too", "b"), ("three", "c")]
    assert lines_of(rows) == [2]


@pytest.mark.parametrize("broken", ["too,many,fields", "few", '"text" trailing,a'])
def test_csv_row_of_another_shape_is_skipped_and_counted(broken: str) -> None:
    rows = read(read_csv, f"text,label\none,a\n{broken}\ntwo,b\n")
    assert pairs(rows) == [("one", "a"), ("two", "b")]
    assert lines_of(rows) == [3]


def test_csv_row_that_is_not_utf8_is_skipped_and_counted() -> None:
    rows = read(read_csv, b"text,label\none,a\nna\xefve,b\ntwo,c\n")
    assert pairs(rows) == [("one", "a"), ("two", "c")]
    assert lines_of(rows) == [3]


def test_csv_field_longer_than_pythons_default_limit() -> None:
    text = "word " * 40_000
    assert pairs(read(read_csv, f"text,label\n{text},a\n")) == [(text, "a")]


def test_tsv() -> None:
    assert pairs(read(read_tsv, "text\tlabel\na, b\tc\n")) == [("a, b", "c")]


def test_json_lines_that_are_no_objects_are_skipped_and_counted() -> None:
    lines = ['{"text": "one", "label": ["a"]}', "{broken", "[1]", "", '{"text": "two"}']
    lines.append('{"text": "\\ud800", "label": []}')
    rows = read(read_json, "\n".join(lines))
    assert pairs(rows)[:2] == [("one", ["a"]), ("two", None)]
    assert lines_of(rows) == [2, 3]


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
    [(read_csv, "text,class,id\n"), (read_json, '{"text": "a", "class": "b", "id": 1}')],
)
def test_missing_column_names_those_there_are(
    reader: Callable[..., FileRows], content: str
) -> None:
    with pytest.raises(MissingColumn, match="got label; the columns are: text, class, id"):
        read(reader, content)


# What a file is, whatever its name says.


def of(name: str, content: str | bytes, **layout: Any) -> FileRows:
    data = content.encode() if isinstance(content, str) else content
    reader = reader_for(name)
    assert reader is not None
    return reader(io.BytesIO(data), WANTED, Layout(**layout))


TABLE = "text,label\nein Gruß,grün\nein Wort,blau\n"
ROWS = [("ein Gruß", "grün"), ("ein Wort", "blau")]
OBJECTS = [{"text": text, "label": label} for text, label in ROWS]


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32", "ISO-8859-1", "windows-1252", "cp437"])
@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_a_named_encoding_is_read(encoding: str, kind: str) -> None:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in OBJECTS)
    text = {"csv": TABLE, "jsonl": lines, "json": json.dumps(OBJECTS, ensure_ascii=False)}[kind]
    assert pairs(of(f"rows.{kind}", text.encode(encoding), encoding=encoding)) == ROWS


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.jsonl.gz", "ROWS.JSON.GZ", "rows.tsv.gz"])
def test_compressed_files_are_read(name: str) -> None:
    text = {
        "csv": TABLE,
        "tsv": TABLE.replace(",", "\t"),
        "jsonl": "\n".join(map(json.dumps, OBJECTS)),
        "json": json.dumps(OBJECTS),
    }[name.lower().split(".")[1]]
    packed = gzip.compress(text.encode())
    assert pairs(of(name, packed)) == ROWS
    for wrong in (text.encode(), packed[:-9], packed[:20]):
        with pytest.raises(Unreadable, match="is not a complete gzip file"):
            of(name, wrong)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "rows.csv",
            gzip.compress(b"text,label", mtime=0),
            r"compressed with gzip: give it a name .* \.gz",
        ),
        ("rows.jsonl", gzip.compress(b"{}", mtime=0), "compressed with gzip"),
        ("rows.csv", b"PK\x03\x04 and so on", "a zip archive, or a spreadsheet"),
        (
            "rows.csv",
            TABLE.encode("utf-16"),
            "is UTF-16: set spec.dataset.files.encoding to UTF-16",
        ),
        ("rows.json", json.dumps(OBJECTS).encode("utf-32"), "is UTF-32"),
        ("rows.csv", TABLE.replace(",", ";"), "has ';' between its columns"),
        ("rows.csv", TABLE.replace(",", "\t"), r"has '\\t' between its columns"),
        ("rows.tsv", TABLE, "has ',' between its columns: set spec.dataset.files.delimiter to ','"),
        ("rows.csv", "", "is empty"),
        ("rows.json", "[{}, ", "begins like a JSON array but is not one"),
        ("rows.json", '{"version": 1, "data": [{"text": "a"}]}', "with a list under 'data'"),
        ("rows.json", '{\n  "text": "a",\n  "label": "b"\n}', "is one JSON object: it must have"),
        ("rows.parquet", b"PAR1 and no more", "is not a Parquet file"),
    ],
)
def test_a_file_that_is_something_else_is_called_by_its_name(
    name: str, content: str | bytes, says: str
) -> None:
    with pytest.raises(Unreadable, match=says):
        of(name, content)


def test_an_encoding_that_is_not_that_of_the_file_is_refused() -> None:
    with pytest.raises(Unreadable, match=r"is not ASCII, as spec\.dataset\.files\.encoding says"):
        of("rows.csv", TABLE, encoding="ASCII")


def test_columns_are_named_for_files_without_a_header() -> None:
    content = "ein Wort;blau;1\nein Gruß;grün;2\n"
    rows = of("rows.csv", content, delimiter=";", header=("text", "label", "id"))
    assert pairs(rows) == [("ein Wort", "blau"), ("ein Gruß", "grün")]


def test_a_first_line_that_names_the_separator_is_no_header() -> None:
    assert pairs(of("rows.csv", "sep=;\n" + TABLE.replace(",", ";"))) == ROWS
    assert pairs(of("rows.csv", '"sep=,"\n' + TABLE)) == ROWS
    assert pairs(of("rows.csv", "sep=,\n" + TABLE)) == ROWS


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_array_is_read_and_its_other_elements_counted(indent: int | None) -> None:
    elements = [OBJECTS[0], "text", OBJECTS[1], ["a"], {"text": "three"}]
    rows = of("rows.json", json.dumps(elements, indent=indent))
    assert pairs(rows) == [*ROWS, ("three", None)]
    found = [(row.line, row.why) for row in rows.unread]
    assert found == [(2, "not a JSON object"), (4, "not a JSON object")]


def test_each_row_that_cannot_be_read_says_why() -> None:
    content = 'text,label\none,a\n1,two,b\nna\udcefve,c\n"x" y,d\nfive,e\n'
    rows = of("rows.csv", content.encode("utf-8", "surrogateescape"), label="label")
    assert pairs(rows) == [("one", "a"), ("five", "e")]
    whys = [row.why for row in rows.unread]
    assert whys[:2] == ["3 fields where the header has 2", "bytes that are not UTF-8"]
    assert whys[2] == 'quotes inside a quoted field must be doubled ("")'
    assert [row.label for row in rows.unread] == [None, "c", None]


def test_deeply_nested_json_is_no_row_and_no_crash() -> None:
    deep = "[" * 100_000
    rows = of("rows.jsonl", f'{{"text": "a", "label": "b"}}\n{{"text": {deep}\n')
    assert (pairs(rows), lines_of(rows)) == ([("a", "b")], [2])
    with pytest.raises(Unreadable, match="begins like a JSON array"):
        of("rows.json", deep)
