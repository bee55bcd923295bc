"""Figures of how the final model does on the test rows."""

from typing import Any

from finetune_reports.document import Report
from finetune_reports.figures.figure import BLUE, GREY, ORANGE, SCALE, Figure, Json, evenly, label

MOST_CLASSES = 60
"""Classes of a confusion matrix that are drawn: those with the most confusions."""


def confusion(report: Report) -> Figure | None:
    """Rows by class and predicted class."""
    test = report.test or {}
    matrix: list[list[int]] | None = test.get("confusion")
    if not matrix:
        return None
    names = test.get("confused_with") or [one["label"] for one in test.get("labels", [])]
    kept = _most_confused(matrix)
    shown = [names[at] for at in kept]
    counts = [[matrix[row][column] for column in kept] for row in kept]
    shares = [
        [count / max(1, sum(matrix[row])) for count in line]
        for row, line in zip(kept, counts, strict=True)
    ]
    what = "entities" if test.get("confused_with") else "test rows"
    trace: Json = {
        "type": "heatmap",
        "z": shares,
        "x": list(range(len(kept))),
        "y": list(range(len(kept))),
        "customdata": [
            [
                f"{label(names[row])} taken for {label(names[column])}: {matrix[row][column]}"
                for column in kept
            ]
            for row in kept
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "colorscale": SCALE,
        "zmin": 0,
        "zmax": 1,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": "share"}, "thickness": 12},
    }
    if len(kept) <= 20:
        trace["text"] = [[str(count) if count else "" for count in line] for line in counts]
        trace["texttemplate"] = "%{text}"
    ticks = [label(name, 18) for name in shown]
    axis = {
        "tickmode": "array",
        "tickvals": list(range(len(kept))),
        "ticktext": ticks,
        "automargin": True,
    }
    layout = {
        "xaxis": {"title": {"text": "predicted"}, **axis, "tickangle": -45},
        "yaxis": {"title": {"text": "label"}, **axis, "autorange": "reversed"},
    }
    caption = f"{what.capitalize()} of each label (down) by what was predicted (across); colour is the share of the label's {what}."
    if len(kept) < len(matrix):
        caption += (
            f" {len(kept)} of {len(matrix)} classes are drawn: those with the most confusions."
        )
    height = 220 + 26 * min(24, len(kept))
    return Figure("confusion", "Confusion matrix", caption, [trace], layout, height)


def _most_confused(matrix: list[list[int]]) -> list[int]:
    everything = range(len(matrix))
    if len(matrix) <= MOST_CLASSES:
        return list(everything)
    wrong = [
        sum(matrix[at]) + sum(matrix[row][at] for row in everything) - 2 * matrix[at][at]
        for at in everything
    ]
    return sorted(sorted(everything, key=lambda at: -wrong[at])[:MOST_CLASSES])


def by_slice(report: Report) -> Figure | None:
    """The objective's metric on each slice of the test rows, with its interval."""
    slices: list[dict[str, Any]] = (report.test or {}).get("slices", [])
    metric = report.objective.metric.partition("@")[0]
    having = [one for one in slices if metric in one["metrics"]]
    if not having:
        return None
    having = evenly(sorted(having, key=lambda one: one["metrics"][metric]), 40)
    names = [
        f"{label(one['division'], 16)}={label(one['value'], 20)} ({one['rows']:,})"
        for one in having
    ]
    values = [one["metrics"][metric] for one in having]
    bounds = [
        one.get("interval") or (value, value) for one, value in zip(having, values, strict=True)
    ]
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": values,
        "y": list(range(len(names))),
        "text": names,
        "hovertemplate": "%{text}: %{x:.4f}<extra></extra>",
        "marker": {"color": BLUE, "size": 10},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [
                max(0.0, high - value) for (_, high), value in zip(bounds, values, strict=True)
            ],
            "arrayminus": [
                max(0.0, value - low) for (low, _), value in zip(bounds, values, strict=True)
            ],
            "color": GREY,
        },
    }
    whole = report.final.test.get(metric) if report.final else None
    lines = []
    if whole is not None:
        lines.append(
            {
                "type": "line",
                "x0": whole,
                "x1": whole,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": ORANGE, "dash": "dot"},
            }
        )
    layout = {
        "xaxis": {"title": {"text": metric}},
        "yaxis": {
            "tickmode": "array",
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "automargin": True,
        },
        "shapes": lines,
    }
    caption = f"{metric} of each slice of the test rows (number of rows), with the interval that holds 95 % of samples of as many rows; dotted: all rows."
    return Figure(
        "test-slices", "Slices of the test rows", caption, [trace], layout, 160 + 26 * len(names)
    )


def calibration(report: Report) -> Figure | None:
    """How often the model is right, by how sure it is."""
    found: dict[str, Any] = (report.test or {}).get("calibration") or {}
    bins: list[dict[str, Any]] = found.get("bins", [])
    if not bins:
        return None
    traces: list[Json] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [0, 1],
            "y": [0, 1],
            "name": "perfect",
            "line": {"color": GREY, "dash": "dot"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "this model",
            "x": [one["confidence"] for one in bins],
            "y": [one["accuracy"] for one in bins],
            "text": [f"{one['count']:,}" for one in bins],
            "hovertemplate": "sure by %{x:.2f}, right in %{y:.2f} of %{text}<extra></extra>",
            "line": {"color": BLUE},
            "marker": {
                "size": [
                    6 + 14 * (one["count"] / max(b["count"] for b in bins)) ** 0.5 for one in bins
                ]
            },
        },
    ]
    several = report.task == "MultiLabel"
    what = "rows have a label" if several else "a prediction is right"
    caption = f"How often {what}, by the probability that the model gives it; the larger a dot, the more of them."
    caption += f" On average the two differ by {found['error']:.3f} (expected calibration error)."
    layout = {
        "xaxis": {
            "title": {
                "text": "probability of a label" if several else "probability of the prediction"
            },
            "range": [0, 1.02],
        },
        "yaxis": {
            "title": {"text": "share that has it" if several else "share that is right"},
            "range": [0, 1.02],
        },
    }
    return Figure("calibration", "Calibration", caption, traces, layout, 400)


def residuals(report: Report) -> Figure | None:
    """Regression: how far off predictions are."""
    found: dict[str, float] | None = (report.test or {}).get("residuals")
    if not found:
        return None
    shares = sorted((float(share), value) for share, value in found.items())
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [value for _, value in shares],
        "y": [share for share, _ in shares],
        "hovertemplate": "%{y:.0%} of rows are at most %{x:.4g} above their prediction<extra></extra>",
        "line": {"color": BLUE},
    }
    layout = {
        "xaxis": {"title": {"text": "label minus prediction"}},
        "yaxis": {"title": {"text": "share of test rows"}, "range": [0, 1.02], "tickformat": ".0%"},
    }
    caption = "Share of the test rows whose label is at most so much above the prediction."
    return Figure("residuals", "Errors", caption, [trace], layout)
