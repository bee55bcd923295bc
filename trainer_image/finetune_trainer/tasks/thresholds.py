"""The probability from which a label of a MultiLabel task is predicted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from finetune_api.hyperparameters import Hyperparameters

FEW_ROWS = 20
"""With fewer rows than this, what a label's own rows say about it is mostly chance."""

ONE_HALF = 0.5
_CANDIDATES = 200
"""Quantiles of the probabilities that are tried as the common threshold."""

_NEAREST = 1e-6
"""The least distance of thresholds from 0 and 1 when they are averaged as logits."""


def probabilities(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The probability of each label, in float64: close to 1, float32 cannot tell rows apart."""
    found: NDArray[np.float64] = expit(logits.astype(np.float64))
    return found


def tuned_thresholds(
    logits: NDArray[np.float32], labels: NDArray[np.bool_], usual: float
) -> NDArray[np.float64]:
    """The threshold of each label, (outputs,), for rows like those with `logits` and `labels`.

    It is the mean, as logits, of the label's own threshold, with the best F1 on these rows, and of a common one,
    with the best mean F1 over the labels. The own one is weighted by the number of rows with the label, the
    common one by FEW_ROWS. Among equally good ones, and if no row has any label, `usual` is taken.
    """
    shares = probabilities(logits)
    own, common = _each_best(shares, labels, usual), _common(shares, labels, usual)
    having = labels.sum(axis=0)
    weights = having / (having + FEW_ROWS)
    return np.asarray(expit(weights * _logit(own) + (1 - weights) * _logit(np.array(common))))


def trial_thresholds(
    logits: NDArray[np.float32],
    labels: NDArray[np.bool_],
    config: Hyperparameters,
    out_of_fold: bool,
) -> NDArray[np.float64]:
    """The threshold of each label, (outputs,), of a trial: tuned on these rows, unless it sets one for all.

    Without `out_of_fold`, those with the best F1 on these rows, as in studies that began before there were folds.
    """
    usual = config.decision_threshold
    if config.threshold_tuning == "None":
        return np.full(labels.shape[1], usual)
    tune = tuned_thresholds if out_of_fold else best_thresholds
    return tune(logits, labels, usual)


def _logit(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = logit(np.clip(shares, _NEAREST, 1 - _NEAREST))
    return found


def _common(shares: NDArray[np.float64], labels: NDArray[np.bool_], usual: float) -> float:
    """The threshold with the best mean F1 over labels; among equally good ones, the nearest to `usual`."""
    quantiles = np.quantile(shares, np.linspace(0, 1, _CANDIDATES + 1)[1:-1])
    cuts = np.unique(np.append(quantiles, usual))
    total = np.zeros(len(cuts))
    for each, having in zip(shares.T, labels.T, strict=True):
        chosen = len(each) - np.searchsorted(np.sort(each), cuts)
        found = having.sum() - np.searchsorted(np.sort(each[having]), cuts)
        total += 2 * found / np.maximum(1, chosen + having.sum())
    best = cuts[total == total.max()]
    return float(best[np.abs(best - usual).argmin()])


def best_thresholds(
    logits: NDArray[np.float32], labels: NDArray[np.bool_], usual: float
) -> NDArray[np.float64]:
    """The threshold of each label, (outputs,), with the best F1 on rows with `logits` and `labels`.

    It lies half-way between two neighbouring probabilities, or is `usual`. Among equally good ones it is the
    nearest to `usual`, and `usual` itself if no row has the label.
    """
    return _each_best(probabilities(logits), labels, usual)


def _each_best(
    shares: NDArray[np.float64], labels: NDArray[np.bool_], usual: float
) -> NDArray[np.float64]:
    return np.array([_best(shares[:, n], labels[:, n], usual) for n in range(labels.shape[1])])


def _best(shares: NDArray[np.float64], having: NDArray[np.bool_], usual: float) -> float:
    if not having.any():
        return usual
    order = np.argsort(-shares, kind="stable")
    ranked = shares[order]
    below = np.append(ranked[1:], 0.0)
    ends = np.flatnonzero(ranked > below)  # rows of equal probability are chosen together
    middles = (ranked[ends] + below[ends]) / 2
    # Between neighbouring floats there is nothing.
    cuts = np.append(np.where(middles > below[ends], middles, ranked[ends]), usual)
    as_usual = shares >= usual
    found = np.append(np.cumsum(having[order])[ends], (as_usual & having).sum())
    chosen = np.append(ends + 1, as_usual.sum())
    f1 = 2 * found / (chosen + having.sum())
    best = cuts[f1 == f1.max()]
    return float(best[np.abs(best - usual).argmin()])
