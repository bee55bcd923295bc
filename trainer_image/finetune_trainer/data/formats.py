"""CSV, JSON lines and Parquet: columns out of a file, with broken rows skipped and counted."""

import csv
import io
import json
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Python's default refuses texts over 128 KiB


class Unreadable(Exception):
    """The file as a whole is not what its suffix says."""


class WrongColumn(Exception):
    """A column that the study names cannot be read; `name` is as the study has it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class MissingColumn(WrongColumn):
    """A column the study names is not in the data."""

    def __init__(self, name: str, available: Sequence[str]) -> None:
        shown = ", ".join(map(_quoted, available[:20])) + (", …" if len(available) > 20 else "")
        super().__init__(
            name, f"must name a column of the data (got {_quoted(name)}, there are: {shown})"
        )


class AmbiguousColumn(WrongColumn):
    """A column the study names is in the data more than once."""

    def __init__(self, name: str) -> None:
        super().__init__(
            name, f"must name one column of the data (got {name}, which is there more than once)"
        )


def _quoted(name: str) -> str:
    """A column's name, in quotes where it could not be told apart without."""
    return name if name and name == name.strip() and "," not in name else repr(name)


def in_composed_form(name: str) -> str:
    """The name in Unicode's composed form (NFC): what looks alike is alike."""
    return unicodedata.normalize("NFC", name)


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


def _position(header: Sequence[str], name: str) -> int:
    """Where the column is. Raises MissingColumn, AmbiguousColumn."""
    composed = in_composed_form(name)
    found = [at for at, column in enumerate(header) if in_composed_form(column) == composed]
    if not found:
        raise MissingColumn(name, header)
    if len(found) > 1:
        raise AmbiguousColumn(name)
    return found[0]


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
                if name in record.twice:
                    raise AmbiguousColumn(name)
                rows.columns[name].append(record.value(name))
    if keys:
        for name in wanted:
            _position(list({in_composed_form(key): None for key in keys}), name)
    return rows


class _Record(dict[str, Any]):
    """A JSON object; `twice` has the keys that it has more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice: frozenset[str] = frozenset()
        if len(self) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.twice = frozenset(key for key, count in counts.items() if count > 1)

    def value(self, name: str) -> Any:
        """What it has under that name, in whatever form its letters are; None if nothing."""
        if name in self or name.isascii():
            return self.get(name)
        composed = in_composed_form(name)
        return next((self[key] for key in self if in_composed_form(key) == composed), None)


def _json_object(line: str) -> _Record | None:
    try:
        record = json.loads(line, object_pairs_hook=_Record)
    except ValueError:
        return None
    return record if isinstance(record, _Record) and is_unicode(line) else None


def read_parquet(stream: IO[bytes], wanted: Sequence[str]) -> FileRows:
    """Columns of a Parquet file."""
    try:
        file = pq.ParquetFile(stream)
        there = file.schema_arrow.names
        names = [there[_position(there, name)] for name in wanted]
        table = file.read(columns=names)
    except pa.ArrowInvalid as error:
        raise Unreadable(f"is not a Parquet file: {error}") from error
    return FileRows(
        {name: table.column(own).to_pylist() for name, own in zip(wanted, names, strict=True)}
    )


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
