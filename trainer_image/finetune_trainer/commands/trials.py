"""`finetune trials`: the leaderboard of a study."""

import argparse
import csv
import json
import sys
from pathlib import Path

from rich.console import Console

from finetune_trainer.commands.report import document_in

SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune trials`."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of a study")
    parser.add_argument(
        "--sort", metavar="METRIC", help="order by this metric (default: by the objective)"
    )
    parser.add_argument(
        "--limit", type=int, help=f"trials to print (default: {SHOWN} in a table, else all)"
    )
    parser.add_argument(
        "--output",
        choices=("table", "json", "csv"),
        default="table",
        help="form of what is printed",
    )


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Print a row a trial, the best first."""
    from finetune_api.metrics import natural_goal
    from finetune_reports.document import NoReport
    from finetune_reports.tables import leaderboard
    from finetune_trainer.errors import SpecError

    if parsed.limit is not None and parsed.limit < 1:
        raise SpecError("--limit", f"must be at least 1 (got {parsed.limit})")
    report = document_in(parsed.folder)
    goals = {each.metric: each.goal for each in report.objectives}
    by: str | None = parsed.sort
    largest = by is None or goals.get(by, natural_goal(by)) == "Maximize"
    try:
        rows = leaderboard(report, by, largest)
    except NoReport as error:
        raise SpecError("--sort", str(error)) from error
    shown = rows[: parsed.limit or (SHOWN if parsed.output == "table" else None)]
    if parsed.output == "json":
        print(json.dumps(shown, ensure_ascii=False, indent=2))
        return 0
    flat = [_flat(row) for row in shown]
    headings = list(dict.fromkeys(name for row in flat for name in row))
    if parsed.output == "csv":
        writer = csv.DictWriter(sys.stdout, headings)
        writer.writeheader()
        writer.writerows(flat)
        return 0
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from finetune_api.wording import format_value

    metric = report.objective.metric
    filled = [name for name in headings if any(row.get(name) not in (None, "") for row in flat)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in filled:
        table.add_column(Text(metric if name == "value" else name), overflow="fold")
    for row in flat:
        cells = (row.get(name) for name in filled)
        table.add_row(*(Text("" if cell is None else format_value(cell)) for cell in cells))
    console.print(table)
    if len(shown) < len(rows):
        more = f"{len(rows) - len(shown)} more: --limit {len(rows)}"
        console.print(more, highlight=False)
    return 0


def _flat(row: dict[str, object]) -> dict[str, object]:
    """Parameters and metrics as columns of their own."""
    params, metrics = row["params"], row["metrics"]
    assert isinstance(params, dict)
    assert isinstance(metrics, dict)
    plain = {name: row[name] for name in ("trial", "value", "standardError", "state", "epochs")}
    return {
        **plain,
        **params,
        **{f"metric {name}": metrics[name] for name in metrics},
        "message": row["message"],
    }
