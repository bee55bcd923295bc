"""`finetune ls`: the studies on this machine, a line each. It loads no models: a folder of hundreds is listed at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from finetune_api.texts import plain
from finetune_trainer.commands.output import add_output, print_json
from finetune_trainer.storage.glance import Glance, age, glances
from finetune_trainer.storage.layout import RUNS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune ls`."""
    parser.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="*",
        type=Path,
        help=f"folder of a study, or with studies in it (default: {RUNS})",
    )
    add_output(parser)


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Print a line a study, the one that changed last first."""
    folders = parsed.folders or [Path(RUNS)]
    found = latest_first(folders if parsed.folders or Path(RUNS).is_dir() else [])
    if parsed.output == "json":
        print_json([each.to_json() for each in found])
    elif found:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="")
        for heading in ("NAME", "STATE", "TRIALS", "METRIC", "BEST", "TEST", "CHANGED", "FOLDER"):
            table.add_column(heading, overflow="fold")
        for each in found:
            table.add_row(*(Text(plain(cell)) for cell in _cells(each)))
        console.print(table)
    else:
        where = ", ".join(map(str, folders))
        console.print(f"no studies in {where}", highlight=False, markup=False)
    return 0


def latest_first(folders: Sequence[Path]) -> list[Glance]:
    """The studies in these folders, the one that changed last first. Raises NotADirectoryError."""
    return sorted(glances(folders), key=lambda each: each.changed, reverse=True)


def _cells(one: Glance) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    ago = f"{age(one.changed)} ago"
    return [
        one.name,
        one.state,
        one.trials,
        one.metric,
        shown(one.best),
        shown(one.test),
        ago,
        one.folder,
    ]
