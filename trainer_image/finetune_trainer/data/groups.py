"""Rows that must stay together, and how such groups are divided among parts and folds."""

from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from finetune_trainer.data.labels import LabelledRows

Numbers: TypeAlias = NDArray[np.int64]


def row_groups(parts: Sequence[LabelledRows], same_texts: bool) -> Numbers | None:
    """The group of each row of `parts` in turn, numbered from 0; None if every row is a group of its own.

    Rows with the same group and, with `same_texts`, rows with the same texts are in one group, also through
    other rows. Rows without a group are not grouped with each other.
    """
    columns: list[list[Hashable]] = [[group for rows in parts for group in rows.groups]]
    if same_texts:
        columns.append([key for rows in parts for key in rows.by_row()])
    count = len(columns[0])
    links = []
    for column in columns:
        first: dict[Hashable, int] = {}
        links += [
            (row, first.setdefault(key, row)) for row, key in enumerate(column) if key is not None
        ]
    ends = np.asarray(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(count, count))
    kinds, numbers = connected_components(graph, directed=False)
    return None if kinds == count else np.asarray(numbers, dtype=np.int64)


def deal_groups(
    groups: Numbers,
    classes: NDArray[np.bool_],
    shares: Sequence[float],
    generator: np.random.Generator,
) -> list[Numbers]:
    """Row numbers of a part for each of `shares` (they add up to 1), ascending; no group is in two parts.

    `classes` (rows, classes) says which row has which; every part should have its share of each class and of
    the rows themselves, as nearly as whole groups allow. Groups are assigned from the largest down, each to the
    part that it brings nearest to its share: the one whose chi-squared distance from it grows least. Every part
    gets a group, so there must be at least as many groups.
    """
    _, groups = np.unique(groups, return_inverse=True)
    contents = _contents(groups, classes)
    sizes = np.bincount(groups)
    wanted = np.outer(shares, contents.sum(axis=0))
    missing = wanted.copy()
    empty = np.ones(len(shares), dtype=np.bool_)
    part_of = np.empty(len(sizes), dtype=np.int64)
    order = generator.permutation(len(sizes))
    for dealt, group in enumerate(order[np.argsort(-sizes[order], kind="stable")]):
        of_group = slice(contents.indptr[group], contents.indptr[group + 1])
        columns, amounts = contents.indices[of_group], contents.data[of_group]
        cost = (amounts * (amounts - 2 * missing[:, columns]) / wanted[:, columns]).sum(axis=1)
        if len(sizes) - dealt == empty.sum():
            cost[~empty] = np.inf
        part = int(cost.argmin())
        empty[part] = False
        part_of[group] = part
        missing[part, columns] -= amounts
    return [np.flatnonzero(part_of[groups] == part) for part in range(len(shares))]


def _contents(groups: Numbers, classes: NDArray[np.bool_]) -> Any:
    """How many rows, and rows of each class, are in each group: sparse (groups, 1 + classes)."""
    rows = len(groups)
    membership = csr_array((np.ones(rows), (groups, np.arange(rows))))
    columns = np.concatenate([np.ones((rows, 1), dtype=np.bool_), classes], axis=1)
    return csr_array(membership @ csr_array(columns))
