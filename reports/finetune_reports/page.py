"""The report of a study as one HTML file that needs no network."""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from finetune_reports.document import Report, Trial
from finetune_reports.figures import search, test
from finetune_reports.figures.figure import Figure, number
from finetune_reports.figures.influence import influence

MOST_ROWS = 50
"""Trials in the table of a page."""


def page_of(report: Report) -> str:
    """The page of one study."""
    figures = list(figures_of(report))
    return _rendered(
        "report.html",
        figures,
        report=report,
        trials=report.ranked[:MOST_ROWS],
        others=[trial for trial in report.trials if trial.place is None][:MOST_ROWS],
        metrics=_metric_names(report),
        params={**report.defaults, **(report.best.params if report.best else {})},
    )


def comparison_of(reports: Sequence[Report]) -> str:
    """The page of several studies side by side."""
    figures = [
        figure for figure in (search.over_hours(reports), search.over_trials(reports)) if figure
    ]
    return _rendered("comparison.html", figures, reports=reports, differing=differing(reports))


def figures_of(report: Report) -> Iterator[Figure]:
    """All figures that the study has something for."""
    found = (
        search.history(report),
        search.over_hours([report]),
        search.curves(report),
        search.pareto(report),
        *influence(report),
        search.parallel(report),
        search.timeline(report),
        test.confusion(report),
        test.calibration(report),
        test.residuals(report),
        test.by_slice(report),
    )
    return (figure for figure in found if figure is not None)


def differing(reports: Sequence[Report]) -> dict[str, list[str]]:
    """Hyperparameters of the best trials that are not the same in all studies: name → value of each, or empty."""
    chosen = [
        {**report.defaults, **(report.best.params if report.best else {})} for report in reports
    ]
    names = dict.fromkeys(name for params in chosen for name in params)
    table = {name: [_shown(params.get(name, "")) for params in chosen] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}


def _metric_names(report: Report) -> list[str]:
    """Metrics in the table of trials beside the objective: those of the best trial, the loss last."""
    best = report.best
    names = [name for name in (best.metrics if best else {}) if name != report.objective.metric]
    return sorted(names, key=lambda name: name == "loss")[:6]


def _rendered(template: str, figures: Sequence[Figure], **values: Any) -> str:
    """The page; figures go into it as data, which a browser never executes."""
    data = json.dumps({each.id: each.to_json() for each in figures}, allow_nan=False)
    scripts = [plotly_script(), _asset("page.js")]
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    return (
        _environment()
        .get_template(template)
        .render(
            policy=Markup(policy),
            style=Markup(_asset("page.css")),
            scripts=list(map(Markup, scripts)),
            data=Markup(_as_data(data)),
            figures={each.id: each for each in figures},
            **values,
        )
    )


def _as_data(document: str) -> str:
    """JSON as it may stand in a page: nothing in it ends the element."""
    return document.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


@cache
def plotly_script() -> str:
    """The script that draws, as the package `plotly` has it."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def _asset(name: str) -> str:
    return files("finetune_reports").joinpath("templates", name).read_text("utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("finetune_reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "shown": _shown,
        "duration": duration,
        "time": _time,
        "state": _state,
        "answer": _answer,
        "yaml": _yaml,
    }
    environment.globals |= {"counts": _counts, "tokens": _tokens, "fingerprints": _fingerprints}
    return environment


def _shown(value: object) -> str:
    """A value of a hyperparameter."""
    if isinstance(value, bool):
        return str(value).lower()
    return number(value) if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """In the unit that matters: `40 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


_STATES = {"Completed": "trained to the end", "Stopped": "stopped early"}


def _state(trial: Trial) -> str:
    return _STATES.get(trial.state, trial.state.lower())


def _counts(report: Report) -> list[tuple[str, int]]:
    return list(Counter(map(_state, report.trials)).items())


def _answer(value: object) -> str:
    """A label or prediction: one, several, or a number."""
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return _shown(value)


def _yaml(value: object) -> str:
    """A scalar as it may stand in a manifest: JSON's are YAML's."""
    return json.dumps(value, ensure_ascii=False)


def _tokens(row: dict[str, Any]) -> list[tuple[str, float]]:
    """Each token with its contribution to the first output, as a share of the largest."""
    weights = row["outputs"][0]["attributions"]
    most = max(map(abs, weights), default=0.0) or 1.0
    return [(token, weight / most) for token, weight in zip(row["tokens"], weights, strict=True)]


def _fingerprints(reports: Sequence[Report]) -> set[str]:
    return {report.data["fingerprint"] for report in reports if report.data}
