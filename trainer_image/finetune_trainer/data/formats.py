"""CSV, JSON lines and Parquet: columns out of a file, with broken rows skipped and counted."""

import csv
import io
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Python's default refuses texts over 128 KiB


class Unreadable(Exception):
    """The file as a whole is not what its suffix says."""


class MissingColumn(Exception):
    """A column the study names is not in the data."""

    def __init__(self, name: str, available: list[str]) -> None:
        shown = ", ".join(available[:20]) + (", …" if len(available) > 20 else "")
        super().__init__(f"must name a column of the data (got {name}, there are: {shown})")
        self.name = name


@dataclass
class FileRows:
    """The wanted columns of a file, and the lines whose rows could not be read."""

    columns: dict[str, list[Any]]
    broken_lines: list[int] = field(default_factory=list)
    """Line numbers, counted from 1."""


class _Lines:
    """The lines of a text file, which can be read again from the second line of the current record."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._ahead: deque[str] = deque()
        self._record: list[str] = []
        self.first_line = 1

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self._record.append(line)
        return line

    def accept(self) -> None:
        """The record is read: go on after it."""
        self.first_line += len(self._record)
        self._record = []

    def skip_first(self) -> None:
        """The record is broken: go on after its first line."""
        self._ahead.extendleft(reversed(self._record[1:]))
        self.first_line += 1
        self._record = []


def _decoded(stream: IO[bytes]) -> io.TextIOWrapper:
    # Bytes that are not UTF-8 survive as lone surrogates; `is_unicode` finds the rows that have some.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogate, so that it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_csv(stream: IO[bytes], wanted: Sequence[str], delimiter: str = ",") -> FileRows:
    """Columns of a CSV file with a header row (RFC 4180).

    A row with another number of fields than the header, with a stray quote or with bytes that are not
    UTF-8 is broken. A quote that never closes costs its own line, not the lines that it would swallow.
    """
    with _decoded(stream) as text:
        lines = _Lines(text)
        try:
            header = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            raise Unreadable(f"has a broken header row: {error}") from error
        lines.accept()
        return _csv_rows(lines, delimiter, header, wanted)


def _csv_rows(lines: _Lines, delimiter: str, header: list[str], wanted: Sequence[str]) -> FileRows:
    positions = [_position(header, name) for name in wanted]
    rows = FileRows({name: [] for name in wanted})
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            record = next(records)
        except StopIteration:
            return rows
        except csv.Error:
            rows.broken_lines.append(lines.first_line)
            lines.skip_first()
            records = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        if len(record) == len(header) and all(is_unicode(record[at]) for at in positions):
            for name, at in zip(wanted, positions, strict=True):
                rows.columns[name].append(record[at])
        elif record:
            rows.broken_lines.append(lines.first_line)
        lines.accept()


def _position(header: list[str], name: str) -> int:
    if name not in header:
        raise MissingColumn(name, header)
    return header.index(name)


def read_json_lines(stream: IO[bytes], wanted: Sequence[str]) -> FileRows:
    """Columns of a file with one JSON object a line; a key that a row lacks is None.

    A line that is not a JSON object in UTF-8 is broken.
    """
    rows = FileRows({name: [] for name in wanted})
    keys: dict[str, None] = {}
    with _decoded(stream) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            record = _json_object(line)
            if record is None:
                rows.broken_lines.append(number)
                continue
            keys |= dict.fromkeys(record)
            for name in wanted:
                rows.columns[name].append(record.get(name))
    if keys:
        for name in wanted:
            _position(list(keys), name)
    return rows


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and is_unicode(line) else None


def read_parquet(stream: IO[bytes], wanted: Sequence[str]) -> FileRows:
    """Columns of a Parquet file."""
    try:
        file = pq.ParquetFile(stream)
        for name in wanted:
            _position(file.schema_arrow.names, name)
        table = file.read(columns=list(wanted))
    except pa.ArrowInvalid as error:
        raise Unreadable(f"is not a Parquet file: {error}") from error
    return FileRows({name: table.column(name).to_pylist() for name in wanted})


def read_tsv(stream: IO[bytes], wanted: Sequence[str]) -> FileRows:
    """As `read_csv`, with tabs between fields."""
    return read_csv(stream, wanted, delimiter="\t")


READERS = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_lines,
    ".parquet": read_parquet,
}
"""The reader for each suffix."""
