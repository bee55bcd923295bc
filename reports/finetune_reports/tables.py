"""Studies in rows, for consoles and other programs: the leaderboard of one, and several side by side."""

from collections.abc import Sequence
from typing import Any

from finetune_reports.document import NoReport, Report, Scalar, Trial

Row = dict[str, Any]
"""JSON values by column."""


def leaderboard(report: Report, by: str | None = None, largest_first: bool = True) -> list[Row]:
    """A row a trial, the best first; those that cannot win come last, by number.

    Columns are `trial`, `state`, `value`, `standardError`, `epochs`, `params`, `metrics` and `message`. With `by` the
    order is that of a metric, and trials without it come last. Raises NoReport if no trial has that metric.
    """
    others = [trial for trial in report.trials if trial.place is None]
    trials = [*report.ranked, *others]
    if by is not None:
        known = sorted({name for trial in trials for name in trial.metrics})
        if by not in known:
            said = ", ".join(known) or "no trial has one yet"
            raise NoReport(f"must be a metric of the trials: {said} (got {by})")
        sign = -1 if largest_first else 1
        trials.sort(key=lambda trial: (by not in trial.metrics, sign * trial.metrics.get(by, 0.0)))
    return [_row(trial) for trial in trials]


def _row(trial: Trial) -> Row:
    return {
        "trial": trial.number,
        "state": trial.state,
        "value": trial.value,
        "standardError": trial.standard_error,
        "epochs": trial.epochs,
        "params": dict(trial.params),
        "metrics": dict(trial.metrics),
        "message": trial.message,
    }


def chosen(report: Report) -> dict[str, Scalar]:
    """The hyperparameters of the best trial, with those that the study fixes."""
    return {**report.defaults, **(report.best.params if report.best else {})}


def side_by_side(reports: Sequence[Report]) -> list[Row]:
    """A row a study: what it searched with, its best value, its test value with interval, and what it has cost."""
    return [_study(report) for report in reports]


def _study(report: Report) -> Row:
    metric, final = report.objective.metric, report.final
    interval = report.test_interval(metric)
    return {
        "study": report.name,
        "task": report.task,
        "model": report.model,
        "search": report.algorithm,
        "scheduler": report.scheduler,
        "metric": metric,
        "goal": report.objective.goal,
        "best": report.best.value if report.best else None,
        "test": final.test.get(metric) if final else None,
        "testInterval": list(interval) if interval else None,
        "trials": report.begun,
        "epochs": report.spending.epochs,
        "seconds": report.spending.seconds,
        "dataFingerprint": (report.data or {}).get("fingerprint"),
    }


def differing(reports: Sequence[Report]) -> dict[str, list[Scalar | None]]:
    """Hyperparameters of the best trials that are not the same in all studies: name → value of each, None without it."""
    all_chosen = [chosen(report) for report in reports]
    names = dict.fromkeys(name for params in all_chosen for name in params)
    table = {name: [params.get(name) for params in all_chosen] for name in names}
    # Of one kind, for True is no 1, though 1.0 is.
    kinds = {
        name: {(isinstance(each, bool), each) for each in values} for name, values in table.items()
    }
    return {name: values for name, values in table.items() if len(kinds[name]) > 1}
