"""`finetune compare`: studies side by side, in the terminal. `finetune report A B` draws the same as a page."""

import argparse
from pathlib import Path

from rich.console import Console

from finetune_api.texts import plain
from finetune_trainer.commands.output import add_output, print_json
from finetune_trainer.commands.report import document_in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune compare`."""
    parser.add_argument(
        "folders", metavar="FOLDER", nargs="+", type=Path, help="folders of two or more studies"
    )
    add_output(parser)


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Print a row a study, then the hyperparameters in which their best trials differ."""
    from finetune_reports.tables import differing, side_by_side
    from finetune_trainer.errors import SpecError

    if len(parsed.folders) < 2:
        raise SpecError("FOLDER", "must be given for at least two studies (got 1)")
    reports = [document_in(folder) for folder in parsed.folders]
    rows, different = side_by_side(reports), differing(reports)
    if parsed.output == "json":
        print_json({"studies": rows, "differing": different})
        return 0
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from finetune_api.wording import duration, format_value

    def shown(value: object) -> str:
        return "" if value is None else format_value(value)

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("study", "search", "metric", "best", "test", "95 % interval", "trials", "time"):
        table.add_column(heading, overflow="fold")
    for report, row in zip(reports, rows, strict=True):
        interval = row["testInterval"]
        span = "" if interval is None else " to ".join(map(shown, interval))
        cells = [
            row["study"],
            report.search,
            row["metric"],
            shown(row["best"]),
            shown(row["test"]),
            span,
        ]
        cells += [str(row["trials"]), duration(row["seconds"])]
        table.add_row(*(Text(plain(cell)) for cell in cells))
    console.print(table)
    if len({row["dataFingerprint"] for row in rows if row["dataFingerprint"]}) > 1:
        console.print("Their data differ, so their values are not of the same rows.")
    if len({(row["metric"], row["goal"]) for row in rows}) > 1:
        console.print("Their objectives differ, so their values cannot be compared.")
    if not different:
        if all(report.best for report in reports):
            console.print("\nTheir best configurations are the same.")
        return 0
    chosen = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    chosen.add_column("hyperparameter of the best trial")
    for row in rows:
        chosen.add_column(Text(plain(row["study"])), overflow="fold")
    for name, values in different.items():
        chosen.add_row(*(Text(plain(cell)) for cell in (name, *map(shown, values))))
    console.print()
    console.print(chosen)
    return 0
