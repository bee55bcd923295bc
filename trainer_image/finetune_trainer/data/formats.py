"""Reads columns from CSV, JSON and Parquet files; rows that cannot be read are skipped, counted and explained."""

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import PurePosixPath
from typing import IO, Any, TypeAlias, cast

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_trainer.cells.places import Unit
from finetune_trainer.cells.words import in_composed_form, is_unicode

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Python's default refuses texts over 128 KiB


class Unreadable(Exception):
    """The file is not what its suffix says."""


class WrongColumn(Exception):
    """A column that the study names cannot be read; `name` is as the study spells it."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class MissingColumn(WrongColumn):
    """A column that the study names is not in the data; `near` is one with nearly the same name, if there is one."""

    def __init__(self, name: str, available: Sequence[str]) -> None:
        self.available = tuple(available)
        shown = ", ".join(map(quoted, available[:20])) + (", …" if len(available) > 20 else "")
        self.near = next((other for other in available if is_near(name, other)), None)
        super().__init__(
            name, f"must name a column of the data (got {quoted(name)}; the columns are: {shown})"
        )


class AmbiguousColumn(WrongColumn):
    """A column that the study names is in the data more than once."""

    def __init__(self, name: str) -> None:
        super().__init__(
            name, f"must name one column of the data (got {name}, which is there more than once)"
        )


def quoted(name: str) -> str:
    """A column's name, cut to 60 characters, and in quotes if it would be ambiguous without."""
    name = name if len(name) <= 60 else f"{name[:59]}…"
    return (
        name
        if name.isprintable() and name == name.strip() != "" and "," not in name
        else repr(name)
    )


def is_near(name: str, other: str) -> bool:
    """Whether two names differ only in case, in blanks and marks, or in a final s."""
    alike = _skeleton(name) == _skeleton(other) != ""
    return alike and in_composed_form(name) != in_composed_form(other)


@cache
def _skeleton(name: str) -> str:
    letters = "".join(letter for letter in in_composed_form(name).casefold() if letter.isalnum())
    return letters.removesuffix("s")


UTF8 = "UTF-8"

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_ARCHIVES = (
    (b"\x1f\x8b", "compressed with gzip", "give it a name that ends in .gz"),
    (b"PK\x03\x04", "a zip archive, or a spreadsheet", "unpack it, or export it as CSV"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet", "export it as CSV"),
    (b"BZh", "compressed with bzip2", "unpack it"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "unpack it"),
)
"""First bytes of a file, what they show it to be, and what to do about it."""

DELIMITERS = (";", "\t", "|", ",", ":")
"""What may be between the fields of a line."""


@dataclass(frozen=True)
class Layout:
    """How the files of a study are written, as far as the study says."""

    encoding: str = UTF8
    """A codec of Python."""

    delimiter: str | None = None
    """CSV and TSV: the delimiter between fields. Default: by the suffix."""

    header: tuple[str, ...] | None = None
    """CSV and TSV: the names of the columns of files without a header row."""

    label: str | None = None
    """The column of labels, to report which labels are lost with unreadable rows."""


@dataclass(frozen=True)
class Unread:
    """A row that could not be read."""

    line: int
    """Its first line, or in a JSON array its number, counted from 1."""

    why: str
    label: str | None = None
    """The value of its label column, if that can be read."""


@dataclass
class FileRows:
    """The wanted columns of a file, and the rows that could not be read."""

    columns: dict[str, list[Any]]
    unread: list[Unread] = field(default_factory=list)
    numbers: Sequence[int] | None = None
    """The first line of each row, or its number in the file, counted from 1; None if they are 1, 2, 3, …"""

    unit: Unit = "line"
    """What `numbers` and the places of unread rows count."""

    near: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """By the name of a wanted column and a key that is nearly the same: the numbers of the rows (JSON) that have
    this key instead."""

    @property
    def total(self) -> int:
        """Rows of the file, including those that could not be read."""
        return len(self.unread) + len(next(iter(self.columns.values())))


class _Lines:
    """The lines of a text file; it can go back to the second line of the current record."""

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

    @property
    def current(self) -> Sequence[str]:
        """The lines of the current record as far as it was read."""
        return self._record

    def accept(self) -> None:
        """The record is read: go on after it."""
        self.first_line += len(self._record)
        self._record = []

    def skip_first(self) -> None:
        """The record is broken: go on after its first line."""
        self._ahead.extendleft(reversed(self._record[1:]))
        self.first_line += 1
        self._record = []


def marked_encoding(start: bytes) -> str | None:
    """The encoding that the first bytes of a file say it has, if they name another than UTF-8."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), None)


@contextmanager
def _decoded(stream: IO[bytes], layout: Layout) -> Iterator[io.TextIOWrapper]:
    """The text of `stream`. Raises Unreadable if it is not text, or is clearly in another encoding."""
    raw = io.BufferedReader(stream)  # type: ignore[type-var]  # a stream opened for reading is readable
    start = raw.peek(8)[:8]
    for mark, what, remedy in _ARCHIVES:
        if start.startswith(mark):
            raise Unreadable(f"is {what}: {remedy}")
    encoding = layout.encoding
    if encoding == UTF8:
        name = marked_encoding(start)
        if name is not None:
            raise Unreadable(
                f"is {name}: set spec.dataset.files.encoding to {name}, or save it as UTF-8"
            )
        encoding = "utf-8-sig"
    # Bytes that are not UTF-8 survive as lone surrogates; `is_unicode` finds the rows that have any.
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    with io.TextIOWrapper(raw, encoding=encoding, errors=errors, newline="") as text:
        try:
            yield text
        except UnicodeError as error:
            raise Unreadable(
                f"is not {layout.encoding}, as spec.dataset.files.encoding says: {error}"
            ) from error


def read_csv(
    stream: IO[bytes], wanted: Sequence[str], layout: Layout = Layout(), usual: str = ","
) -> FileRows:
    """Columns of a CSV file (RFC 4180) with a header row, unless `layout` names its columns.

    A row cannot be read if it has another number of fields than the header, a stray quote, or bytes that are not
    text. A quote that never closes costs only its own line, not the lines after it. A first line `sep=;`, as
    spreadsheets write it, is not taken for the header.
    """
    (rows,) = csv_chunks(stream, wanted, layout, usual=usual)
    return rows


def csv_chunks(
    stream: IO[bytes],
    wanted: Sequence[str],
    layout: Layout = Layout(),
    size: int = sys.maxsize,
    usual: str = ",",
) -> Iterator[FileRows]:
    """The same in chunks of `size` readable rows, one after another; the last has what is left, perhaps nothing."""
    with _decoded(stream, layout) as text:
        lines, delimiter = _Lines(text), layout.delimiter or usual
        if layout.header is not None:
            yield from _csv_rows(lines, delimiter, layout.header, wanted, layout, size)
            return
        header = _header(lines, delimiter)
        named = _SEPARATOR.fullmatch((",".join(header)).strip())
        if named and lines.first_line == 2:
            delimiter = layout.delimiter or named[1]
            header = _header(lines, delimiter)
        _refuse_other_delimiter(header, delimiter, wanted)
        yield from _csv_rows(lines, delimiter, header, wanted, layout, size)


_SEPARATOR = re.compile(r"sep=(.)")


def _header(lines: _Lines, delimiter: str) -> list[str]:
    try:
        header = next(csv.reader(lines, delimiter=delimiter, strict=True), None)
    except csv.Error as error:
        raise Unreadable(f"has a broken header row: {error}") from error
    if header is None:
        raise Unreadable("is empty")
    lines.accept()
    return header


def _refuse_other_delimiter(header: Sequence[str], delimiter: str, wanted: Sequence[str]) -> None:
    """Raises Unreadable if the header has the wanted columns only with another delimiter."""
    names = {in_composed_form(name) for name in wanted}
    if names & {in_composed_form(name) for name in header}:
        return
    line = delimiter.join(header)
    for other in DELIMITERS:
        if other != delimiter and names <= {
            in_composed_form(each.strip('"')) for each in line.split(other)
        }:
            raise Unreadable(
                f"has {other!r} between its columns: set spec.dataset.files.delimiter to {other!r}"
            )


def _csv_rows(
    lines: _Lines,
    delimiter: str,
    header: Sequence[str],
    wanted: Sequence[str],
    layout: Layout,
    size: int,
) -> Iterator[FileRows]:
    positions = [_position(header, name) for name in wanted]
    label = wanted.index(layout.label) if layout.label in wanted else None
    numbers = array("q")
    rows = FileRows({name: [] for name in wanted}, numbers=numbers)
    records = csv.reader(lines, delimiter=delimiter, strict=True)

    def skip(why: str, record: Sequence[str] = ()) -> None:
        cell = None if label is None or not record else record[positions[label]]
        known = cell if cell is not None and is_unicode(cell) else None
        rows.unread.append(Unread(lines.first_line, why, known))

    while True:
        if len(numbers) == size:
            yield rows
            numbers = array("q")
            rows = FileRows({name: [] for name in wanted}, numbers=numbers)
        try:
            record = next(records)
        except StopIteration:
            yield rows
            return
        except csv.Error as error:
            skip(_why_broken(error, lines.current))
            lines.skip_first()
            records = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        if record and len(record) != len(header):
            skip(f"{_fields(record)} where the header has {len(header)}")
        elif record and not all(is_unicode(record[at]) for at in positions):
            skip("bytes that are not UTF-8", record)
        elif record:
            numbers.append(lines.first_line)
            for name, at in zip(wanted, positions, strict=True):
                rows.columns[name].append(record[at])
        lines.accept()


def _fields(record: Sequence[str]) -> str:
    """How many fields a line has, in words."""
    return f"{len(record)} field{'s' if len(record) > 1 else ''}"


def _why_broken(error: csv.Error, lines: Sequence[str]) -> str:
    """Why the record of these lines is no CSV, and how it should be written."""
    said = str(error)
    if any('\\"' in line for line in (*lines[:1], *lines[-1:])):
        return 'quotes inside a field must be doubled (""), not escaped by a backslash'
    if "unexpected end of data" in said:
        return "a quote that opens a field must be closed at its end"
    if "expected after" not in said:
        return f"characters that CSV does not allow ({said})"
    doubled = 'quotes inside a quoted field must be doubled ("")'
    return doubled if len(lines) == 1 else f"{doubled} and those around it closed"


def _position(header: Sequence[str], name: str) -> int:
    """The position of the column. Raises MissingColumn, AmbiguousColumn."""
    composed = in_composed_form(name)
    found = [at for at, column in enumerate(header) if in_composed_form(column) == composed]
    if not found:
        raise MissingColumn(name, header)
    if len(found) > 1:
        raise AmbiguousColumn(name)
    return found[0]


def read_json(stream: IO[bytes], wanted: Sequence[str], layout: Layout = Layout()) -> FileRows:
    """Columns of a file with one JSON object per line, or with one array of objects; None for a missing key.

    A line, or an element, that is not a JSON object cannot be read.
    """
    with _decoded(stream, layout) as text:
        return _json_rows(text.read(), wanted, _Keys(wanted))


def json_chunks(
    stream: IO[bytes],
    wanted: Sequence[str],
    layout: Layout = Layout(),
    size: int = sys.maxsize,
) -> Iterator[FileRows]:
    """The same in chunks of `size` lines, one after another; an array is one chunk.

    The columns must be in the first chunk.
    """
    keys = _Keys(wanted)
    with _decoded(stream, layout) as text:
        before = 0
        while lines := list(islice(text, size)):
            content = "".join(lines)
            if not before and content.lstrip()[:1] == "[":
                content += text.read()
            yield _json_rows(content, wanted, keys, before)
            before += len(lines)


def _json_rows(content: str, wanted: Sequence[str], keys: "_Keys", before: int = 0) -> FileRows:
    """The rows in `content`, which `before` lines precede; their keys are added to `keys`."""
    numbers = array("q")
    rows = FileRows({name: [] for name in wanted}, numbers=numbers)
    rows.unit = "row" if content.lstrip()[:1] == "[" else "line"
    for number, record, why in _records(content):
        if record is None:
            rows.unread.append(Unread(before + number, why))
            continue
        keys.add(record, before + number)
        numbers.append(before + number)
        for name in wanted:
            if name in record.twice:
                raise AmbiguousColumn(name)
            rows.columns[name].append(record.value(name))
    if keys.names:
        for name in wanted:
            _position(list({in_composed_form(key): None for key in keys.names}), name)
    rows.near = keys.instead
    return rows


class _Keys:
    """The keys of a file's objects, and those that some have instead of a wanted one."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self.names: dict[str, None] = {}
        self._near: dict[str, list[str]] = {name: [] for name in wanted}
        self._instead: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._beside: set[tuple[str, str]] = set()

    def add(self, record: "_Record", number: int) -> None:
        """Count the keys of one object."""
        for key in record:
            if key not in self.names:
                self.names[key] = None
                for name, near in self._near.items():
                    if key not in self._near and is_near(name, key):
                        near.append(key)
        for name, near in self._near.items():
            for key in near:
                if key in record:
                    if record.has(name):
                        self._beside.add((name, key))
                    else:
                        self._instead[name, key].append(number)

    @property
    def instead(self) -> dict[tuple[str, str], list[int]]:
        """For each wanted name and a key like it: the numbers of the objects with that key only.

        A key that some object has beside the wanted one is another column.
        """
        return {which: rows for which, rows in self._instead.items() if which not in self._beside}


def _records(content: str) -> Iterator[tuple[int, "_Record | None", str]]:
    """The number of each row from 1 (in an array: of the element), its object, and why it has none.

    Raises Unreadable for an array that does not end, and for a single object instead of many.
    """
    opening = content.lstrip()[:1]
    if opening == "[":
        try:
            elements = json.loads(content, object_pairs_hook=_Record)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"begins like a JSON array but is not one: {error}") from error
        for number, element in enumerate(elements, start=1):
            yield number, *_row_of(element)
        return
    if opening == "{":
        _refuse_one_object(content)
    for number, line in enumerate(io.StringIO(content), start=1):
        if line.strip():
            yield number, *_json_object(line)


def _refuse_one_object(content: str) -> None:
    """Raises Unreadable if the rows are in a list inside one object."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):  # spans several lines
        return
    named = [
        key
        for key, value in whole.items()
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    ]
    if named or "\n" in content.strip():
        where = f", with a list under {named[0]!r}" if named else ""
        raise Unreadable(
            f"is one JSON object{where}: it must have one object per line, or be an array of objects"
        )


def _json_object(line: str) -> "tuple[_Record | None, str]":
    try:
        record = json.loads(line, object_pairs_hook=_Record)
    except (ValueError, RecursionError):
        return None, "bytes that are not UTF-8" if not is_unicode(line) else "not JSON"
    return _row_of(record) if is_unicode(line) else (None, "bytes that are not UTF-8")


def _row_of(value: Any) -> "tuple[_Record | None, str]":
    """An element as a row, and why it is not one."""
    return (value, "") if isinstance(value, _Record) else (None, "not a JSON object")


class _Record(dict[str, Any]):
    """A JSON object; `twice` has its repeated keys."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice: frozenset[str] = frozenset()
        if len(self) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.twice = frozenset(key for key, count in counts.items() if count > 1)

    def has(self, name: str) -> bool:
        """Whether it has the key `name`, in any Unicode form."""
        return name in self or (
            not name.isascii() and in_composed_form(name) in {in_composed_form(key) for key in self}
        )

    def value(self, name: str) -> Any:
        """The value of the key `name` in any Unicode form; None if there is none."""
        if name in self or name.isascii():
            return self.get(name)
        composed = in_composed_form(name)
        return next((self[key] for key in self if in_composed_form(key) == composed), None)


def read_parquet(stream: IO[bytes], wanted: Sequence[str], layout: Layout = Layout()) -> FileRows:
    """Columns of a Parquet file, which needs no layout."""
    with _parquet(stream, wanted) as (file, names):
        return _parquet_rows(file.read(columns=names), wanted, names)


def parquet_chunks(
    stream: IO[bytes],
    wanted: Sequence[str],
    layout: Layout = Layout(),
    size: int = sys.maxsize,
) -> Iterator[FileRows]:
    """The same in chunks of at most `size` rows, one after another."""
    before = 0
    with _parquet(stream, wanted) as (file, names):
        for batch in file.iter_batches(batch_size=size, columns=names):
            rows = _parquet_rows(batch, wanted, names)
            rows.numbers = range(before + 1, before + 1 + len(batch))
            before += len(batch)
            yield rows


@contextmanager
def _parquet(stream: IO[bytes], wanted: Sequence[str]) -> Iterator[tuple[Any, list[str]]]:
    """The file, and how it spells the wanted columns. Raises Unreadable if it is no Parquet file."""
    try:
        file = pq.ParquetFile(stream)
        there = file.schema_arrow.names
        yield file, [there[_position(there, name)] for name in wanted]
    except pa.ArrowException as error:
        raise Unreadable(f"is not a Parquet file: {error}") from error


def _parquet_rows(table: Any, wanted: Sequence[str], names: Sequence[str]) -> FileRows:
    columns = {name: table.column(own).to_pylist() for name, own in zip(wanted, names, strict=True)}
    return FileRows(columns, unit="row")


def read_tsv(stream: IO[bytes], wanted: Sequence[str], layout: Layout = Layout()) -> FileRows:
    """Like `read_csv`, with tabs between fields."""
    return read_csv(stream, wanted, layout, usual="\t")


def read_conll(stream: IO[bytes], wanted: Sequence[str], layout: Layout = Layout()) -> FileRows:
    """Lists of words and of their tags from a CoNLL file: a line for each word, with blanks (or tabs) between its fields,
    and an empty line after each row.

    The first field is `tokens` and the last is `tags`, unless `layout` names them all. Lines of `-DOCSTART-`, and
    comments (# and a blank, with another number of fields), are left out. A row cannot be read if one of its lines has
    another number of fields than the first line of the file.
    """
    numbers = array("q")
    rows = FileRows({name: [] for name in wanted}, numbers=numbers)
    names = layout.header
    positions: list[int] = []
    lines: list[list[str]] = []
    first, why = 0, ""

    def end() -> None:
        nonlocal lines, why
        if why:
            rows.unread.append(Unread(first, why))
        elif lines:
            numbers.append(first)
            for name, at in zip(wanted, positions, strict=True):
                rows.columns[name].append([fields[at] for fields in lines])
        lines, why = [], ""

    with _decoded(stream, layout) as text:
        for number, line in enumerate(text, start=1):
            stripped = line.strip()
            fields = stripped.split("\t") if "\t" in stripped else stripped.split()
            if not fields or fields[0] == "-DOCSTART-":
                end()
                continue
            if names is None and not stripped.startswith("# "):
                names = ("tokens", *(f"column{at}" for at in range(2, len(fields))), "tags")[
                    : max(2, len(fields))
                ]
            if names is None or (stripped.startswith("#") and len(fields) != len(names)):
                continue
            positions = positions or [_position(names, name) for name in wanted]
            if not lines and not why:
                first = number
            if len(fields) != len(names):
                why = why or f"{_fields(fields)} where the first line has {len(names)}"
            elif not is_unicode(stripped):
                why = why or "bytes that are not UTF-8"
            lines.append(fields)
        end()
    if names is None:
        raise Unreadable("is empty")
    return rows


Reader: TypeAlias = Callable[[IO[bytes], Sequence[str], Layout], FileRows]
READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
    ".conll": read_conll,
    ".iob": read_conll,
    ".bio": read_conll,
}
"""The reader for each suffix; each may be followed by `.gz`."""


def reader_for(name: str) -> Reader | None:
    """The reader for the file `name`, by its suffix; None if there is none.

    A reader raises Unreadable if the file is not what its suffix says, WrongColumn for a column that cannot be read.
    """
    path = PurePosixPath(name.lower())
    if path.suffix != ".gz":
        return READERS.get(path.suffix)
    inner = READERS.get(PurePosixPath(path.stem).suffix)
    return None if inner is None else _unpacking(inner)


def format_of(name: str) -> Reader | None:
    """What reads the file `name` once it is unpacked: files of one format have the same."""
    return READERS.get(PurePosixPath(name.lower().removesuffix(".gz")).suffix)


Chunks: TypeAlias = Callable[[IO[bytes], Sequence[str], Layout, int], Iterator[FileRows]]


def _tsv_chunks(
    stream: IO[bytes], wanted: Sequence[str], layout: Layout, size: int
) -> Iterator[FileRows]:
    return csv_chunks(stream, wanted, layout, size, usual="\t")


_CHUNKS: dict[Reader, Chunks] = {
    read_csv: csv_chunks,
    read_tsv: _tsv_chunks,
    read_json: json_chunks,
    read_parquet: parquet_chunks,
}
"""What reads a file as a reader does, in chunks; a CoNLL file is read whole."""


def chunks_for(name: str) -> Chunks | None:
    """What reads the file `name` in chunks of so many rows, by its suffix; None if there is none.

    It raises what a reader raises.
    """
    whole = format_of(name)
    chunks = None if whole is None else _CHUNKS.get(whole, _one_chunk(whole))
    is_packed = name.lower().endswith(".gz")
    return _unpacking_chunks(chunks) if chunks is not None and is_packed else chunks


def _one_chunk(reader: Reader) -> Chunks:
    def chunks(
        stream: IO[bytes], wanted: Sequence[str], layout: Layout, size: int
    ) -> Iterator[FileRows]:
        yield reader(stream, wanted, layout)

    return chunks


def _unpacking(reader: Reader) -> Reader:
    def read(stream: IO[bytes], wanted: Sequence[str], layout: Layout) -> FileRows:
        with _unpacked(stream) as unpacked:
            return reader(unpacked, wanted, layout)

    return read


def _unpacking_chunks(chunks: Chunks) -> Chunks:
    def read(
        stream: IO[bytes], wanted: Sequence[str], layout: Layout, size: int
    ) -> Iterator[FileRows]:
        with _unpacked(stream) as unpacked:
            yield from chunks(unpacked, wanted, layout, size)

    return read


@contextmanager
def _unpacked(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """What is in a gzip file. Raises Unreadable if it is not complete."""
    try:
        with gzip.open(stream) as unpacked:
            yield cast("IO[bytes]", unpacked)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Unreadable(f"is not a complete gzip file: {error}") from error
