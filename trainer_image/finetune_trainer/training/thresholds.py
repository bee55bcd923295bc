"""From which probability on a label of a MultiLabel task is predicted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from finetune_api.metrics import Task

ONE_HALF = 0.5


def probabilities(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The probability of each label, in float64: near one, float32 has too few of them to tell rows apart."""
    found: NDArray[np.float64] = expit(logits.astype(np.float64))
    return found


def predictions(
    task: Task, logits: NDArray[np.float32], thresholds: NDArray[np.float64] | None = None
) -> NDArray[Any]:
    """The class (rows,) of SingleLabel or the labels, bool (rows, outputs), of MultiLabel that `logits` predict.

    `thresholds` (outputs,) are those of MultiLabel; None is one half for each.
    """
    if task == "SingleLabel":
        classes: NDArray[np.int64] = logits.argmax(axis=1)
        return classes
    chosen: NDArray[np.bool_] = probabilities(logits) >= (
        ONE_HALF if thresholds is None else thresholds
    )
    return chosen


def tuned_thresholds(
    logits: NDArray[np.float32], labels: NDArray[np.bool_], usual: float
) -> NDArray[np.float64]:
    """The threshold of each label, (outputs,), with the best F1 on rows with `logits` and `labels`.

    It is one of those half-way between two neighbouring probabilities, or `usual`. Of equally good ones it
    is that nearest to `usual`, and `usual` where no row has the label.
    """
    shares = probabilities(logits)
    return np.array([_best(shares[:, n], labels[:, n], usual) for n in range(labels.shape[1])])


def _best(shares: NDArray[np.float64], having: NDArray[np.bool_], usual: float) -> float:
    if not having.any():
        return usual
    order = np.argsort(-shares, kind="stable")
    ranked = shares[order]
    below = np.append(ranked[1:], 0.0)
    ends = np.flatnonzero(ranked > below)  # rows of equal probability are chosen together
    middles = (ranked[ends] + below[ends]) / 2
    # Neighbouring floats have nothing between them.
    cuts = np.append(np.where(middles > below[ends], middles, ranked[ends]), usual)
    as_usual = shares >= usual
    found = np.append(np.cumsum(having[order])[ends], (as_usual & having).sum())
    chosen = np.append(ends + 1, as_usual.sum())
    f1 = 2 * found / (chosen + having.sum())
    best = cuts[f1 == f1.max()]
    return float(best[np.abs(best - usual).argmin()])
