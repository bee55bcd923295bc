"""`finetune trials`: the leaderboard of a study."""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from finetune_trainer.commands.output import print_columns, print_json
from finetune_trainer.commands.report import document_in

SHOWN = 20
"""Trials in a table, unless `--limit` says else."""

_BEFORE = ("trial", "value", "standardError", "state", "epochs")
_AFTER = ("message",)
_METRIC = "metric "


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
        print_json(shown)
        return 0
    flat = [_flat(row) for row in shown]
    headings = _headings(flat)
    if parsed.output == "csv":
        writer = csv.DictWriter(sys.stdout, headings)
        writer.writeheader()
        writer.writerows(flat)
        return 0
    from finetune_api.wording import format_value

    def cell(value: object) -> str:
        return "" if value is None else format_value(value)

    metric = report.objective.metric
    columns = [
        (metric if name == "value" else name, [cell(row.get(name)) for row in flat])
        for name in headings
    ]
    filled = [column for column in columns if any(column[1])]
    if not filled:
        console.print("no trials yet")
        return 0
    print_columns(console, filled, ("trial", metric, f"{_METRIC}{by}"))
    if len(shown) < len(rows):
        more = f"{len(rows) - len(shown)} more: --limit {len(rows)}"
        console.print(more, highlight=False)
    return 0


def _flat(row: dict[str, object]) -> dict[str, object]:
    """Parameters and metrics as columns of their own. A function may have a parameter called `epochs`."""
    params, metrics = row["params"], row["metrics"]
    assert isinstance(params, dict)
    assert isinstance(metrics, dict)
    taken = {*_BEFORE, *_AFTER}
    return {
        **{name: row[name] for name in _BEFORE},
        **{f"param {name}" if name in taken else name: params[name] for name in params},
        **{f"{_METRIC}{name}": metrics[name] for name in metrics},
        **{name: row[name] for name in _AFTER},
    }


def _headings(rows: Sequence[dict[str, object]]) -> list[str]:
    """Parameters before metrics, also where the first trials do not have all of them."""
    others = dict.fromkeys(name for row in rows for name in row if name not in _BEFORE + _AFTER)
    return [*_BEFORE, *sorted(others, key=lambda name: name.startswith(_METRIC)), *_AFTER]
