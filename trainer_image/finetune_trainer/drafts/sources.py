"""Reads all columns of a data file, and looks at the pretrained model that is to read them, if it is here."""

import gzip
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune_api.dataset import PretrainedModel
from finetune_trainer.data.formats import (
    DELIMITERS,
    UTF8,
    FileRows,
    Layout,
    format_of,
    marked_encoding,
    read_csv,
)
from finetune_trainer.data.load import DEFAULT_UNREADABLE, column_names, open_location, read_columns
from finetune_trainer.drafts.choices import Model, is_sentence_model
from finetune_trainer.drafts.columns import Column, column_of
from finetune_trainer.drafts.facts import Lengths
from finetune_trainer.drafts.manifest import Source
from finetune_trainer.errors import DataError, ModelError

DATA = "DATA"
"""The argument that errors name."""

_OLD_ENCODING = "windows-1252"
"""What files that are not UTF-8 are most often written in."""

_HERE = Path()
_SAMPLE = 2000

_OTHERS = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""How files beside `train.csv` are called."""


def read_table(location: str) -> tuple[list[Column], Layout, int]:
    """The columns of a file, how it is written, and how many of its rows cannot be read.

    Raises DataError if it cannot be read, or has no row.
    """
    layout = _layout(location)
    names = column_names(location, _HERE, DATA, layout)
    if not names:
        raise DataError(
            DATA, f"must have rows (got {location}, with {_emptiness(location, layout)})"
        )
    rows = read_columns(location, _HERE, DATA, names, layout)
    if layout.encoding == UTF8 and _is_old(rows):
        layout = replace(layout, encoding=_OLD_ENCODING)
        names = column_names(location, _HERE, DATA, layout)
        rows = read_columns(location, _HERE, DATA, names, layout)
    if not rows.columns[names[0]]:
        why = _unread(rows) or "a header and nothing below it"
        raise DataError(DATA, f"must have rows (got {location}, with {why})")
    return [column_of(name, rows.columns[name]) for name in names], layout, len(rows.unread)


def _emptiness(location: str, layout: Layout) -> str:
    """Why a file has no columns: none of its rows can be read, or there is none."""
    with suppress(DataError):  # it has a header, in which no name can be used
        return _unread(read_columns(location, _HERE, DATA, ["text"], layout)) or "no columns"
    return "no column that has a name of its own"


def _unread(rows: FileRows) -> str:
    if not rows.unread:
        return ""
    first = rows.unread[0]
    return f"{len(rows.unread)} rows that cannot be read: {first.why} in {rows.unit} {first.line}"


def _layout(location: str) -> Layout:
    """The encoding that the file's first bytes name, and the delimiter that its header has."""
    layout = Layout()
    with suppress(OSError, EOFError, zlib.error), open_location(location, _HERE) as stream:
        start = stream.read(4)
        if location.lower().endswith(".gz"):
            stream.seek(0)
            with gzip.open(stream) as unpacked:
                start = unpacked.read(4)
        layout = Layout(marked_encoding(start) or UTF8)
    if format_of(location) is not read_csv:
        return layout
    names = column_names(location, _HERE, DATA, layout)
    for other in DELIMITERS if len(names) == 1 else ():
        if other in names[0]:
            found = replace(layout, delimiter=other)
            if len(column_names(location, _HERE, DATA, found)) > 1:
                return found
    return layout


def _is_old(rows: FileRows) -> bool:
    """Whether too many rows have bytes that are not UTF-8."""
    wrong = sum("UTF-8" in row.why for row in rows.unread)
    return wrong > DEFAULT_UNREADABLE * rows.total


def source_of(location: str, layout: Layout, needed: Sequence[str], folder: Path) -> Source:
    """The file as a manifest in `folder` names it, with those beside it that have its columns (`train.csv`, `test.csv`)."""
    found = Source(seen_from(location, folder), layout=layout)
    stem, dot, suffix = os.path.basename(location).partition(".")
    if "://" in location or not stem.lower().endswith("train"):
        return found
    files: dict[str, str] = {}
    for part, names in _OTHERS.items():
        for name in names:
            beside = os.path.join(os.path.dirname(location), f"{stem[:-5]}{name}{dot}{suffix}")
            if os.path.isfile(beside) and _has(beside, layout, needed):
                files.setdefault(part, seen_from(beside, folder))
    return replace(found, validation=files.get("validation"), test=files.get("test"))


def _has(location: str, layout: Layout, needed: Sequence[str]) -> bool:
    try:
        return {*needed} <= {*column_names(location, _HERE, DATA, layout)}
    except DataError:
        return False


def seen_from(location: str, folder: Path) -> str:
    """A path as a manifest in `folder` names it: from there, but for URIs, and full paths to another place."""
    if "://" in location:
        return location
    if os.path.isabs(location) and not Path(location).is_relative_to(folder.absolute()):
        return location
    return Path(os.path.relpath(location, folder)).as_posix()


def model_of(name: str, folder: Path, texts: Sequence[tuple[str, ...] | None]) -> Model:
    """The model of a folder or of the hub as a manifest in `folder` names it, with the tokens of these texts if it is
    on this machine. Nothing is downloaded. Raises ModelError for a folder that has no model."""
    local = Path(name) if Path(name).is_dir() else None
    if local is None and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        full = os.path.abspath(name)
        raise ModelError(
            "--model", f"must be a folder or a hub id (got {name}; no such folder: {full})"
        )
    found = Model(seen_from(name, folder) if local else name, pools_by_mean=is_sentence_model(name))
    place = local or _cached(name)
    return found if place is None else _looked_at(found, place, texts, is_given=local is not None)


def _cached(name: str) -> Path | None:
    """The folder of a hub's model that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError as error:
        raise ModelError("--model", f"must be a folder or a hub id (got {name})") from error
    return Path(config).parent if isinstance(config, str) else None


def _looked_at(
    model: Model, place: Path, texts: Sequence[tuple[str, ...] | None], is_given: bool
) -> Model:
    from finetune_trainer.data.model_source import ModelSource, max_tokens  # imports torch
    from finetune_trainer.data.tokens import Frame, tokenise

    try:
        source = ModelSource.find(PretrainedModel(name=str(place)), _HERE)
        config, tokenizer = source.config(), source.tokenizer()
    except ModelError as error:
        if not is_given:  # only a part of it was downloaded
            return model
        raise ModelError("--model", error.message) from error
    found = replace(
        model,
        family=str(config.model_type),
        width=int(getattr(config, "hidden_size", 0)),
        limit=max_tokens(tokenizer, config),
        pools_by_mean=model.pools_by_mean or _is_sentence_folder(place),
    )
    rows = [text for text in texts if text is not None][:_SAMPLE]
    if not rows:
        return found
    columns = [*zip(*rows, strict=True)]
    special = Frame.of(tokenizer, columns[:2]).special
    lengths = np.sum([tokenise(tokenizer, column).lengths for column in columns], axis=0)
    return replace(found, tokens=Lengths.of([int(length) + special for length in lengths]))


def _is_sentence_folder(place: Path) -> bool:
    """Whether a folder has a sentence encoder: by its list of modules, or by the name that its configuration has."""
    return (place / "modules.json").is_file() or "MiniLM" in place.name
