"""Where the rows come from: files on disk or in an object store, or the hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa

from finetune_api.study import Dataset
from finetune_trainer.data.formats import READERS, FileRows, Unreadable, WrongColumn
from finetune_trainer.data.hub import first_line, hub_splits
from finetune_trainer.data.steps import Account
from finetune_trainer.errors import DataError, StorageUnavailable, may_pass
from finetune_trainer.search.locations import open_filesystem, shown

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class RawRows:
    """The rows of one part as its source has them; `field` is the spec field that names the source."""

    field: str
    part: str
    texts: tuple[list[Any], ...]
    """By column."""

    labels: tuple[list[Any], ...]
    """The one label column, or a column for each label."""

    groups: list[Any]
    """What `groupColumn` has, or None for each row without that field."""

    def __len__(self) -> int:
        return len(self.groups)


def load(dataset: Dataset, base: Path, account: Account) -> dict[str, RawRows]:
    """The parts that the source of `dataset` brings: `train` always, `validation` and `test` perhaps.

    Relative paths are below `base`. Rows that cannot be read are skipped, and counted in `account`.
    Raises DataError naming the field of the file or column that is wrong, StorageUnavailable for a file that
    cannot be reached now.
    """
    return _load_files(dataset, base, account) if dataset.files else _load_hub(dataset, account)


def _column_fields(dataset: Dataset) -> dict[str, str]:
    """The name of each column that is wanted, and the field that names it."""
    field = "spec.dataset"
    columns = {name: f"{field}.textColumns[{at}]" for at, name in enumerate(dataset.text_columns)}
    for at, name in enumerate(dataset.label_columns or []):
        columns[name] = f"{field}.labelColumns[{at}]"
    if dataset.label_column is not None:
        columns[dataset.label_column] = f"{field}.labelColumn"
    if dataset.group_column is not None:
        columns.setdefault(dataset.group_column, f"{field}.groupColumn")
    return columns


def _load_files(dataset: Dataset, base: Path, account: Account) -> dict[str, RawRows]:
    parts = {}
    for part in PARTS:
        location = getattr(dataset.files, part)
        if location is None:
            continue
        field = f"spec.dataset.files.{part}"
        rows = _read(location, base, field, dataset)
        if rows.broken_lines:
            account.warn(field, _broken(rows.broken_lines))
        parts[part] = _raw(field, part, rows.columns, dataset)
        count, broken = len(parts[part]), len(rows.broken_lines)
        account.add(part, "read", count + broken, "broken", dropped=broken)
    return parts


def _broken(lines: list[int]) -> str:
    first = ", ".join(str(line) for line in lines[:5]) + (", …" if len(lines) > 5 else "")
    return f"{len(lines)} broken rows skipped (lines {first})"


def _read(location: str, base: Path, field: str, dataset: Dataset) -> FileRows:
    name = shown(location)
    reader = READERS.get(PurePosixPath(name).suffix.lower())
    if reader is None:
        raise DataError(field, f"must end in {', '.join(READERS)} (got {name})")
    fields = _column_fields(dataset)
    try:
        with open_location(location, base) as stream:
            return reader(stream, list(fields))
    except WrongColumn as error:
        raise DataError(fields[error.name], f"{error} in {name}") from error
    except Unreadable as error:
        raise DataError(field, f"{name} {error}") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(
            field, f"must be a file that exists (got {_where(location, base)})"
        ) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise_if_away(error, location, base)
        raise DataError(
            field, f"must be readable (got {_where(location, base)}: {first_line(error)})"
        ) from error


def raise_if_away(error: Exception, location: str, base: Path) -> None:
    """Raises StorageUnavailable if `error` says that the file cannot be reached now, whatever is in it."""
    if isinstance(error, OSError) and may_pass(error):
        where = _where(location, base)
        raise StorageUnavailable(f"{where}: {error.strerror or first_line(error)}") from error


def open_location(location: str, base: Path) -> IO[bytes]:
    """The file at a URI that pyarrow knows, or at a path below `base`, opened for reading."""
    if "://" not in location:
        return (base / location).open("rb")
    filesystem, path = open_filesystem(location)
    return cast("IO[bytes]", filesystem.open_input_file(path))


def _where(location: str, base: Path) -> str:
    return shown(location) if "://" in location else str(base / location)


def _raw(field: str, part: str, columns: dict[str, list[Any]], dataset: Dataset) -> RawRows:
    texts = tuple(columns[name] for name in dataset.text_columns)
    names = dataset.label_columns or [str(dataset.label_column)]
    labels = tuple(columns[name] for name in names)
    group = dataset.group_column
    groups = [None] * len(texts[0]) if group is None else columns[group]
    return RawRows(field, part, texts, labels, groups)


def _load_hub(dataset: Dataset, account: Account) -> dict[str, RawRows]:
    assert dataset.hub is not None  # the contract: files or hub
    field = "spec.dataset.hub"
    fields = _column_fields(dataset)
    try:
        splits = hub_splits(dataset.hub, list(fields))
    except WrongColumn as error:
        raise DataError(fields[error.name], str(error)) from error
    parts = {part: _raw(field, part, columns, dataset) for part, columns in splits.items()}
    for part in PARTS[1:]:
        # Benchmarks on the hub hide the labels of their test split.
        if part in parts and all(_all_none(labels) for labels in parts[part].labels):
            del parts[part]
            account.warn(field, f"the {part} split has no labels; training rows replace it")
    for part, rows in parts.items():
        account.add(part, "read", len(rows), "broken")
    return parts


def _all_none(labels: Sequence[Any]) -> bool:
    return all(label is None for label in labels)
