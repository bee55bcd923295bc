"""`finetune show`: where a study stands, on one screen."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from finetune_trainer.commands.report import document_in
from finetune_trainer.storage.glance import Glance, glance

if TYPE_CHECKING:
    from finetune_reports.document import Report

MOST = 5
"""Trials on the screen."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune show`."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of a study")
    parser.add_argument(
        "--output", choices=("table", "json"), default="table", help="form of what is printed"
    )


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Print state, spending, the best configuration, the best trials and the test."""
    report = document_in(parsed.folder)
    seen = glance(parsed.folder)
    if parsed.output == "json":
        print(json.dumps(facts(report, seen), ensure_ascii=False, indent=2))
    else:
        _show(report, seen, console)
    return 0


def facts(report: "Report", seen: Glance) -> dict[str, object]:
    """The same as JSON values."""
    from finetune_reports.tables import chosen, leaderboard, side_by_side

    return {
        **side_by_side([report])[0],
        "state": seen.state,
        "reason": seen.reason,
        "message": seen.message,
        "folder": seen.folder,
        "spending": report.spending.model_dump(mode="json"),
        "bestTrial": report.best.number if report.best else None,
        "bestParams": chosen(report),
        "topTrials": leaderboard(report)[:MOST],
        "testMetrics": dict(report.final.test) if report.final else None,
        "baseline": dict(report.final.baseline) if report.final else None,
        "modelUri": report.final.model_uri if report.final else None,
        "warnings": list(report.warnings),
    }


def _show(report: "Report", seen: Glance, console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from finetune_api.wording import duration, format_value
    from finetune_reports.tables import chosen

    objective, best, final = report.objective, report.best, report.final
    search = report.algorithm + ("" if report.scheduler == "None" else f", {report.scheduler}")
    state = seen.state + (f" ({seen.reason})" if seen.reason and seen.is_over else "")
    lines = {
        "study": report.name + (f" ({report.task}, {report.model})" if report.model else ""),
        "state": f"{state}{': ' + seen.message if seen.message else ''}",
        "search": f"{search}, {objective.goal.lower()} {objective.metric}",
        "trials": f"{len(report.trials)}, {report.spending.epochs:.4g} epochs, {duration(report.spending.seconds)}",
    }
    for limit in report.spending.limits:
        unit = f" {limit.unit}" if limit.unit else ""
        lines[limit.name] = f"{limit.spent:.4g} of {limit.most:.4g}{unit}"
    if best is not None:
        error = best.standard_error
        about = "" if error is None else f" ± {error:.2g} (standard error)"
        lines["best"] = f"{format_value(best.value)}{about}, trial {best.number}"
        params = (f"{name}={format_value(value)}" for name, value in chosen(report).items())
        lines["parameters"] = ", ".join(params)
    if final is not None:
        measured = final.test.get(objective.metric)
        interval = ((report.test or {}).get("intervals") or {}).get(objective.metric)
        span = "" if interval is None else f" (95 %: {interval[0]:.4g} to {interval[1]:.4g})"
        if measured is not None:
            lines["test"] = f"{objective.metric} {measured:.4g}{span}"
        lines["model"] = final.model_uri
    grid = Table.grid(padding=(0, 2))
    for name, told in lines.items():
        grid.add_row(Text(f"{name}:"), Text(told, overflow="fold"))
    console.print(grid)
    ranked = report.ranked[:MOST]
    names = list(dict.fromkeys(name for trial in ranked for name in trial.params))
    if ranked:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for heading in ("trial", objective.metric, "best epoch", *names):
            table.add_column(Text(heading), overflow="fold")
        for trial in ranked:
            epoch = "" if trial.epoch is None else f"{trial.epoch:g}"
            values = (trial.params.get(name, "") for name in names)
            cells = [str(trial.number), format_value(trial.value), epoch]
            table.add_row(*map(Text, (*cells, *map(format_value, values))))
        console.print()
        console.print(table)
    for warning in report.warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False)
    ui = f"finetune trials {seen.folder}; finetune report {seen.folder}; finetune ui"
    console.print(f"\nmore: {ui}", highlight=False, markup=False)
