"""Data sets as the `datasets` library serves them; here from a folder, the same way as from the hub."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from finetune_trainer.data import prepare
from finetune_trainer.data.hub import is_transient
from finetune_trainer.errors import DataError
from tests.trainer.conftest import MakeSpec


def hub(spec: MakeSpec, path: Path | str, **changes: Any) -> Any:
    dataset = {"files": None, "hub": {"path": str(path)}, "labelColumn": "label"}
    dataset |= changes.pop("dataset", {})
    return prepare(spec(dataset=dataset, **changes), Path("/"))


def store(folder: Path, split: str, label: Any, labels: list[Any]) -> None:
    texts = [f"sentence number {row} for {split}" for row in range(len(labels))]
    features = Features({"text": Value("string"), "label": label})
    rows = Dataset.from_dict({"text": texts, "label": labels}, features=features)
    rows.to_parquet(folder / f"{split}-00000.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_class_numbers_become_names_and_hidden_labels_no_part(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    label = ClassLabel(names=["negative", "positive"])
    store(tmp_path, "train", label, [0, 1] * 10)
    store(tmp_path, "validation", label, [1, 0, 0])
    store(tmp_path, "test", label, [-1] * 4)
    data = hub(make_spec, tmp_path)
    assert data.label_names == ("negative", "positive")
    assert data.labels[data.validation].tolist() == [1, 0, 0]
    assert (len(data.train), len(data.test)) == (18, 2)
    assert data.warnings == (
        "spec.dataset.hub: the test split has no labels; training rows replace it",
    )


def test_lists_of_class_numbers(make_spec: MakeSpec, tmp_path: Path) -> None:
    label = List(ClassLabel(names=["joy", "anger"]))
    store(tmp_path, "train", label, [[0], [0, 1], []] * 10)
    data = hub(make_spec, tmp_path, task="MultiLabel", objective={"metric": "f1_micro"})
    assert data.label_names == ("anger", "joy")
    assert np.sort(data.labels.sum(axis=0)).tolist() == [10, 20]


def test_missing_splits_and_columns_are_told(make_spec: MakeSpec, tmp_path: Path) -> None:
    store(tmp_path, "test", Value("string"), ["a", "b"])
    with pytest.raises(DataError, match=r"must have a split named train \(got test\)"):
        hub(make_spec, tmp_path)
    store(tmp_path, "train", Value("string"), ["a", "b"] * 9)
    with pytest.raises(DataError, match="got body; the columns are: text, label") as error:
        hub(make_spec, tmp_path, dataset={"textColumns": ["body"]})
    assert error.value.field == "spec.dataset.textColumns[0]"


def test_a_data_set_that_is_not_there(make_spec: MakeSpec) -> None:
    with pytest.raises(DataError, match="while HF_HUB_OFFLINE is set") as error:
        hub(make_spec, "org/none")
    assert error.value.field == "spec.dataset.hub.path"


def test_an_unreachable_hub_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError("cannot load")
    error.__cause__ = ConnectionError("no route to host")
    assert not is_transient(error)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert is_transient(error)
    assert not is_transient(OSError("no such model"))
