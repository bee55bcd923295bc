"""What a model says of one row, in words."""

from dataclasses import asdict, dataclass
from typing import Any

_DIGITS = 7
"""Significant digits of numbers in JSON: as many as float32 has."""


@dataclass(frozen=True)
class Entity:
    """What was found in a text."""

    start: int
    end: int
    """The first of its characters, and the one after the last."""

    label: str
    """Its type."""

    text: str
    score: float
    """The mean probability of the tags of its words."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one row. What applies only to another task is None."""

    label: str | None = None
    """SingleLabel: the likeliest class."""

    labels: list[str] | None = None
    """MultiLabel: each label whose score reaches its threshold."""

    value: float | None = None
    """Regression: the number, in the unit of the rows that the model has learned from."""

    entities: list[Entity] | None = None
    """TokenClassification: in the order of the text."""

    scores: dict[str, float] | None = None
    """SingleLabel and MultiLabel: the probability of each label; with RankMean its mean rank."""

    error: str | None = None
    """Why there is no answer; then all else is None."""

    def to_json(self) -> dict[str, Any]:
        """The prediction as a JSON object, without what is None; numbers have 7 significant digits."""
        return asdict(self, dict_factory=_shortened)


def _shortened(found: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: _short(value) for key, value in found if value is not None}


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
