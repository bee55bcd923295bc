"""`finetune evaluate`: how well a model predicts rows that have labels."""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from finetune_trainer.commands.output import add_output
from finetune_trainer.commands.rows import add_model_and_rows, in_words_of_a_command, said

if TYPE_CHECKING:  # torch is slow to import
    from finetune_trainer.artifacts.measured import Measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune evaluate`."""
    add_model_and_rows(parser, "rows with labels: CSV, TSV, JSON or Parquet, each also .gz; CoNLL")
    parser.add_argument(
        "--label-column", metavar="NAME", help="column of labels (default: as in the study)"
    )
    parser.add_argument(
        "--slice",
        action="append",
        default=[],
        metavar="COLUMN",
        help="measure the rows with each value of this column by themselves, too",
    )
    add_output(parser)


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Print the metrics; 0, for whatever is wrong is raised."""
    from finetune_api.objective import Slice
    from finetune_trainer.artifacts.measured import measure
    from finetune_trainer.artifacts.predictor import load_predictor

    with in_words_of_a_command():
        predictor = load_predictor(parsed.model, parsed.batch_size)
        dataset = predictor.about.rows_of(parsed.file, parsed.text_column, parsed.label_column)
        slices = [
            Slice(name=f"slice{at}" if {"=", "@"} & {*column} else None, column=column)
            for at, column in enumerate(parsed.slice)
        ]
        found = measure(predictor, dataset, slices)
    warnings = [*map(said, found.warnings)]
    if parsed.output == "json":
        print(json.dumps({**found.to_json(), "warnings": warnings}, ensure_ascii=False))
        return 0
    for table in tables(found):
        console.print(table)
    for warning in warnings:
        console.print(f"warning: {warning}", highlight=False)
    return 0


def tables(found: "Measured") -> Iterator[Table]:
    """What was measured."""
    metrics = Table("metric", "value", "95 % interval", title=f"{found.rows:,} rows")
    for name, value in found.metrics.items():
        metrics.add_row(name, f"{value:.4f}", _between(found.detail.intervals.get(name)))
    yield metrics
    if found.detail.report.labels:
        labels = Table("label", "precision", "recall", "f1", "support", title="By label")
        for one in found.detail.report.labels:
            scores = (f"{score:.4f}" for score in (one.precision, one.recall, one.f1))
            labels.add_row(one.label, *scores, f"{one.support:,}")
        yield labels
    names = list(dict.fromkeys(name for one in found.detail.slices for name in one.metrics))
    if names:
        first, *others = names
        slices = Table("slice", "rows", first, "95 % interval", *others, title="By slice")
        for each in found.detail.slices:
            values = [f"{each.metrics[n]:.4f}" if n in each.metrics else "" for n in names]
            named = f"{each.division} {each.value}"
            slices.add_row(named, f"{each.rows:,}", values[0], _between(each.interval), *values[1:])
        yield slices


def _between(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
