"""What commands that use a model share: their arguments, and errors in the words of a command."""

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.errors import DataError, StudyError

_WORDS = (
    (re.compile(r"spec\.dataset\.files\.train"), "FILE"),
    (re.compile(r"spec\.dataset\.(textColumns|tokensColumn)(\[\d+\])?"), "--text-column"),
    (
        re.compile(r"spec\.dataset\.(labelColumns?|tagsColumn|spansColumn)(\[\d+\])?"),
        "--label-column",
    ),
    (re.compile(r"spec\.validation\.slices(\[\d+\])?(\.column)?"), "--slice"),
)
"""Fields of a study, and what a command calls them."""


def add_model_and_rows(parser: argparse.ArgumentParser, file: str) -> None:
    """Declare the arguments MODEL and FILE, with what `file` says of it, and those of both commands."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="folder of a model, or of a study with one"
    )
    parser.add_argument("file", metavar="FILE", help=file)
    parser.add_argument(
        "--text-column",
        action="append",
        metavar="NAME",
        help="column of texts; twice for pairs (default: as in the study, else text)",
    )
    parser.add_argument(
        "--batch-size", type=_at_least_one, default=64, help="rows at a time (default 64)"
    )


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


@contextmanager
def in_words_of_a_command() -> Iterator[None]:
    """A StudyError names an argument of the command in place of a field of the study."""
    try:
        yield
    except StudyError as error:
        raise DataError(said(error.field), said(error.message)) from error


def said(text: str) -> str:
    """`text` with arguments in the place of a study's fields."""
    for field, argument in _WORDS:
        text = field.sub(argument, text)
    return text
