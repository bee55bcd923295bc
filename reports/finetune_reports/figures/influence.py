"""Figures of what mattered: by Optuna, over the study rebuilt as one of its own."""

import json
from typing import TYPE_CHECKING, Any

from finetune_reports.comparable import Comparable, comparable
from finetune_reports.document import Report
from finetune_reports.figures.figure import BLUE, POINTS, SCALE, Figure, evenly, label
from finetune_reports.optuna_study import optuna_study

if TYPE_CHECKING:  # it takes a second
    from optuna import Study

LEAST = 5
"""Comparable trials from which on it is asked what mattered."""

FEW = 20
"""Below so many the answer is a hint."""

MOST_TRIALS = 1000
MOST_AXES = 8


def influence(report: Report) -> list[Figure]:
    """Importances, slices and a contour; nothing from fewer than five comparable trials."""
    found = comparable(report)
    numbers = evenly(sorted(found.values), MOST_TRIALS)
    found = Comparable({at: found.values[at] for at in numbers}, found.said)
    if len(found.values) < LEAST:
        return []
    study = optuna_study(report, found.values)
    importances = _importances(study)
    if not importances:
        return []
    names = list(importances)[:MOST_AXES]
    figures = [_bars(report, importances, found), _slices(report, study, names, found)]
    if len(names) > 1:
        figures.append(_contour(report, study, names[:2], found))
    return figures


def _importances(study: "Study") -> dict[str, float]:
    """Name → share, the most important first, of the hyperparameters that all trials have."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    trials = study.trials
    shared = set.intersection(*(set(trial.params) for trial in trials)) if trials else set()
    varied = [name for name in sorted(shared) if len({t.params[name] for t in trials}) > 1]
    if not varied:
        return {}
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=varied)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _bars(report: Report, importances: dict[str, float], found: Comparable) -> Figure:
    names = list(importances)[:20][::-1]
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [label(name, 24) for name in names],
        "x": [importances[name] for name in names],
        "text": [f"{importances[name]:.2f}" for name in names],
        "marker": {"color": BLUE},
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }
    caption = f"How much each hyperparameter decides whether a trial is among the best (PED-ANOVA), by {report.objective.metric} {found.said}"
    caption += f" of {len(found.values)} trials."
    if len(found.values) < FEW:
        caption += " So few trials give a hint, no more."
    layout = {
        "xaxis": {"title": {"text": "importance"}, "rangemode": "tozero"},
        "yaxis": {"automargin": True},
    }
    height = 150 + 28 * len(names)
    return Figure("importances", "What mattered", caption, [trace], layout, height)


def _slices(report: Report, study: "Study", names: list[str], found: Comparable) -> Figure:
    from optuna.visualization import plot_slice

    metric = report.objective.metric
    drawn = _plain(plot_slice(study, params=names, target_name=metric))
    for trace in drawn["data"]:
        marker = trace["marker"]
        marker.pop("line", None)
        marker["colorscale"] = POINTS
        marker["size"] = 8
        if "colorbar" in marker:
            marker["colorbar"] = {"title": {"text": "trial"}, "thickness": 12}
    caption = f"{metric} {found.said} by each hyperparameter; the lighter, the later the trial."
    return Figure(
        "slices", "Values by hyperparameter", caption, drawn["data"], drawn["layout"], 360
    )


def _contour(report: Report, study: "Study", names: list[str], found: Comparable) -> Figure:
    from optuna.visualization import plot_contour

    metric = report.objective.metric
    drawn = _plain(plot_contour(study, params=names, target_name=metric))
    for trace in drawn["data"]:
        if trace["type"] == "contour":
            trace["colorscale"] = SCALE
            trace["reversescale"] = False
            trace["colorbar"] = {"title": {"text": metric}, "thickness": 12}
    caption = f"{metric} {found.said} between trials (dots), by the two hyperparameters that mattered most."
    return Figure(
        "contour", "The two that mattered most", caption, drawn["data"], drawn["layout"], 420
    )


def _plain(figure: Any) -> dict[str, Any]:
    """A figure of Plotly without its template and title; the page has its own."""
    found: dict[str, Any] = json.loads(figure.to_json())
    layout = found["layout"]
    layout.pop("template", None)
    layout.pop("title", None)
    layout.pop("width", None)
    layout.pop("height", None)
    layout["showlegend"] = False
    return {"data": found["data"], "layout": layout}
