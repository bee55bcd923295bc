"""Figures of the search: what was tried, and what came of it."""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

from finetune_reports.document import Parameter, Report, Scalar, Span, Trial
from finetune_reports.figures.figure import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    POINTS,
    PURPLE,
    RED,
    SKY,
    STOPS,
    Figure,
    Json,
    evenly,
    label,
    number,
)

MOST_CURVES = 100
MOST_POINTS = 2000
MOST_LINES = 300
MOST_BARS = 2000
_BANDS = 8
"""Colours of the lines of parallel coordinates."""

_STATES = {
    "Completed": ("trained to the end", BLUE, "circle"),
    "Stopped": ("stopped early", GREY, "circle-open"),
    "Diverged": ("diverged", RED, "x"),
    "Failed": ("failed", RED, "cross"),
}
_HOW = {
    "reached": ("training", BLUE),
    "running": ("in training", SKY),
    "refit": ("final model", GREEN),
    "requeued": ("saved and given back", PURPLE),
    "lost": ("lost", ORANGE),
    "failed": ("failed", RED),
}


def thinned(report: Report, most: int) -> list[Trial]:
    """At most so many trials that have a value: the best fifth of that, the others spread evenly."""
    ranked = report.ranked
    if len(ranked) <= most:
        return ranked
    best = most // 5
    return [*ranked[:best], *evenly(ranked[best:], most - best)]


def history(report: Report) -> Figure | None:
    """The value of each trial, and the best so far."""
    trials = sorted(thinned(report, MOST_POINTS), key=lambda trial: trial.number)
    if not trials:
        return None
    objective = report.objective
    better = max if objective.sign > 0 else min
    whole = sorted(report.ranked, key=lambda trial: trial.number)
    best = list(accumulate((trial.value for trial in whole if trial.value is not None), better))
    steps = evenly(list(zip([trial.number for trial in whole], best, strict=True)), MOST_POINTS)
    traces: list[Json] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best so far",
            "x": [at for at, _ in steps],
            "y": [value for _, value in steps],
            "line": {"shape": "hv", "color": ORANGE, "width": 2},
            "hoverinfo": "skip",
        }
    ]
    for state, (name, color, symbol) in _STATES.items():
        having = [trial for trial in trials if trial.state == state]
        if having:
            traces.append(_points(having, name, color, symbol))
    others = [trial for trial in trials if trial.state not in _STATES]
    if others:
        traces.append(_points(others, "not ended", SKY, "diamond-open"))
    caption = (
        f"{objective.metric} of each trial on the validation rows, in the order of their start; "
    )
    caption += (
        f"{'higher' if objective.sign > 0 else 'lower'} is better.{_left_out(report, trials)}"
    )
    layout = {"xaxis": {"title": {"text": "trial"}}, "yaxis": {"title": {"text": objective.metric}}}
    return Figure("history", "Values of trials", caption, traces, layout)


def _points(trials: Sequence[Trial], name: str, color: str, symbol: str) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [trial.number for trial in trials],
        "y": [trial.value for trial in trials],
        "text": [_hover(trial) for trial in trials],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": color, "symbol": symbol, "size": 8},
    }


def _hover(trial: Trial) -> str:
    lines = [f"trial {trial.number}: {number(trial.value)}"]
    lines += [f"{label(name)}: {label(value)}" for name, value in trial.params.items()]
    return "<br>".join(lines)


def _left_out(report: Report, shown: Sequence[Trial]) -> str:
    """A sentence on what is not drawn."""
    all_of_them = len(report.ranked)
    if len(shown) == all_of_them:
        return ""
    return (
        f" {len(shown):,} of {all_of_them:,} trials are drawn: the best, and others spread evenly."
    )


def curves(report: Report) -> Figure | None:
    """Learning curves of trials, with rungs."""
    trials = [trial for trial in thinned(report, MOST_CURVES) if len(trial.curve) > 0]
    longest = max((len(trial.curve) for trial in trials), default=0)
    if longest < 2:
        return None
    traces = [_curve(trial) for trial in reversed(trials)]
    objective = report.objective
    rungs = report.rungs[:-1] if report.resource == "Epochs" else []
    lines = [
        {
            "type": "line",
            "x0": rung,
            "x1": rung,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"color": GREY, "width": 1, "dash": "dot"},
        }
        for rung in rungs
    ]
    at = ", ".join(f"{rung:g}" for rung in rungs)
    caption = (
        f"{objective.metric} on the validation rows after each epoch. The best trial is orange"
    )
    caption += f"; at the rungs (dotted, at {at}) only the better trials go on." if rungs else "."
    layout = {
        "xaxis": {"title": {"text": "epochs"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": objective.metric}},
        "shapes": lines,
        "showlegend": False,
    }
    return Figure(
        "curves", "Learning curves", caption + _left_out(report, trials), traces, layout, 420
    )


def _curve(trial: Trial) -> Json:
    best, stopped = trial.place == 1, trial.state == "Stopped"
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"trial {trial.number}",
        "x": [epoch for epoch, _ in trial.curve],
        "y": [value for _, value in trial.curve],
        "line": {
            "color": ORANGE if best else GREY if stopped else BLUE,
            "width": 4 if best else 1.5,
        },
        "marker": {"size": 7 if best else 4},
        "opacity": 1 if best else 0.55,
        "text": [_hover(trial)] * len(trial.curve),
        "hovertemplate": "%{text}<br>epoch %{x}: %{y:.4f}<extra></extra>",
    }


def over_hours(reports: Sequence[Report]) -> Figure | None:
    """The best value over the time of the search: of one study, or of several side by side."""
    long = max((report.spending.seconds for report in reports), default=0.0) > 2 * 3600
    unit, name = (3600, "hours") if long else (60, "minutes")
    traces = [
        _steps(
            report,
            place,
            [step.seconds / unit for step in report.improvements],
            report.spending.seconds / unit,
        )
        for place, report in enumerate(_alike(reports))
    ]
    return _progress(
        "over-hours",
        "Best value over time",
        f"{name} of search",
        "time of the search",
        reports,
        traces,
    )


def over_trials(reports: Sequence[Report]) -> Figure | None:
    """The best value over the trials begun."""
    traces = [
        _steps(report, place, [step.trials for step in report.improvements], len(report.trials))
        for place, report in enumerate(_alike(reports))
    ]
    return _progress(
        "over-trials",
        "Best value over trials",
        "trials begun",
        "number of trials begun",
        reports,
        traces,
    )


def _alike(reports: Sequence[Report]) -> list[Report]:
    """Those with the objective of the first, and a value."""
    first = reports[0].objective
    return [
        report
        for report in reports
        if report.improvements
        and (report.objective.metric, report.objective.goal) == (first.metric, first.goal)
    ]


def _steps(report: Report, place: int, xs: Sequence[float], end: float) -> Json:
    colors = (ORANGE, BLUE, GREEN, PURPLE, RED, SKY)
    steps = evenly(list(zip(xs, report.improvements, strict=True)), MOST_POINTS)
    last = steps[-1][1]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label(report.name),
        "x": [*(x for x, _ in steps), end],
        "y": [*(step.value for _, step in steps), last.value],
        "text": [
            *(f"trial {step.trial}, {step.trials} trials begun" for _, step in steps),
            "now" if report.ended is None else "end",
        ],
        "hovertemplate": "%{y:.4f} (%{text})<extra></extra>",
        "line": {"shape": "hv", "color": colors[place % len(colors)], "width": 2},
        "marker": {"size": 6},
    }


def _progress(
    id: str, title: str, axis: str, over: str, reports: Sequence[Report], traces: list[Json]
) -> Figure | None:
    if not traces:
        return None
    metric = reports[0].objective.metric
    layout = {
        "xaxis": {"title": {"text": axis}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": f"best {metric}"}},
        "showlegend": len(reports) > 1,
    }
    return Figure(id, title, f"The best {metric} so far over the {over}.", traces, layout)


def parallel(report: Report) -> Figure | None:
    """Parallel coordinates: a line a trial, over an axis for each hyperparameter and one for the objective.

    Drawn as lines, because Plotly's own kind needs WebGL and code made at run time.
    """
    varied = [parameter for parameter in report.parameters if _varies(report, parameter)]
    trials = [trial for trial in thinned(report, MOST_LINES) if trial.value is not None]
    if not varied or len(trials) < 2:
        return None
    axes = [_Scale.of(parameter, trials) for parameter in varied]
    values = [trial.value for trial in trials if trial.value is not None]
    low, high = min(values), max(values)
    height = high - low or 1.0
    bands: dict[int, list[Trial]] = {}
    for trial in trials:
        share = (trial.value - low) / height if trial.value is not None else 0.0
        bands.setdefault(min(_BANDS - 1, int(share * _BANDS)), []).append(trial)
    traces = []
    order = sorted(bands) if report.objective.sign > 0 else sorted(bands, reverse=True)
    for band in order:
        xs: list[float | None] = []
        ys: list[float | None] = []
        texts: list[str] = []
        for trial in bands[band]:
            points = [axis.place(trial.params.get(axis.name)) for axis in axes]
            share = ((trial.value or low) - low) / height
            for at, place in enumerate([*points, share]):
                if place is not None:  # a hyperparameter of another space, or not active
                    xs.append(at)
                    ys.append(place)
                    texts.append(_hover(trial))
            xs.append(None)
            ys.append(None)
            texts.append("")
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": xs,
                "y": ys,
                "text": texts,
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": _between((band + 0.5) / _BANDS), "width": 2},
                "opacity": 0.75,
            }
        )
    metric = report.objective.metric
    names = [*(label(axis.name, 20) for axis in axes), metric]
    ticks = [(at, *tick) for at, axis in enumerate(axes) for tick in axis.ticks()]
    ticks += [(len(axes), 0.0, number(low)), (len(axes), 1.0, number(high))]
    traces.append(
        {
            "type": "scatter",
            "mode": "text",
            "x": [at for at, _, _ in ticks],
            "y": [place for _, place, _ in ticks],
            "text": [f" {text}" for _, _, text in ticks],
            "textposition": "middle right",
            "hoverinfo": "skip",
            "textfont": {"size": 11},
        }
    )
    traces.append(_color_bar(low, high, metric))
    layout = {
        "showlegend": False,
        "xaxis": {
            "tickmode": "array",
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "side": "top",
            "range": [-0.15, len(names) - 0.55],
            "zeroline": False,
            "showgrid": True,
            "fixedrange": True,
        },
        "yaxis": {"visible": False, "range": [-0.08, 1.08], "fixedrange": True},
    }
    caption = (
        "Each line is a trial, from its hyperparameters on the left to its value on the right."
    )
    caption += f" Colour is {metric}.{_left_out(report, trials)}"
    return Figure("parallel", "Parallel coordinates", caption, traces, layout, 420)


def _color_bar(low: float, high: float, title: str) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "marker": {
            "color": [low],
            "cmin": low,
            "cmax": high,
            "colorscale": POINTS,
            "showscale": True,
            "colorbar": {"title": {"text": title}, "thickness": 12},
        },
        "hoverinfo": "skip",
    }


def _varies(report: Report, parameter: Parameter) -> bool:
    found = {trial.params.get(parameter.name) for trial in report.trials}
    return len(found - {None}) > 1


class _Scale:
    """Where the values of a hyperparameter are between 0 and 1."""

    def __init__(self, parameter: Parameter, low: float, high: float, values: list[str]) -> None:
        self.name = parameter.name
        self._log = parameter.log and low > 0
        self._low, self._high, self._values = low, high, values

    @classmethod
    def of(cls, parameter: Parameter, trials: Sequence[Trial]) -> "_Scale":
        """The scale over what the trials have: the space may be far wider."""
        found = [trial.params[parameter.name] for trial in trials if parameter.name in trial.params]
        numbers = [value for value in found if isinstance(value, int | float)]
        if parameter.low is not None and len(numbers) == len(found):
            return cls(parameter, min(numbers), max(numbers), [])
        listed = [str(value) for value in parameter.values or []]
        return cls(parameter, 0.0, 1.0, list(dict.fromkeys([*listed, *map(str, found)])))

    def place(self, value: Scalar | None) -> float | None:
        """None where a trial has no value."""
        if value is None:
            return None
        if self._values:
            return self._values.index(str(value)) / max(1, len(self._values) - 1)
        at, low, high = self._at(float(value)), self._at(self._low), self._at(self._high)
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self) -> Iterator[tuple[float, str]]:
        """(place, text)."""
        if self._values:
            for value in evenly(self._values, 12):
                yield self.place(value) or 0.0, label(value, 14)
            return
        middle = self._low + (self._high - self._low) / 2
        if self._log:
            middle = math.sqrt(self._low * self._high)
        for each in dict.fromkeys((self._low, middle, self._high)):
            yield self.place(each) or 0.0, number(each)

    def _at(self, value: float) -> float:
        return math.log(value) if self._log else value


def _between(share: float) -> str:
    """A colour of the scale of lines."""
    at = max(0.0, min(1.0, share)) * (len(STOPS) - 1)
    first = min(len(STOPS) - 2, int(at))
    mixed = [
        round(a + (b - a) * (at - first))
        for a, b in zip(STOPS[first], STOPS[first + 1], strict=True)
    ]
    return f"rgb({mixed[0]},{mixed[1]},{mixed[2]})"


def pareto(report: Report) -> Figure | None:
    """The first two objectives against each other, with the Pareto front."""
    if len(report.objectives) < 2:
        return None
    first, second = report.objectives[:2]
    trials = [
        trial
        for trial in thinned(report, MOST_POINTS)
        if trial.value is not None and second.metric in trial.metrics
    ]
    front = sorted(
        (trial for trial in report.ranked if trial.pareto and second.metric in trial.metrics),
        key=lambda trial: trial.value or 0.0,
    )
    if not trials:
        return None

    def dots(having: Sequence[Trial], name: str, color: str, mode: str) -> Json:
        return {
            "type": "scatter",
            "mode": mode,
            "name": name,
            "x": [trial.value for trial in having],
            "y": [trial.metrics[second.metric] for trial in having],
            "text": [_hover(trial) for trial in having],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": color, "size": 9},
            "line": {"color": color, "width": 1, "dash": "dot"},
        }

    inside = [trial for trial in trials if not trial.pareto]
    traces = [
        dots(inside, "other trials", GREY, "markers"),
        dots(front, "Pareto front", ORANGE, "lines+markers"),
    ]
    caption = (
        f"{first.metric} ({first.goal.lower()}) against {second.metric} ({second.goal.lower()}). "
    )
    caption += (
        "No trial is better than one of the front in one objective without being worse in another."
    )
    layout = {
        "xaxis": {"title": {"text": first.metric}},
        "yaxis": {"title": {"text": second.metric}},
    }
    return Figure("pareto", "Pareto front", caption, traces, layout)


def timeline(report: Report) -> Figure | None:
    """What each slot did when."""
    spans: list[Span] = report.spans
    if not spans:
        return None
    shown = evenly(spans, MOST_BARS)
    rows = {slot: place for place, slot in enumerate(dict.fromkeys(span.slot for span in spans), 1)}
    traces: list[Json] = []
    for how, (name, color) in _HOW.items():
        bars = [span for span in shown if span.how == how]
        if bars:
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": name,
                    "base": [span.start / 60 for span in bars],
                    "x": [max(0.0, span.end - span.start) / 60 for span in bars],
                    "y": [rows[span.slot] for span in bars],
                    "text": [str(span.trial) for span in bars],
                    "textposition": "inside",
                    "insidetextanchor": "middle",
                    "customdata": [f"trial {span.trial}, {name}" for span in bars],
                    "hovertemplate": "%{customdata}: %{x:.2f} min<extra></extra>",
                    "marker": {
                        "color": color,
                        "line": {"width": 1, "color": "rgba(127,127,127,0.6)"},
                    },
                }
            )
    waits = [
        {
            "type": "rect",
            "x0": start / 60,
            "x1": end / 60,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "fillcolor": RED,
            "opacity": 0.15,
            "line": {"width": 0},
        }
        for start, end in report.waits
    ]
    caption = "What each worker slot did, by trial. Gaps are starts of workers and waits for work."
    if waits:
        caption += " In the red stretches storage could not be used."
    if len(shown) < len(spans):
        caption += f" {len(shown):,} of {len(spans):,} pieces of work are drawn."
    layout = {
        "barmode": "overlay",
        "xaxis": {"title": {"text": "minutes since the start"}, "rangemode": "tozero"},
        "yaxis": {
            "title": {"text": "slot"},
            "dtick": max(1, len(rows) // 10),
            "autorange": "reversed",
        },
        "shapes": waits,
    }
    return Figure(
        "timeline", "Timeline of slots", caption, traces, layout, 140 + 34 * min(20, len(rows) + 1)
    )
