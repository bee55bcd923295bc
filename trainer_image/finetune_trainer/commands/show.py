"""`finetune show`: where a study stands, on one screen."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from finetune_api.texts import plain
from finetune_trainer.commands.output import add_output, print_columns, print_json
from finetune_trainer.commands.report import document_in
from finetune_trainer.storage.glance import Glance, glance

if TYPE_CHECKING:
    from finetune_reports.document import Report

MOST = 5
"""Trials on the screen."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune show`."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of a study")
    add_output(parser)


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Print state, spending, the best configuration, the best trials and the test."""
    report = document_in(parsed.folder)
    seen = glance(parsed.folder)
    if parsed.output == "json":
        print_json(facts(report, seen))
    else:
        _show(report, seen, console)
    return 0


def facts(report: "Report", seen: Glance) -> dict[str, object]:
    """The same as JSON values."""
    from pydantic.alias_generators import to_camel

    from finetune_reports.tables import chosen, leaderboard, side_by_side

    spending = report.spending.model_dump(mode="json")
    return {
        **side_by_side([report])[0],
        "state": seen.state,
        "reason": seen.reason,
        "message": seen.message,
        "folder": seen.folder,
        "spending": {to_camel(name): value for name, value in spending.items()},
        "bestTrial": report.best.number if report.best else None,
        "bestParams": chosen(report),
        "topTrials": leaderboard(report)[: min(MOST, len(report.ranked))],
        "testMetrics": dict(report.final.test) if report.final else None,
        "baseline": dict(report.final.baseline) if report.final else None,
        "modelUri": report.final.model_uri if report.final else None,
        "warnings": list(report.warnings),
    }


def _show(report: "Report", seen: Glance, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from finetune_api.wording import duration, format_value
    from finetune_reports.tables import chosen

    objective, best, final = report.objective, report.best, report.final
    state = seen.state + (f" ({seen.reason})" if seen.reason and seen.is_over else "")
    lines = {
        "study": report.name + (f" ({report.task}, {report.model})" if report.model else ""),
        "state": f"{state}{': ' + seen.message if seen.message else ''}",
        "search": f"{report.search}, {objective.goal.lower()} {objective.metric}",
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
        interval = report.test_interval(objective.metric)
        span = "" if interval is None else f" (95 %: {interval[0]:.4g} to {interval[1]:.4g})"
        if measured is not None:
            lines["test"] = f"{objective.metric} {measured:.4g}{span}"
        lines["model"] = final.model_uri
    grid = Table.grid(padding=(0, 2))
    for name, told in lines.items():
        grid.add_row(Text(f"{name}:"), Text(plain(told), overflow="fold"))
    console.print(grid)
    ranked = report.ranked[:MOST]
    names = list(dict.fromkeys(name for trial in ranked for name in trial.params))
    if ranked:
        console.print()
        columns: list[tuple[str, list[object]]] = [
            ("trial", [trial.number for trial in ranked]),
            (objective.metric, [format_value(trial.value) for trial in ranked]),
            ("best epoch", ["" if trial.epoch is None else f"{trial.epoch:g}" for trial in ranked]),
        ]
        kept = [name for name, _ in columns]
        for name in names:
            columns.append((name, [format_value(trial.params.get(name, "")) for trial in ranked]))
        print_columns(console, columns, kept)
    for warning in report.warnings:
        console.print(f"warning: {plain(warning)}", highlight=False, markup=False)
    ui = f"finetune trials {seen.folder}; finetune report {seen.folder}; finetune ui"
    console.print(f"\nmore: {plain(ui)}", highlight=False, markup=False)
