"""Divides rows: parts for validation and test, folds, and samples."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.groups import deal_groups
from finetune_trainer.data.labels import names_of
from finetune_trainer.tasks.base import Stratum

Rows: TypeAlias = NDArray[np.int64]


def split_rows(
    labels: Sequence[Stratum],
    shares: Sequence[float],
    seed: int,
    stratify: bool,
    groups: Rows | None = None,
) -> list[Rows]:
    """Row numbers of one part for each of `shares`, and last of the rows that stay in training.

    Every part gets its share rounded to whole rows, at least one. With `stratify` each class has the
    same share in every part, as nearly as whole rows allow, and keeps at least one training row; rows
    with several labels are divided by iterative stratification. Numbers in a part are ascending.

    Rows with the same number in `groups` stay in one part, so that shares are only approximate; there must
    be as many groups as parts.
    """
    generator = np.random.default_rng(seed)
    if groups is not None:
        stratify = stratify and not isinstance(labels[0], float)
        classes = _label_matrix(labels) if stratify else np.empty((len(labels), 0), dtype=np.bool_)
        return deal_groups(groups, classes, [*shares, 1 - sum(shares)], generator)
    sizes = [max(1, round(share * len(labels))) for share in shares]
    sizes.append(len(labels) - sum(sizes))
    if not stratify or isinstance(labels[0], float):
        order = generator.permutation(len(labels))
        return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]
    if isinstance(labels[0], str):
        return _by_class(np.asarray(labels), sizes, generator)
    return _by_label_sets(labels, sizes, generator)


def fold_rows(
    labels: NDArray[Any], folds: int, seed: int, stratify: bool, groups: Rows | None = None
) -> list[Rows]:
    """Row numbers of each fold, ascending.

    `labels` are class numbers (rows,), label indicators (rows, labels) or numbers. With `stratify` classes,
    or label sets, have the same share in every fold as nearly as whole rows allow. Rows with the same number
    in `groups` stay in one fold; there must be as many groups as folds.
    """
    generator = np.random.default_rng(seed)
    if groups is not None:
        classes = np.empty((len(labels), 0), dtype=np.bool_)
        if stratify:
            classes = labels if labels.ndim == 2 else labels[:, None] == np.unique(labels)
        return deal_groups(groups, classes, [1 / folds] * folds, generator)
    order = generator.permutation(len(labels))
    if stratify and labels.ndim == 2:
        sets = [tuple(str(label) for label in np.flatnonzero(row)) for row in labels]
        sizes = [len(part) for part in np.array_split(order, folds)]
        return _by_label_sets(sets, sizes, generator)
    if stratify:
        order = order[np.argsort(labels[order], kind="stable")]
    return [np.sort(order[fold::folds]) for fold in range(folds)]


def sample_order(labels: NDArray[Any], seed: int, stratify: bool) -> Rows:
    """An order of the rows in which every beginning is a sample; with `stratify` it has its share of each class."""
    generator = np.random.default_rng(seed)
    order: Rows = generator.permutation(len(labels))
    if not stratify:
        return order
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    stratified: Rows = order[np.argsort(place[order], kind="stable")]
    return stratified


def _by_class(
    classes: NDArray[Any], sizes: Sequence[int], generator: np.random.Generator
) -> list[Rows]:
    _, codes = np.unique(classes, return_inverse=True)
    order = generator.permutation(len(codes))
    by_class = [order[codes[order] == code] for code in range(codes.max() + 1)]
    parts = []
    for size in sizes[:-1]:
        left = np.array([len(rows) for rows in by_class])
        take = _quotas(left, size)
        parts.append(
            np.sort(np.concatenate([rows[:n] for rows, n in zip(by_class, take, strict=True)]))
        )
        by_class = [rows[n:] for rows, n in zip(by_class, take, strict=True)]
    return [*parts, np.sort(np.concatenate(by_class))]


def _quotas(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """How many rows of each class go into a part of `size` rows, by largest remainders; one row stays behind."""
    exact = counts * (size / counts.sum())
    available = counts - 1
    quotas: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), available)
    while quotas.sum() < size and (quotas < available).any():
        short = np.where(quotas < available, exact - quotas, -np.inf)
        quotas[int(short.argmax())] += 1
    return quotas


def _by_label_sets(
    labels: Sequence[Stratum], sizes: Sequence[int], generator: np.random.Generator
) -> list[Rows]:
    """Iterative stratification (Sechidis et al., "On the Stratification of Multi-Label Data", 2011).

    The rarest remaining label is divided first; each row goes to the part that still needs most of that label.
    """
    matrix = _label_matrix(labels)
    wanted_rows = np.asarray(sizes, dtype=np.float64)
    wanted = np.outer(wanted_rows / wanted_rows.sum(), matrix.sum(axis=0))
    part_of = np.full(len(labels), -1)
    order = generator.permutation(len(labels))

    def deal(rows: Rows, label: int | None) -> None:
        for row in rows:
            room = wanted_rows > 0
            desire = wanted[:, label] if label is not None else wanted_rows
            best = max(range(len(sizes)), key=lambda p: (room[p], desire[p], wanted_rows[p]))
            part_of[row] = best
            wanted_rows[best] -= 1
            wanted[best] -= matrix[row]

    while matrix.size:
        waiting = order[part_of[order] < 0]
        left = matrix[waiting].sum(axis=0)
        if not left.any():
            break
        rarest = int(np.where(left > 0, left, len(labels) + 1).argmin())
        deal(waiting[matrix[waiting, rarest]], rarest)
    deal(order[part_of[order] < 0], None)
    return [np.flatnonzero(part_of == part) for part in range(len(sizes))]


def _label_matrix(labels: Sequence[Stratum]) -> NDArray[np.bool_]:
    """Which row has which of the labels that occur: (rows, labels)."""
    names = sorted({name for label in labels for name in names_of(label)})
    number = {name: at for at, name in enumerate(names)}
    matrix = np.zeros((len(labels), len(names)), dtype=np.bool_)
    for row, label in enumerate(labels):
        matrix[row, [number[name] for name in names_of(label)]] = True
    return matrix
