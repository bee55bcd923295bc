"""How often a model is right, by how sure it is (Guo et al., "On Calibration of Modern Neural Networks", 2017)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same probability."""

    count: int
    confidence: float
    """Their mean probability."""

    accuracy: float
    """The share that is right."""


@dataclass(frozen=True)
class Calibration:
    """Predictions by their probability, in bins of equal width; those that none is in are left out."""

    bins: list[Bin]
    error: float
    """Expected calibration error: by how much confidence and accuracy of a prediction's bin differ, on average."""

    def to_json(self) -> dict[str, Any]:
        """As a part of the test report."""
        return asdict(self)


def calibration_of(probabilities: NDArray[np.float64], right: NDArray[np.bool_]) -> Calibration:
    """The calibration of predictions (n,) with these probabilities, of which some are right."""
    numbers = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    bins = [
        Bin(
            int(having.sum()),
            float(probabilities[having].mean()),
            float(right[having].mean()),
        )
        for number in range(BINS)
        if (having := numbers == number).any()
    ]
    off = sum(each.count * abs(each.confidence - each.accuracy) for each in bins)
    return Calibration(bins, off / max(1, len(probabilities)))
