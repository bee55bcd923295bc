"""Splits lose no row, keep the shares of the labels, and depend on the seed alone."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import pytest

from finetune_trainer.data.split import Rows, fold_rows, sample_order, split_rows
from finetune_trainer.tasks.base import Stratum

Make: TypeAlias = Callable[[int], Sequence[Stratum]]


def classes(seed: int, rows: int = 500) -> list[Stratum]:
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    return list(np.random.default_rng(seed).choice(list("abcd"), size=rows, p=shares).tolist())


def label_sets(seed: int, rows: int = 600) -> list[tuple[str, ...]]:
    shares = np.array([0.4, 0.2, 0.1, 0.05, 0.02])
    drawn = np.random.default_rng(seed).random((rows, 5)) < shares
    return [tuple(name for name, has in zip("abcde", row, strict=True) if has) for row in drawn]


def numbers(seed: int) -> list[Stratum]:
    return list(np.random.default_rng(seed).normal(size=300).tolist())


def assert_partition(parts: list[Rows], rows: int) -> None:
    assert sorted(np.concatenate(parts).tolist()) == list(range(rows))


@pytest.mark.parametrize("stratify", [True, False])
@pytest.mark.parametrize("make", [classes, label_sets, numbers])
def test_every_row_is_in_one_part_of_the_right_size(make: Make, stratify: bool) -> None:
    labels = make(3)
    parts = split_rows(labels, (0.2, 0.1), 5, stratify)
    assert_partition(parts, len(labels))
    wanted = [round(0.2 * len(labels)), round(0.1 * len(labels))]
    assert [len(part) for part in parts[:2]] == wanted


@pytest.mark.parametrize("make", [classes, label_sets, numbers])
def test_the_seed_decides(make: Make) -> None:
    labels = make(3)

    def split(seed: int) -> list[list[int]]:
        return [part.tolist() for part in split_rows(labels, (0.2, 0.1), seed, True)]

    assert split(1) == split(1) != split(2)


@pytest.mark.parametrize("seed", range(5))
def test_each_class_has_its_share_in_each_part(seed: int) -> None:
    labels = classes(seed)
    everywhere = Counter(labels)
    for part in split_rows(labels, (0.2, 0.1), seed, True):
        here = Counter(labels[row] for row in part)
        for name, count in everywhere.items():
            assert abs(here[name] - count * len(part) / len(labels)) <= 1.5


def test_a_class_with_one_row_stays_in_training() -> None:
    labels = ["a"] * 20 + ["b"] * 20 + ["rare", "rarer"]
    *_, train = split_rows(labels, (0.3, 0.3), 0, True)
    assert {"rare", "rarer"} <= {labels[row] for row in train}


def test_label_sets_are_spread_better_than_by_chance() -> None:
    def unevenness(stratify: bool) -> float:
        total = 0.0
        for seed in range(5):
            labels = label_sets(seed)
            for part in split_rows(labels, (0.15, 0.15), seed, stratify):
                for name in "abcde":
                    has = np.array([name in set(label) for label in labels])
                    total += abs(has[part].sum() - has.mean() * len(part))
        return total

    assert unevenness(True) < 0.35 * unevenness(False)


def test_a_small_share_is_at_least_one_row() -> None:
    parts = split_rows(["a", "b"] * 4, (0.01, 0.01), 0, True)
    assert [len(part) for part in parts] == [1, 1, 6]


@pytest.mark.parametrize("kind", ["classes", "label sets", "numbers"])
def test_every_row_is_in_one_fold_and_classes_keep_their_share(kind: str) -> None:
    rng = np.random.default_rng(3)
    classes = rng.choice(4, size=203, p=[0.6, 0.25, 0.1, 0.05])
    labels = {
        "classes": classes,
        "label sets": np.eye(4, dtype=np.bool_)[classes],
        "numbers": rng.random(203),
    }[kind]
    folds = fold_rows(labels, 5, seed=1, stratify=kind != "numbers")
    assert sorted(np.concatenate(folds)) == list(range(203))
    assert {len(fold) for fold in folds} <= {40, 41}
    again = fold_rows(labels, 5, seed=1, stratify=kind != "numbers")
    assert all((one == other).all() for one, other in zip(folds, again, strict=True))
    if kind != "numbers":
        counts = np.array([np.bincount(classes[fold], minlength=4) for fold in folds])
        assert (np.ptp(counts, axis=0) <= 1).all()


def test_a_smaller_sample_is_part_of_a_larger_one_and_has_each_class() -> None:
    classes = np.repeat([0, 1, 2], [60, 30, 10])
    order = sample_order(classes, seed=1, stratify=True)
    assert sorted(order) == list(range(100))
    for size in (20, 50, 80):
        counts = np.bincount(classes[order[:size]], minlength=3)
        assert np.abs(counts - size * np.array([0.6, 0.3, 0.1])).max() <= 1
    assert (sample_order(classes, 2, stratify=True) != order).any()
