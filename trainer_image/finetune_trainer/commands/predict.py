"""`finetune predict`: what a model says of each row of a file."""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console

from finetune_trainer.commands.rows import add_model_and_rows, in_words_of_a_command

if TYPE_CHECKING:  # torch is slow to import
    from finetune_api.dataset import Dataset
    from finetune_trainer.artifacts.predictor import Predictor
    from finetune_trainer.data.formats import FileRows
    from finetune_trainer.tasks.prediction import Prediction

_CHUNK = 4096
"""Rows that are read, sorted by length and told together."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune predict`."""
    add_model_and_rows(
        parser,
        "rows to predict: CSV, TSV, JSON or Parquet, each also .gz; - for lines of text or JSON on stdin",
    )
    parser.add_argument(
        "--output-file", type=Path, help="file to write the JSON lines to (default: stdout)"
    )


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Write a line for each row, in order; 0, for whatever is wrong is raised."""
    from finetune_trainer.artifacts.predictor import load_predictor  # torch is slow to import

    with in_words_of_a_command(), ExitStack() as stack:
        predictor = load_predictor(parsed.model, parsed.batch_size)
        dataset = predictor.about.rows_of(text_columns=parsed.text_column)
        out: IO[str] = sys.stdout
        if parsed.output_file is not None:
            out = stack.enter_context(parsed.output_file.open("w", encoding="utf-8"))
        count = _Count(predictor)
        try:
            _write(parsed.file, dataset, count, out)
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # what is left goes nowhere
            return 0
    for warning in count.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _write(file: str, dataset: "Dataset", count: "_Count", out: IO[str]) -> None:
    given_words = dataset.tokens_column is not None and not _is_text(file)
    with _progress() as progress:
        task = progress.add_task("rows", total=None)
        for rows in _chunks(file, dataset):
            for prediction in _predictions(rows, count.predictor, dataset, given_words):
                count.add(prediction)
                print(json.dumps(prediction.to_json(), ensure_ascii=False), file=out)
            out.flush()
            progress.update(task, completed=count.rows)


def _progress() -> Any:
    """How many rows are done, where somebody looks on."""
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    shown = sys.stderr.isatty() and not sys.stdin.isatty()
    return Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)


@dataclass
class _Count:
    """What became of the rows."""

    predictor: "Predictor"
    rows: int = 0
    unanswered: int = 0
    example: str = ""

    def add(self, prediction: "Prediction") -> None:
        """Count one row."""
        self.rows += 1
        if prediction.error is not None:
            self.unanswered += 1
            self.example = self.example or f"row {self.rows} {prediction.error}"

    def warnings(self) -> Iterator[str]:
        """What the caller should know."""
        if self.predictor.told_of_length:
            yield self.predictor.told_of_length
        if self.unanswered:
            have = "row has" if self.unanswered == 1 else "rows have"
            yield f"{self.unanswered} of {self.rows} {have} an error in place of an answer ({self.example})"


def _chunks(file: str, dataset: "Dataset") -> Iterator["FileRows"]:
    """The rows of the file, or of stdin."""
    from finetune_trainer.data.formats import Layout
    from finetune_trainer.data.load import in_chunks

    fields = dict.fromkeys(dataset.read, "--text-column")
    if file != "-":
        return in_chunks(file, Path(), "FILE", fields, Layout(), _CHUNK)
    size = 1 if sys.stdin.isatty() else _CHUNK  # somebody waits for each answer
    return _texts(fields, size) if _is_text(file) else _objects(fields, size)


def _is_text(file: str) -> bool:
    """Whether the rows are lines of text: those of stdin, unless they begin like a JSON object."""
    return file == "-" and not _stdin().peek(1).lstrip().startswith(b"{")


def _stdin() -> io.BufferedReader:
    return cast(io.BufferedReader, sys.stdin.buffer)


def _objects(fields: Mapping[str, str], size: int) -> Iterator["FileRows"]:
    from finetune_trainer.data.formats import Layout, Unreadable, WrongColumn, json_chunks
    from finetune_trainer.errors import DataError

    try:
        yield from json_chunks(_stdin(), [*fields], Layout(), size)
    except WrongColumn as error:
        raise DataError(fields[error.name], f"{error} on stdin") from error
    except Unreadable as error:
        raise DataError("FILE", f"stdin {error}") from error


def _texts(fields: Mapping[str, str], size: int) -> Iterator["FileRows"]:
    from finetune_trainer.data.formats import FileRows
    from finetune_trainer.errors import DataError

    if len(fields) > 1:
        read = " and ".join(fields)
        raise DataError("FILE", f"must have a JSON object with {read} on each line (got text)")
    (column,) = fields
    while lines := [*islice(_stdin(), size)]:
        texts = [line.decode("utf-8", "surrogateescape").rstrip("\r\n") for line in lines]
        yield FileRows({column: texts})


def _predictions(
    rows: "FileRows", predictor: "Predictor", dataset: "Dataset", given_words: bool
) -> Iterator["Prediction"]:
    """One for each row of the file, also for those that cannot be read, in order."""
    from finetune_trainer.cells.places import Places
    from finetune_trainer.tasks.prediction import Prediction

    columns = [rows.columns[name] for name in dataset.read]
    places = Places(rows.numbers, rows.unit)
    found = iter(predictor.predict_rows(columns, dataset, given_words, places))
    unread = {row.line: f"cannot be read: {row.why}" for row in rows.unread}
    if rows.numbers is None:
        yield from found
        return
    for number in sorted([*rows.numbers, *unread]):
        yield Prediction(error=unread[number]) if number in unread else next(found)
