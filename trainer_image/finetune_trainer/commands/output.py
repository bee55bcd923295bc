"""What commands print of studies: texts of others, which must not steer a terminal, tables that fit it, and JSON."""

import argparse
import json
from collections.abc import Collection, Sequence

from rich.console import Console

from finetune_api.texts import plain, printable


def add_output(parser: argparse.ArgumentParser) -> None:
    """Declare `--output table|json`."""
    parser.add_argument(
        "--output", choices=("table", "json"), default="table", help="form of what is printed"
    )


def print_json(value: object) -> None:
    """Print one JSON document. Names of files that are no text are in it as Python has them, as escapes."""
    print(printable(json.dumps(value, ensure_ascii=False, indent=2)))


def print_columns(
    console: Console, columns: Sequence[tuple[str, Sequence[object]]], kept: Collection[str]
) -> None:
    """Print a table of these headings and cells.

    What has no room is named below it, never what is to be `kept`; what is the same in all rows goes first.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    made = [(plain(name), [plain(cell) for cell in cells]) for name, cells in columns]
    widths = [max(map(cell_len, (name, *cells))) + 3 for name, cells in made]
    shown = {place for place, (name, _) in enumerate(columns) if name in kept}
    left = console.width + 3 - sum(widths[place] for place in shown)  # nothing is beside the last
    others = [place for place in range(len(made)) if place not in shown]
    for place in sorted(others, key=lambda place: len(set(made[place][1])) < 2):
        if widths[place] <= left:
            left -= widths[place]
            shown.add(place)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place in sorted(shown):
        table.add_column(Text(made[place][0]), overflow="fold")
    for row in zip(*(made[place][1] for place in sorted(shown)), strict=True):
        table.add_row(*map(Text, row))
    console.print(table)
    if left_out := [name for place, (name, _) in enumerate(made) if place not in shown]:
        told = f"not shown: {', '.join(left_out)} (--output json has all)"
        console.print(told, highlight=False, markup=False)
