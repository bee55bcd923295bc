"""What a figure is, and how texts, numbers and colours of data come into it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = (
    *("#2b86c9", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"),
)
GREY = "#8a8f98"
SCALE = "Cividis"
"""Of areas, from low to high; made for colour blindness too."""

STOPS = ((76, 120, 181), (154, 154, 154), (227, 181, 5))
"""The same of points and lines, none of which is lost on a light or a dark page."""

POINTS = [[at / (len(STOPS) - 1), "rgb({},{},{})".format(*stop)] for at, stop in enumerate(STOPS)]
"""These as Plotly's scale."""

LONGEST = 40
"""Characters of a label that are shown."""


@dataclass(frozen=True)
class Figure:
    """A figure with its place in the page."""

    id: str
    title: str
    caption: str
    """What it shows, in a sentence: people read it below the figure, screen readers in its place."""

    traces: Sequence[Json]
    layout: Json = field(default_factory=dict)
    height: int = 380

    def to_json(self) -> Json:
        """As Plotly takes it."""
        return {
            "data": list(self.traces),
            "layout": {"height": self.height, **self.layout},
        }


def label(value: object, longest: int = LONGEST) -> str:
    """A text, name or value of data for a figure: Plotly takes what looks like markup for markup."""
    text = " ".join(number(value).split()) if isinstance(value, float) else str(value)
    text = "".join(each if each.isprintable() else " " for each in text)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return escape(text, quote=False).replace(
        "$", "&#36;"
    )  # Plotly takes what is between two for mathematics


def number(value: float | None) -> str:
    """Four digits that count; empty if it is undefined."""
    return "" if value is None else f"{value:.4g}"


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, spread evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    step = (len(items) - 1) / (most - 1)
    return [items[round(place * step)] for place in range(most)]
