"""The direction in which each metric improves, the best value it can have, and how it is taken over slices of rows."""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from finetune_api.tasks import ALL_METRICS

Goal: TypeAlias = Literal["Maximize", "Minimize"]

OF_SLICES = ("worst", "gap")
"""What a metric may be of the slices of the rows (`validation.slices`): that of the worst of them, and the largest
difference between two of one division."""

METRIC_WORDS = (*ALL_METRICS, *(f"{name}@{of}" for name in ALL_METRICS for of in OF_SLICES))
"""All that an objective can name."""

_MINIMIZED = frozenset({"loss", "hamming_loss", "mse", "rmse", "mae"})


def plain(metric: str) -> str:
    """The metric that is taken over slices: `f1_macro` of `f1_macro@worst`, and of itself."""
    return metric.partition("@")[0]


def natural_goal(metric: str) -> Goal:
    """The direction in which `metric` improves."""
    name, _, of = metric.partition("@")
    return "Minimize" if name in _MINIMIZED or of == "gap" else "Maximize"


def best_value(metric: str) -> float:
    """The best value that `metric` can have."""
    return 0.0 if natural_goal(metric) == "Minimize" else 1.0


def of_slice(metric: str, division: str, value: str) -> str:
    """The name in records of the metric of one slice."""
    return f"{metric}@{division}={value}"


def is_of_slice(name: str) -> bool:
    """Whether a name in records is that of one slice's metric."""
    return "=" in name


def shown_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those of single slices, of which there may be many."""
    return {name: value for name, value in metrics.items() if not is_of_slice(name)}


def over_slices(metrics: Mapping[str, float], asked: Iterable[str]) -> dict[str, float]:
    """Those of the `asked` metrics that are taken over slices, of the `metrics` by slice; undefined ones are left out."""
    found = {}
    for name in asked:
        metric, _, of = name.partition("@")
        by_division: dict[str, list[float]] = {}
        for one, value in metrics.items():
            if one.startswith(f"{metric}@") and is_of_slice(one):
                division = one.removeprefix(f"{metric}@").partition("=")[0]
                by_division.setdefault(division, []).append(value)
        if of == "worst" and by_division:
            worst = min if natural_goal(metric) == "Maximize" else max
            found[name] = worst(worst(values) for values in by_division.values())
        elif of == "gap" and by_division:
            found[name] = max(max(values) - min(values) for values in by_division.values())
    return found


def score(value: float, goal: Goal) -> float:
    """`value` such that larger is better."""
    return value if goal == "Maximize" else -value
