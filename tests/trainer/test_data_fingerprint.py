"""Whatever decides which batches a trial sees is in the fingerprint of its data: a checkpoint resumes on no others."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from finetune_trainer.data.model_source import ModelSource
from finetune_trainer.data.prepared import PreparedData
from finetune_trainer.data.tokens import Frame, Tokens

IDS, OFFSETS = np.arange(12, dtype=np.int32), np.array([0, 2, 4, 6, 8, 10, 12], dtype=np.int64)
FRAME = Frame(before=(1,), between=(), after=(2,), types=None, pad=0)

DATA = PreparedData(
    task="SingleLabel",
    model=ModelSource("speller"),
    columns=(Tokens(IDS, OFFSETS),),
    labels=np.array([0, 1, 0, 1, 0, 1]),
    label_names=("no", "yes"),
    train=np.array([0, 1, 2]),
    validation=np.array([3, 4]),
    test=np.array([5]),
    frame=FRAME,
    max_tokens=512,
)

CHANGES: dict[str, Any] = {
    "task": "Regression",
    "columns": (Tokens(IDS[::-1].copy(), OFFSETS),),
    "labels": np.array([0, 1, 0, 1, 1, 0]),
    "label_names": ("yes", "no"),
    "train": np.array([1, 0, 2]),
    "validation": np.array([4, 3]),
    "test": np.array([4]),
    "frame": replace(FRAME, pad=3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_of_these_changes_the_fingerprint(name: str) -> None:
    assert replace(DATA, **{name: CHANGES[name]}).digest() != DATA.digest()


def test_where_texts_end_changes_it() -> None:
    other = Tokens(IDS, np.array([0, 1, 4, 6, 8, 10, 12], dtype=np.int64))
    assert replace(DATA, columns=(other,)).digest() != DATA.digest()


def test_a_row_that_moves_from_one_part_to_the_next_changes_it() -> None:
    moved = replace(DATA, train=np.array([0, 1]), validation=np.array([2, 3, 4]))
    assert moved.digest() != DATA.digest()


def test_copies_have_the_same() -> None:
    columns = (Tokens(IDS.copy(), OFFSETS.copy()),)
    copied = replace(DATA, columns=columns, labels=DATA.labels.copy(), train=DATA.train.copy())
    assert copied.digest() == DATA.digest()


def test_what_is_made_of_the_rows_has_its_own() -> None:
    made = [DATA.merged(), DATA.fold(0, 2, False, 0), DATA.fold(1, 2, False, 0)]
    made.append(DATA.sampled(2, False, 0))
    prints = {DATA.digest(), *(each.fingerprint for each in made)}
    assert len(prints) == 5
    assert all(each.fingerprint == each.digest() for each in made)


def test_a_final_fit_has_the_validation_rows_in_training_and_nowhere_else() -> None:
    merged = DATA.merged()
    assert merged.train.tolist() == [0, 1, 2, 3, 4]
    assert merged.validation.tolist() == []
    assert merged.test.tolist() == [5]
