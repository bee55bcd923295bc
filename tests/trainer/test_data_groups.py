"""Groups of rows stay whole in parts and folds, which are as even as that allows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_trainer.data import PreparedData
from finetune_trainer.data.groups import Numbers, deal_groups, row_groups
from finetune_trainer.data.labels import LabelledRows
from finetune_trainer.data.split import fold_rows, split_rows
from finetune_trainer.errors import DataError
from tests.trainer.conftest import MakeSpec
from tests.trainer.data_files import Row, prepare_rows


def rows_of(texts: list[str], groups: list[str | None]) -> LabelledRows:
    return LabelledRows("f", "train", (texts,), ["x"] * len(texts), groups)


def random_groups(seed: int, rows: int = 600) -> tuple[Numbers, np.ndarray[Any, Any]]:
    """Groups of 1 to some 20 rows, and the class of each row: a group leans towards one."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(rows), generator.geometric(0.15, size=rows))[:rows]
    leaning = generator.choice(3, size=rows, p=[0.6, 0.3, 0.1])[groups]
    anything = generator.choice(3, size=rows, p=[0.6, 0.3, 0.1])
    return groups, np.where(generator.random(rows) < 0.6, leaning, anything)


def assert_whole(parts: list[Numbers], groups: Numbers) -> None:
    assert sorted(np.concatenate(parts)) == list(range(len(groups)))
    inside = [set(groups[part].tolist()) for part in parts]
    assert sum(len(part) for part in inside) == len(set(groups.tolist()))


def test_rows_are_together_by_group_by_texts_and_by_way_of_others() -> None:
    one = rows_of(["a", "b", "c"], ["g", "h", None])
    two = rows_of(["d", "c", "b"], ["g", None, "k"])
    groups = row_groups([one, two], same_texts=False)
    assert groups is not None
    assert groups.tolist() == [0, 1, 2, 0, 3, 4]
    groups = row_groups([one, two], same_texts=True)
    assert groups is not None
    assert groups.tolist() == [0, 1, 2, 0, 2, 1]
    chain = row_groups([rows_of(["a", "b", "b", "c"], ["g", "g", "h", "h"])], same_texts=True)
    assert chain is not None
    assert chain.tolist() == [0, 0, 0, 0]


def test_rows_that_share_nothing_are_in_no_groups() -> None:
    assert row_groups([rows_of(["a", "a"], [None, None])], same_texts=False) is None
    assert row_groups([rows_of(["a", "b"], ["g", "h"])], same_texts=True) is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["classes", "label sets", "numbers"])
def test_parts_have_whole_groups_and_nearly_their_share(kind: str, seed: int) -> None:
    groups, classes = random_groups(seed)
    labels = {
        "classes": [f"class {number}" for number in classes],
        "label sets": [("all", f"class {number}") for number in classes],
        "numbers": classes.astype(float).tolist(),
    }[kind]
    parts = split_rows(labels, (0.2, 0.1), seed, True, groups)
    assert_whole(parts, groups)
    sizes = [len(part) / len(groups) for part in parts]
    assert sizes == pytest.approx([0.2, 0.1, 0.7], abs=0.03)
    again = split_rows(labels, (0.2, 0.1), seed, True, groups)
    assert all((one == other).all() for one, other in zip(parts, again, strict=True))
    other = split_rows(labels, (0.2, 0.1), seed + 1, True, groups)
    assert other[0].tolist() != parts[0].tolist()


@pytest.mark.parametrize("sets", [False, True])
def test_folds_of_groups_keep_the_shares_of_classes_better_than_by_chance(sets: bool) -> None:
    def unevenness(stratify: bool) -> float:
        total = 0.0
        for seed in range(5):
            groups, classes = random_groups(seed)
            indicators = classes[:, None] == np.arange(3)
            folds = fold_rows(indicators if sets else classes, 5, seed, stratify, groups)
            assert_whole(folds, groups)
            assert np.ptp([len(fold) for fold in folds]) <= 12
            counts = np.array([indicators[fold].sum(axis=0) for fold in folds])
            total += float(np.abs(counts - indicators.sum(axis=0) / 5).sum())
        return total

    assert unevenness(True) < 0.35 * unevenness(False)


def test_rows_that_are_alone_are_dealt_out_as_evenly_as_without_groups() -> None:
    classes = np.random.default_rng(3).choice(4, size=200, p=[0.6, 0.25, 0.1, 0.05])
    folds = fold_rows(classes, 5, 1, True, np.arange(200))
    counts = np.array([np.bincount(classes[fold], minlength=4) for fold in folds])
    assert (np.ptp(counts, axis=0) <= 2).all()


def test_every_part_gets_a_group_though_its_share_be_small() -> None:
    groups = np.repeat([0, 1, 2], [50, 30, 20])
    parts = deal_groups(
        groups, np.empty((100, 0), dtype=np.bool_), [0.01, 0.01, 0.98], np.random.default_rng(0)
    )
    assert_whole(parts, groups)
    assert [len(part) for part in parts] == [30, 20, 50]


# Studies with a groupColumn.


def visits(count: int = 60, per_patient: int = 4) -> list[Row]:
    return [
        {
            "text": f"visit {row} was as planned",
            "patient": row // per_patient,
            "label": ("well", "ill")[(row // per_patient) % 2],
        }
        for row in range(count)
    ]


def grouped(
    make_spec: MakeSpec, folder: Path, parts: dict[str, list[Row]], **changes: Any
) -> PreparedData:
    dataset = {"groupColumn": "patient", **changes.pop("dataset", {})}
    return prepare_rows(make_spec, folder, parts, dataset=dataset, **changes)


def split_up(data: PreparedData, parts: list[Numbers], per_patient: int = 4) -> int:
    """How many patients have rows in more than one of the parts, told by the number in the text."""
    tokenizer = data.model.tokenizer()
    places: dict[int, set[int]] = {}
    for number, part in enumerate(parts):
        for row in part:
            visit = int(tokenizer.decode(data.columns[0][row]).split()[1])
            places.setdefault(visit // per_patient, set()).add(number)
    return sum(len(place) > 1 for place in places.values())


def test_a_group_is_in_one_part_and_in_one_fold(make_spec: MakeSpec, tmp_path: Path) -> None:
    data = grouped(make_spec, tmp_path, {"train": visits()})
    alone = grouped(make_spec, tmp_path, {"train": visits()}, dataset={"groupColumn": None})
    for one, expected in ((data, False), (alone, True)):
        assert bool(split_up(one, [one.train, one.validation, one.test])) is expected
        assert bool(split_up(one, one.folds(4, True, 1))) is expected
    assert len(data.validation) == len(data.test) == 8
    for fold in data.folds(3, True, 1):
        well, ill = np.bincount(data.labels[fold], minlength=2)
        assert abs(int(well) - int(ill)) <= 4


def test_groups_hold_for_regression(make_spec: MakeSpec, tmp_path: Path) -> None:
    rows: list[Row] = [{**row, "label": number / 7} for number, row in enumerate(visits())]
    task = {"task": "Regression", "objective": {"metric": "rmse"}}
    data = grouped(make_spec, tmp_path, {"train": rows}, **task)
    assert split_up(data, [data.train, data.validation, data.test]) == 0
    assert split_up(data, data.folds(4, True, 1)) == 0


def test_too_few_groups_are_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"at least 3 groups of rows to be split \(got 2\)"
    ) as error:
        grouped(make_spec, tmp_path, {"train": visits(per_patient=30)})
    assert error.value.field == "spec.dataset.groupColumn"
    folds = {"crossValidation": {"folds": 5}}
    with pytest.raises(DataError, match=r"at most the 4 groups of rows .*got 5") as error:
        grouped(make_spec, tmp_path, {"train": visits(per_patient=12)}, validation=folds)
    assert error.value.field == "spec.validation.crossValidation.folds"


def test_a_group_column_of_lists_or_none_is_refused(make_spec: MakeSpec, tmp_path: Path) -> None:
    lists: list[Row] = [{**row, "patient": [row["patient"]]} for row in visits()]
    with pytest.raises(
        DataError, match=r"one value per row \(got \[0\] on line 1 of train\.jsonl and"
    ) as error:
        grouped(make_spec, tmp_path, {"train": lists})
    assert error.value.field == "spec.dataset.groupColumn"
    with pytest.raises(
        DataError, match="got person; the columns are: text, patient, label"
    ) as error:
        grouped(make_spec, tmp_path, {"train": visits()}, dataset={"groupColumn": "person"})
    assert error.value.field == "spec.dataset.groupColumn"


def test_rows_without_a_group_and_groups_in_given_parts_are_told(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows = visits()
    train = [
        {**row, "patient": None} if number < 3 else row for number, row in enumerate(rows[:42])
    ]
    parts = {"train": train, "validation": rows[42:50], "test": rows[50:]}
    data = grouped(make_spec, tmp_path, parts)
    assert data.warnings == (
        "spec.dataset.groupColumn: 3 of 42 train rows have no value; each is a group of its own",
        "spec.dataset.groupColumn: 2 groups have rows in several parts of the source",
    )
    assert data.groups is not None
    assert len(np.unique(data.groups[data.train])) == 3 + 11
