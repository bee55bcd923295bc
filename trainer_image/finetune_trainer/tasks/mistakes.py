"""The rows that a model is most wrong about."""

from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

MOST = 20
"""Mistakes in a report."""

Answer: TypeAlias = str | list[str] | float
"""A label, several, or a number."""


@dataclass(frozen=True)
class Mistake:
    """One row that was predicted wrongly."""

    row: int
    """Its number among the rows that were judged, from 0."""

    label: Answer
    """TokenClassification: the tags of the words that were tagged wrongly."""

    prediction: Answer
    probability: float | None = None
    """That the model gave its prediction, where it predicts one class."""

    text: str | None = None
    """As the model reads it: lower case, perhaps, and cut."""

    def to_json(self) -> dict[str, Any]:
        """The mistake as a JSON object, without what is None."""
        return asdict(self, dict_factory=lambda found: {k: v for k, v in found if v is not None})
