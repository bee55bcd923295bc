"""The direction in which each metric improves, and the best value it can have."""

from typing import Literal, TypeAlias

Goal: TypeAlias = Literal["Maximize", "Minimize"]

_MINIMIZED = frozenset({"loss", "hamming_loss", "mse", "rmse", "mae"})


def natural_goal(metric: str) -> Goal:
    """The direction in which `metric` improves."""
    return "Minimize" if metric in _MINIMIZED else "Maximize"


def best_value(metric: str) -> float:
    """The best value that `metric` can have."""
    return 0.0 if metric in _MINIMIZED else 1.0


def score(value: float, goal: Goal) -> float:
    """`value` such that larger is better."""
    return value if goal == "Maximize" else -value
