"""Several models as one: the mean of their probabilities or of their ranks, and whether it is better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.metrics import score
from finetune_api.objective import Objective
from finetune_api.outputs import EnsembleMethod
from finetune_api.tasks import Task
from finetune_trainer.data.slices import Slices
from finetune_trainer.errors import TrialFailure
from finetune_trainer.tasks import Labels, Logits, task_of
from finetune_trainer.training.metrics import compute_metrics
from finetune_trainer.training.out_of_fold import Tune

QUANTILES = 1000
"""How many reference values are kept per output, at most."""

_ROUNDING = 1e-6
"""How much, relative to its value, a metric can change because logits are rounded."""


@dataclass(frozen=True)
class Answers:
    """What one model predicts for some rows."""

    logits: Logits
    """(rows, outputs), or those of each word."""

    thresholds: NDArray[np.float64] | None
    """MultiLabel: probability from which each label is predicted, (outputs,)."""

    are_ranks: bool = False
    """Whether they stand for mean ranks (RankMean), not for probabilities."""


@dataclass(frozen=True)
class Combination:
    """How the outputs of several models, the members, are combined into one."""

    task: Task
    weights: NDArray[np.float64]
    """Of each member, (members,); they add up to 1."""

    references: tuple[NDArray[np.float64], ...] | None = None
    """RankMean: for each member the outputs on the reference rows, (rows, outputs), each column ascending.

    A single row has no rank. Its rank is the place its probability would have among those of the reference
    rows: validation rows, as predicted by a model that had not seen them."""

    @classmethod
    def of(
        cls,
        task: Task,
        method: EnsembleMethod,
        leads: Sequence[float],
        validation: Sequence[Logits],
    ) -> "Combination":
        """The combination of members with these `leads` (see `RefitItem`) and logits of the validation rows.

        If no member has a lead, Weighted is the same as Mean.
        """
        weights = np.full(len(leads), 1 / len(leads))
        if method == "Weighted" and sum(leads) > 0:
            weights = np.array(leads, dtype=np.float64) / sum(leads)
        if method != "RankMean":
            return cls(task, weights)
        return cls(
            task, weights, tuple(_reference(task_of(task).shares(found)) for found in validation)
        )

    def __call__(self, members: Sequence[Answers]) -> Answers:
        """What one model with the mean of the members' outputs would predict for the same rows.

        Its thresholds are the means of the members' thresholds or, for RankMean, of their ranks.
        """
        task = task_of(self.task)
        mean = self._mean([task.shares(member.logits) for member in members])
        own = [member.thresholds[None] for member in members if member.thresholds is not None]
        together = task.alike(task.logits_of(mean).astype(np.float32), members[0].logits)
        return Answers(together, self._mean(own)[0] if own else None, self.references is not None)

    def _mean(self, members: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """The members' (rows, outputs), combined into one (rows, outputs)."""
        if self.references is not None:
            members = [
                ranks(values, reference)
                for values, reference in zip(members, self.references, strict=True)
            ]
        mean: NDArray[np.float64] = np.tensordot(self.weights, np.stack(members), axes=1)
        return mean


def _reference(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each column of `values` (rows, outputs) ascending, thinned out evenly to at most QUANTILES rows."""
    rows = len(values)
    kept = np.linspace(0, rows - 1, min(rows, QUANTILES)).round().astype(np.int64)
    ordered: NDArray[np.float64] = np.sort(values, axis=0)[kept]
    return ordered


def ranks(values: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place of each of `values` (rows, outputs) among the `reference` rows of its column, as a share.

    It lies between 0 and 1. The n reference values themselves have the ranks 1/(n + 1) to n/(n + 1), equal
    ones the mean of theirs; a value between two of them lies half-way between their ranks.
    """
    places = np.empty_like(values)
    for column in range(values.shape[1]):
        known, found = reference[:, column], values[:, column]
        below = np.searchsorted(known, found, side="left")
        up_to = np.searchsorted(known, found, side="right")
        places[:, column] = (below + up_to + 1) / 2
    return places / (len(reference) + 1)


@dataclass(frozen=True)
class Verdict:
    """Whether an ensemble is better than each of its members."""

    value: float
    """The value of the objective for the ensemble."""

    singles: list[float]
    """The value of the objective for each member."""

    best_single: float
    kept: bool


def judge(
    combination: Combination,
    members: Sequence[Answers],
    labels: Labels,
    objective: Objective,
    folds: Sequence[NDArray[np.int64]] = (),
    tunes: Sequence[Tune] = (),
    slices: Sequence[Slices] = (),
) -> Verdict:
    """Compare the ensemble with its members on rows that none of them has seen, with these `labels`.

    The thresholds of members may have been tuned on these rows. With `folds`, each fold is judged with thresholds
    that `tunes`, one for each member, find on the rows of the other folds, and a value is the mean over folds.
    `slices` are how the rows are divided.
    The ensemble is kept if it is better by more than rounding. Raises TrialFailure if the objective is undefined.
    """

    def values(rows: NDArray[np.int64], asked: Sequence[Answers]) -> list[float]:
        """The objective of the ensemble, then those of the members, on these rows; NaN where it is undefined."""
        there = [Answers(member.logits[rows], member.thresholds) for member in asked]
        task, divided = combination.task, [one.at(rows) for one in slices]

        def value(each: Answers) -> float:
            found = compute_metrics(
                task, each.logits, labels[rows], [objective.metric], each.thresholds, divided
            )
            return found.get(objective.metric, math.nan)

        return [value(each) for each in (combination(there), *there)]

    if folds:
        found = [values(fold, _tuned_elsewhere(members, labels, fold, tunes)) for fold in folds]
    else:
        found = [values(np.arange(len(labels)), members)]
    defined = [each for each in found if not any(map(math.isnan, each))]
    if not defined:
        name = objective.metric
        raise TrialFailure("Diverged", f"{name} is undefined for members of the ensemble")
    together, *singles = np.mean(defined, axis=0).tolist()
    best = max(singles, key=lambda single: score(single, objective.direction))
    lead = score(together, objective.direction) - score(best, objective.direction)
    return Verdict(together, singles, best, lead > _ROUNDING * abs(best))


def _tuned_elsewhere(
    members: Sequence[Answers],
    labels: NDArray[np.bool_],
    fold: NDArray[np.int64],
    tunes: Sequence[Tune],
) -> list[Answers]:
    """The members with thresholds that are tuned on the rows outside of `fold`."""
    others = np.setdiff1d(np.arange(len(labels)), fold)
    return [
        Answers(member.logits, tune(member.logits[others], labels[others]))
        for member, tune in zip(members, tunes, strict=True)
    ]
