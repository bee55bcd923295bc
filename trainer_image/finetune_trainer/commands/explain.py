"""`finetune explain`: what a field of a study is, as `kubectl explain` says it on a cluster."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from textwrap import wrap
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:  # all models of the contract are slow to import
    from finetune_api.explain import Explained
    from finetune_api.fields import FieldRow

_WIDEST = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune explain`."""
    parser.add_argument(
        "path",
        nargs="?",
        default="spec",
        help="field such as spec.dataset.split (`spec.` may be left out), or a hyperparameter (default: spec)",
    )
    parser.add_argument(
        "--output", choices=("text", "json"), default="text", help="how to print it (default text)"
    )


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Print what the field is; 0."""
    from finetune_api.explain import explain

    found = explain(parsed.path)
    if parsed.output == "json":
        print(json.dumps(asdict(found), ensure_ascii=False, indent=2))
        return 0
    wide = min(_WIDEST, console.width) if sys.stdout.isatty() else _WIDEST
    sys.stdout.write("".join(f"{line}\n" for line in lines_of(found, wide)))
    return 0


def lines_of(found: "Explained", wide: int) -> Iterator[str]:
    """The explanation in lines of at most `wide` characters, where words allow it."""
    yield from _head(found.path, found.type, found.default, wide)
    for text in (found.meaning, found.on_a_laptop):
        if text:
            yield from ("", *_indented(text, 2, wide))
    if found.fields:
        yield from ("", "fields:")
        for row in found.fields:
            yield from _of_row(row, found.path, wide)
    if found.rules:
        yield from ("", "what must hold:")
        for rule in found.rules:
            first, *others = wrap(rule, wide - 4, break_long_words=False) or [""]
            yield from (f"  - {first}", *(f"    {line}" for line in others))


def _of_row(row: "FieldRow", path: str, wide: int) -> Iterator[str]:
    name = row.path.removeprefix(f"{path}.")
    for line in _head(name, row.kind, row.default, wide - 2):
        yield f"  {line}"
    yield from _indented(row.meaning, 6, wide)


def _head(name: str, kind: str, default: str, wide: int) -> Iterator[str]:
    """A field's name, type and default; a list of many words goes on below."""
    said = f", default {default}" if default and default != "required" else ""
    said = ", required" if default == "required" else said
    first, *others = wrap(f"{name}: {kind}{said}", wide, break_long_words=False)
    yield from (first, *(f"    {line}" for line in others))


def _indented(text: str, by: int, wide: int) -> Iterator[str]:
    yield from (f"{' ' * by}{line}" for line in wrap(text, wide - by, break_long_words=False))
