"""Where the rows come from: files on disk or in an object store, or the hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.fs as pafs

from finetune_api.study import Dataset
from finetune_trainer.data.formats import READERS, FileRows, MissingColumn, Unreadable
from finetune_trainer.data.hub import first_line, hub_splits
from finetune_trainer.errors import DataError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class RawRows:
    """The rows of one part as its source has them; `field` is the spec field that names the source."""

    field: str
    part: str
    texts: tuple[list[Any], ...]
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.labels)


def load(dataset: Dataset, base: Path, warnings: list[str]) -> dict[str, RawRows]:
    """The parts that the source of `dataset` brings: `train` always, `validation` and `test` perhaps.

    Relative paths are below `base`. Rows that cannot be read are skipped, and counted in `warnings`.
    Raises DataError naming the field of the file or column that is wrong.
    """
    return _load_files(dataset, base, warnings) if dataset.files else _load_hub(dataset, warnings)


def _wanted(dataset: Dataset) -> list[str]:
    return [*dataset.text_columns, dataset.label_column]


def _load_files(dataset: Dataset, base: Path, warnings: list[str]) -> dict[str, RawRows]:
    parts = {}
    for part in PARTS:
        location = getattr(dataset.files, part)
        if location is None:
            continue
        field = f"spec.dataset.files.{part}"
        rows = _read(location, base, field, dataset)
        if rows.broken_lines:
            warnings.append(_broken(field, rows.broken_lines))
        parts[part] = _raw(field, part, rows.columns, dataset)
    return parts


def _broken(field: str, lines: list[int]) -> str:
    shown = ", ".join(str(line) for line in lines[:5]) + (", …" if len(lines) > 5 else "")
    return f"{field}: {len(lines)} broken rows skipped (lines {shown})"


def _read(location: str, base: Path, field: str, dataset: Dataset) -> FileRows:
    reader = READERS.get(PurePosixPath(location).suffix.lower())
    if reader is None:
        raise DataError(field, f"must end in {', '.join(READERS)} (got {location})")
    try:
        with open_location(location, base) as stream:
            return reader(stream, _wanted(dataset))
    except MissingColumn as error:
        raise DataError(_column_field(error.name, dataset), f"{error} in {location}") from error
    except Unreadable as error:
        raise DataError(field, f"{location} {error}") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(
            field, f"must be a file that exists (got {_where(location, base)})"
        ) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            field, f"must be readable (got {_where(location, base)}: {first_line(error)})"
        ) from error


def open_location(location: str, base: Path) -> IO[bytes]:
    """The file at a URI that pyarrow knows, or at a path below `base`, opened for reading."""
    if "://" not in location:
        return (base / location).open("rb")
    filesystem, path = pafs.FileSystem.from_uri(location)
    return cast("IO[bytes]", filesystem.open_input_file(path))


def _where(location: str, base: Path) -> str:
    return location if "://" in location else str(base / location)


def _column_field(name: str, dataset: Dataset) -> str:
    if name == dataset.label_column:
        return "spec.dataset.labelColumn"
    return f"spec.dataset.textColumns[{dataset.text_columns.index(name)}]"


def _raw(field: str, part: str, columns: dict[str, list[Any]], dataset: Dataset) -> RawRows:
    texts = tuple(columns[name] for name in dataset.text_columns)
    return RawRows(field, part, texts, columns[dataset.label_column])


def _load_hub(dataset: Dataset, warnings: list[str]) -> dict[str, RawRows]:
    assert dataset.hub is not None  # the contract: files or hub
    field = "spec.dataset.hub"
    try:
        splits = hub_splits(dataset.hub, _wanted(dataset))
    except MissingColumn as error:
        raise DataError(_column_field(error.name, dataset), str(error)) from error
    parts = {part: _raw(field, part, columns, dataset) for part, columns in splits.items()}
    for part in PARTS[1:]:
        # Benchmarks on the hub hide the labels of their test split.
        if part in parts and _all_none(parts[part].labels):
            del parts[part]
            warnings.append(f"{field}: the {part} split has no labels; training rows replace it")
    return parts


def _all_none(labels: Sequence[Any]) -> bool:
    return all(label is None for label in labels)
