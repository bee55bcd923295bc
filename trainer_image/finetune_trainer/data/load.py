"""Where the rows come from: files on disk or in an object store, or the hub."""

import codecs
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as default
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from finetune_api.dataset import Dataset, DatasetFiles
from finetune_api.tasks import Task
from finetune_trainer.cells.places import IN_ORDER, Places, numbered
from finetune_trainer.cells.words import in_composed_form, is_unicode, with_one_spelling
from finetune_trainer.data.formats import (
    READERS,
    UTF8,
    FileRows,
    Layout,
    MissingColumn,
    Unreadable,
    WrongColumn,
    chunks_for,
    format_of,
    quoted,
    reader_for,
)
from finetune_trainer.data.hub import first_line, hub_splits
from finetune_trainer.data.steps import Account
from finetune_trainer.errors import DataError, StorageUnavailable, may_pass
from finetune_trainer.storage.locations import open_filesystem, shown
from finetune_trainer.tasks import task_of

PARTS = ("train", "validation", "test")

DEFAULT_UNREADABLE = 0.01
"""Share of the rows of a file that may be unreadable unless the study says otherwise."""

_SCHEMES = frozenset({"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"})
_ELSEWHERE = {
    **dict.fromkeys(("http", "https", "ftp", "ftps", "sftp"), "; download it first"),
    "hf": "; spec.dataset.hub reads data sets of the hub",
}
"""What to do about a URI of another scheme."""


NONE: Mapping[str, str] = {}


@dataclass(frozen=True)
class RawRows:
    """The rows of one part as its source has them; `field` is the spec field that names the source."""

    field: str
    part: str
    texts: tuple[list[Any], ...]
    """By column."""

    labels: tuple[list[Any], ...]
    """The only label column, or one column for each label."""

    groups: list[Any]
    """The values of `groupColumn`, or None for every row without that field."""

    places: Places = IN_ORDER
    sides: Mapping[str, list[Any]] = default(default_factory=dict)
    """The columns that slices need, by name."""

    def __len__(self) -> int:
        return len(self.groups)


def load(
    dataset: Dataset, base: Path, account: Account, sides: Mapping[str, str] = NONE
) -> dict[str, RawRows]:
    """The parts that the source of `dataset` has: always `train`, perhaps `validation` and `test`.

    Relative paths start from `base`. `sides` are more columns to read, with the fields that name them. Rows that cannot be read are skipped, and counted in `account`.
    Raises DataError naming the field of the file or column that is wrong, StorageUnavailable for a file that
    cannot be reached now.
    """
    if dataset.files:
        return _load_files(dataset, base, account, sides)
    return _load_hub(dataset, account, sides)


def _column_fields(dataset: Dataset, sides: Mapping[str, str]) -> dict[str, str]:
    """The name of each wanted column, and the field that names it."""
    field = "spec.dataset"
    columns = {name: f"{field}.textColumns[{at}]" for at, name in enumerate(dataset.texts)}
    for at, name in enumerate(dataset.label_columns or []):
        columns[name] = f"{field}.labelColumns[{at}]"
    for word, one in (
        ("labelColumn", dataset.label_column),
        ("tokensColumn", dataset.tokens_column),
        ("tagsColumn", dataset.tags_column),
        ("spansColumn", dataset.spans_column),
    ):
        if one is not None:
            columns[one] = f"{field}.{word}"
    if dataset.group_column is not None:
        columns.setdefault(dataset.group_column, f"{field}.groupColumn")
    for name, named_by in sides.items():
        columns.setdefault(name, named_by)
    return columns


def _load_files(
    dataset: Dataset, base: Path, account: Account, sides: Mapping[str, str]
) -> dict[str, RawRows]:
    files = dataset.files
    assert files is not None  # the caller checks
    layout = _layout(files, dataset)
    parts, formats = {}, set()
    for part in PARTS:
        location = getattr(files, part)
        if location is None:
            continue
        field = f"spec.dataset.files.{part}"
        rows = _read(location, base, field, _column_fields(dataset, sides), layout)
        if rows.unread:
            _tell_unread(rows, field, files, layout, account)
        if rows.near:
            _tell_near(rows, field, files, account)
        places = Places(rows.numbers, rows.unit, shown(location).rpartition("/")[2])
        parts[part] = _raw(field, part, rows.columns, dataset, sides, places)
        formats.add(format_of(shown(location)))
        account.add(part, "read", rows.total, "that cannot be read", dropped=len(rows.unread))
    return _alike(parts) if len(formats) > 1 else parts


def _alike(parts: dict[str, RawRows]) -> dict[str, RawRows]:
    """`parts`, of which some may have true and false as values where others have them as text, with one spelling."""
    labels = [
        with_one_spelling(same)
        for same in zip(*(rows.labels for rows in parts.values()), strict=True)
    ]
    groups = with_one_spelling([rows.groups for rows in parts.values()])
    names = next(iter(parts.values())).sides
    sides = {
        name: with_one_spelling([rows.sides[name] for rows in parts.values()]) for name in names
    }
    return {
        part: replace(
            rows,
            labels=tuple(own),
            groups=group,
            sides={name: columns[at] for name, columns in sides.items()},
        )
        for at, ((part, rows), own, group) in enumerate(
            zip(parts.items(), zip(*labels, strict=True), groups, strict=True)
        )
    }


def _layout(files: DatasetFiles, dataset: Dataset) -> Layout:
    """How the files are written. Raises DataError for an encoding that does not exist."""
    field = "spec.dataset.files"
    encoding = files.encoding or UTF8
    try:
        is_utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
        "".encode(encoding)  # some of Python's codecs are not for text
    except LookupError as error:
        raise DataError(
            f"{field}.encoding",
            f"must be a text encoding such as UTF-8, UTF-16, ISO-8859-1 or GB18030 (got {encoding})",
        ) from error
    names = None if files.column_names is None else tuple(files.column_names)
    return Layout(UTF8 if is_utf8 else encoding, files.delimiter, names, dataset.label_column)


def named_labels(dataset: Dataset, task: Task, base: Path) -> list[str] | None:
    """The names of the labels where the rows have numbers; None where the rows have names.

    Raises DataError if there are none, if one is there twice, or if the labels of the task are numbers.
    """
    field, names = "spec.dataset.labelNames", dataset.label_names
    if dataset.label_names_file is not None:
        field = f"{field}File"
        content = read_whole(dataset.label_names_file, base, field)
        lines = content.splitlines()
        names = [line.strip() for line in lines if line.strip()]
    if names is None:
        return None
    if not task_of(task).has_classes:
        raise DataError(field, f"must not be given with task {task}")
    named = [in_composed_form(name.strip()) for name in names]
    twice = [name for name, count in Counter(named).items() if count > 1]
    if twice or not named:
        raise DataError(field, f"must name each label once (got {', '.join(twice) or 'none'})")
    return named


def _tell_unread(
    rows: FileRows, field: str, files: DatasetFiles, layout: Layout, account: Account
) -> None:
    """Warn of rows that cannot be read. Raises DataError if there are more than the study allows."""
    text = f"{_unread(rows)}{_lost(rows, layout)}"
    if _too_many(len(rows.unread), rows, files):
        remedy = f"; {_correction(rows)}"
        if len(rows.unread) < rows.total:
            remedy += f", or leave them out {_allow(len(rows.unread), rows, files)}"
        raise DataError(field, f"must be readable (got {text}){remedy}")
    account.warn(field, f"skipped {text}")


def _tell_near(rows: FileRows, field: str, files: DatasetFiles, account: Account) -> None:
    """Warn of rows that have a key like the name of a column instead of the column.

    Raises DataError if they are more than the study allows to be unreadable.
    """
    for (name, key), numbers in rows.near.items():
        count = len(numbers)
        share = f"{count} of {rows.total} rows ({count / rows.total:.1%})"
        text = f"{share} have no key {name}, but {key} ({numbered(numbers, rows.unit)})"
        if _too_many(count, rows, files):
            remedy = f"rename {key}, or accept it {_allow(count, rows, files)}"
            raise DataError(field, f"must have the key {name} in each row: {text}; {remedy}")
        account.warn(field, text)


def _too_many(count: int, rows: FileRows, files: DatasetFiles) -> bool:
    """Whether the study does not allow so many rows of a file to be lost."""
    return count / rows.total > _allowed(files)


def _allowed(files: DatasetFiles) -> float:
    return DEFAULT_UNREADABLE if files.max_unreadable is None else files.max_unreadable


def _allow(count: int, rows: FileRows, files: DatasetFiles) -> str:
    """How a study allows so many rows to be lost."""
    least = math.ceil(100 * count / rows.total) / 100
    return (
        f"with spec.dataset.files.maxUnreadable of at least {least:g} (it is {_allowed(files):g})"
    )


def _unread(rows: FileRows) -> str:
    """How many rows cannot be read, why, and where they are."""
    count, total = len(rows.unread), rows.total
    places: dict[str, list[int]] = defaultdict(list)
    for row in rows.unread:
        places[row.why].append(row.line)
    reasons = sorted(places, key=lambda why: -len(places[why]))[:3]
    told = "; ".join(f"{why} ({numbered(places[why], rows.unit)})" for why in reasons)
    return f"{count} of {total} rows ({count / total:.1%}) that cannot be read: {told}"


def _lost(rows: FileRows, layout: Layout) -> str:
    """The classes that no readable row has."""
    read = set(map(str, rows.columns.get(layout.label or "", [])))
    lost = Counter(row.label for row in rows.unread if row.label and row.label not in read)
    named = ", ".join(name for name, _ in lost.most_common(3))
    return f", including all rows of {named}" if lost else ""


def _correction(rows: FileRows) -> str:
    """What to do about rows that cannot be read."""
    whys = {row.why for row in rows.unread}
    if any("UTF-8" in why for why in whys):
        return "set spec.dataset.files.encoding, perhaps to ISO-8859-1 or windows-1252, or correct them"
    if len(rows.unread) == rows.total and len(whys) == 1 and "the header has" in whys.pop():
        return "does the header name each column, and is spec.dataset.files.delimiter right?"
    return "correct them"


_NO_COLUMN = "\0"
"""A name that no column has."""


def column_names(location: str, base: Path, field: str, layout: Layout) -> list[str]:
    """The columns of a file that a study can name, in their order: those with a name that no other has.

    Raises DataError, naming `field`, for a file that cannot be read, and StorageUnavailable.
    """
    try:
        _rows(location, base, field, [_NO_COLUMN], layout)
    except MissingColumn as error:
        counts = Counter(map(in_composed_form, error.available))
        return [
            name
            for name in error.available
            if 0 < len(name.strip()) <= len(name) <= _LONGEST_NAME
            and is_unicode(name)
            and counts[in_composed_form(name)] == 1
        ]
    return []


_LONGEST_NAME = 253
"""Of a column, in a study."""


def read_columns(
    location: str, base: Path, field: str, names: Sequence[str], layout: Layout
) -> FileRows:
    """These columns of a file. Raises DataError, naming `field`, if they cannot be read, and StorageUnavailable."""
    return _read(location, base, field, dict.fromkeys(names, field), layout)


def _read(
    location: str, base: Path, field: str, fields: Mapping[str, str], layout: Layout
) -> FileRows:
    with _named(location, fields, layout):
        return _rows(location, base, field, list(fields), layout)


def _rows(location: str, base: Path, field: str, names: Sequence[str], layout: Layout) -> FileRows:
    """The columns of a file. Raises WrongColumn besides."""
    with _opened(location, base, field) as stream:
        reader = reader_for(shown(location))
        assert reader is not None  # or `_opened` would have raised
        return reader(stream, names, layout)


def in_chunks(
    location: str, base: Path, field: str, fields: Mapping[str, str], layout: Layout, size: int
) -> Iterator[FileRows]:
    """The columns of a file in chunks of `size` rows, so that memory does not grow with it.

    `field` names the file, and `fields` each column. A JSON array and a CoNLL file are read whole. Raises DataError
    for what is wrong with the file, and StorageUnavailable for one that cannot be reached now.
    """
    with _named(location, fields, layout), _opened(location, base, field) as stream:
        chunks = chunks_for(shown(location))
        assert chunks is not None  # or `_opened` would have raised
        yield from chunks(stream, list(fields), layout, size)


@contextmanager
def _named(location: str, fields: Mapping[str, str], layout: Layout) -> Iterator[None]:
    """A column that cannot be read becomes a DataError that names its field."""
    try:
        yield
    except WrongColumn as error:
        name = shown(location)
        raise DataError(
            fields[error.name], f"{error} in {name}{_header_hint(error, name, layout)}"
        ) from error


@contextmanager
def _opened(location: str, base: Path, field: str) -> Iterator[IO[bytes]]:
    """The file at a location, to read columns from; `field` names the file.

    Raises DataError for what is wrong with the file, or with what is read from it inside `with`; StorageUnavailable
    for a file that cannot be reached now. WrongColumn passes.
    """
    name = shown(location)
    if "://" not in location and (base / location).is_dir():
        raise DataError(field, _no_file(location, base))
    _refuse_strange_scheme(location, field)
    if reader_for(name) is None:
        suffixes = f"{', '.join(READERS)}, or one of these followed by .gz"
        raise DataError(field, f"must end in {suffixes} (got {name})")
    try:
        with open_location(location, base) as stream:
            yield stream
    except Unreadable as error:
        raise DataError(field, f"{name} {error}") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(field, _no_file(location, base)) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise_if_away(error, location, base)
        raise DataError(field, _unreadable(error, location, base)) from error


def _header_hint(error: WrongColumn, name: str, layout: Layout) -> str:
    if not isinstance(error, MissingColumn):
        return ""
    if error.near is not None:
        return f"; is {quoted(error.near)} meant?"
    has_header = layout.header is None and name.lower().removesuffix(".gz").endswith(
        (".csv", ".tsv")
    )
    if not has_header:
        return ""
    return "; if its first line is not a header, name the columns in spec.dataset.files.columnNames"


def _refuse_strange_scheme(location: str, field: str) -> None:
    """Raises DataError, naming `field`, for a URI from which no rows can be read."""
    scheme = location.partition("://")[0].lower()
    if "://" not in location or scheme in _SCHEMES:
        return
    remedy = _ELSEWHERE.get(scheme, "")
    raise DataError(
        field,
        f"must be a path, or a URI that begins with file://, s3://, gs:// or abfs:// (got {shown(location)}){remedy}",
    )


def read_whole(location: str, base: Path, field: str) -> str:
    """The text of a file in UTF-8. Raises DataError, naming `field`, if there is none; StorageUnavailable."""
    _refuse_strange_scheme(location, field)
    try:
        with open_location(location, base) as stream:
            return stream.read().decode("utf-8-sig")
    except UnicodeError as error:
        where = _where(location, base)
        raise DataError(
            field, f"must be a text file in UTF-8 (got {where}: {first_line(error)})"
        ) from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(field, _no_file(location, base)) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise_if_away(error, location, base)
        raise DataError(field, _unreadable(error, location, base)) from error


def _no_file(location: str, base: Path) -> str:
    """Why there is no file to read at a location, with its full path."""
    where = _where(location, base)
    if "://" not in location and (base / location).is_dir():
        return f"must be a file (got {where}, a folder): name a file in it"
    pattern = (
        "; patterns are not expanded: name one file" if set(shown(location)) & set("*?[") else ""
    )
    return f"must be a file that exists (got {where}{pattern})"


def _unreadable(error: Exception, location: str, base: Path) -> str:
    """Why a file that may be there cannot be read, as `error` of opening or reading it says."""
    where = _where(location, base)
    if "is a directory" in str(error):
        return f"must be a file (got {where}, a folder): name a file in it"
    if isinstance(error, pa.ArrowInvalid) and "://" in location and " " in location:
        plain = ", or give the plain path" if location.startswith("file://") else ""
        return f"must be a URI without blanks (got {where}): write them as %20{plain}"
    return f"must be readable (got {where}: {first_line(error)})"


def raise_if_away(error: Exception, location: str, base: Path) -> None:
    """Raises StorageUnavailable if `error` says that the file cannot be reached now, whatever it contains."""
    if isinstance(error, OSError) and may_pass(error):
        where = _where(location, base)
        raise StorageUnavailable(f"{where}: {error.strerror or first_line(error)}") from error


def open_location(location: str, base: Path) -> IO[bytes]:
    """Open for reading the file at a URI that pyarrow supports, or at a path below `base`."""
    if "://" not in location:
        return (base / location).open("rb")
    filesystem, path = open_filesystem(location)
    return cast("IO[bytes]", filesystem.open_input_file(path))


def _where(location: str, base: Path) -> str:
    """The URI, or the full path."""
    return shown(location) if "://" in location else os.path.abspath(base / location)


def _raw(
    field: str,
    part: str,
    columns: dict[str, list[Any]],
    dataset: Dataset,
    sides: Mapping[str, str],
    places: Places = IN_ORDER,
) -> RawRows:
    texts = tuple(columns[name] for name in dataset.read)
    labels = tuple(columns[name] for name in dataset.labels)
    group = dataset.group_column
    groups = [None] * len(texts[0]) if group is None else columns[group]
    return RawRows(
        field, part, texts, labels, groups, places, {name: columns[name] for name in sides}
    )


def _load_hub(dataset: Dataset, account: Account, sides: Mapping[str, str]) -> dict[str, RawRows]:
    assert dataset.hub is not None  # the contract: files or hub
    field = "spec.dataset.hub"
    fields = _column_fields(dataset, sides)
    try:
        splits = hub_splits(dataset.hub, list(fields))
    except WrongColumn as error:
        raise DataError(fields[error.name], str(error)) from error
    parts = {part: _raw(field, part, columns, dataset, sides) for part, columns in splits.items()}
    for part in PARTS[1:]:
        # Benchmarks on the hub hide the labels of their test split.
        if part in parts and all(_all_none(labels) for labels in parts[part].labels):
            del parts[part]
            account.warn(field, f"the {part} split has no labels; training rows replace it")
    for part, rows in parts.items():
        account.add(part, "read", len(rows), "that cannot be read")
    return parts


def _all_none(labels: Sequence[Any]) -> bool:
    return all(label is None for label in labels)
