"""The report of a study as one HTML file that needs no network."""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import BaseLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from finetune_reports.document import Report, Trial
from finetune_reports.figures import search, test
from finetune_reports.figures.figure import Figure, number
from finetune_reports.figures.influence import influence
from finetune_reports.tables import chosen, differing

MOST_ROWS = 50
"""Trials in the table of a page."""


def page_of(report: Report) -> str:
    """The page of one study."""
    page = report_parts(report)
    return _self_contained("report.html", page.figures, page.values)


def comparison_of(reports: Sequence[Report]) -> str:
    """The page of several studies side by side."""
    page = comparison_parts(reports)
    return _self_contained("comparison.html", page.figures, page.values)


@dataclass(frozen=True)
class Parts:
    """What a template makes a page of."""

    figures: Sequence[Figure]
    values: Mapping[str, Any]


def report_parts(report: Report) -> Parts:
    """The parts of the page of one study, for `report.html`."""
    values = {
        "report": report,
        "trials": report.ranked[:MOST_ROWS],
        "others": [trial for trial in report.trials if trial.place is None][:MOST_ROWS],
        "metrics": _metric_names(report),
        "params": chosen(report),
    }
    return Parts(list(figures_of(report)), values)


def comparison_parts(reports: Sequence[Report]) -> Parts:
    """The parts of the page of several studies, for `comparison.html`."""
    drawn = (search.over_hours(reports), search.over_trials(reports))
    values = {"reports": reports, "differing": differing(reports)}
    return Parts([figure for figure in drawn if figure], values)


def figures_of(report: Report) -> Iterator[Figure]:
    """All figures that the study has something for. Without all trials there are none of the search."""
    of_search = (
        (
            search.history(report),
            search.over_hours([report]),
            search.curves(report),
            search.pareto(report),
            *influence(report),
            search.parallel(report),
            search.timeline(report),
        )
        if not report.missing
        else ()
    )
    found = (
        *of_search,
        test.confusion(report),
        test.calibration(report),
        test.residuals(report),
        test.by_slice(report),
    )
    return (figure for figure in found if figure is not None)


def _metric_names(report: Report) -> list[str]:
    """Metrics in the table of trials beside the objective: those of the best trial, the loss last."""
    best = report.best
    names = [name for name in (best.metrics if best else {}) if name != report.objective.metric]
    return sorted(names, key=lambda name: name == "loss")[:6]


def _self_contained(template: str, figures: Sequence[Figure], values: Mapping[str, Any]) -> str:
    """The page with its scripts in it, which its policy names by their hashes."""
    scripts = [plotly_script(), asset("page.js")]
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
    found = _environment().get_template(template)
    return rendered(found, figures, policy, {**values, "scripts": list(map(Markup, scripts))})


def rendered(
    template: Template, figures: Sequence[Figure], policy: str, values: Mapping[str, Any]
) -> str:
    """A page that extends `base.html`; figures go into it as data, which a browser never executes."""
    data = json.dumps({each.id: each.to_json() for each in figures}, allow_nan=False)
    return template.render(
        policy=Markup(policy),
        style=Markup(asset("page.css")),
        data=Markup(_as_data(data)),
        figures={each.id: each for each in figures},
        **values,
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
def asset(name: str) -> str:
    """A file beside the templates."""
    return files("finetune_reports").joinpath("templates", name).read_text("utf-8")


@cache
def _environment() -> Environment:
    return environment_of(PackageLoader("finetune_reports"))


def environment_of(loader: BaseLoader) -> Environment:
    """The environment of the templates here, and of those that extend them."""
    environment = Environment(
        loader=loader,
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
