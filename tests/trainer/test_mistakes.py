"""Which rows a model is most wrong about, and what reports may say of them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.tasks import task_of
from finetune_trainer.tasks.ragged import Ragged
from finetune_trainer.tasks.tagging import Tags

NAMES = ("bug", "feature", "question")
AMOUNTS = st.floats(-30, 30, allow_nan=False, width=32)


def test_the_surest_of_what_is_wrong_comes_first() -> None:
    logits = np.array([[9, 0, 0], [1, 0, 0], [9, 0, 0], [0, 0, 3]], dtype=np.float32)
    found = task_of("SingleLabel").mistakes(NAMES, logits, np.array([1, 1, 0, 0]), None)
    assert [(one.row, one.label, one.prediction) for one in found] == [
        (0, "feature", "bug"),
        (3, "bug", "question"),
        (1, "feature", "bug"),
    ]
    assert found[0].probability == pytest.approx(0.99975, abs=1e-5)


def test_of_several_labels_all_that_are_wrong_count() -> None:
    logits = np.array([[5, 5, -5], [5, -5, -5], [-0.1, -5, -5]], dtype=np.float32)
    labels = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 0]], dtype=np.bool_)
    found = task_of("MultiLabel").mistakes(NAMES, logits, labels, np.full(3, 0.5))
    assert [(one.row, one.label, one.prediction) for one in found] == [
        (0, ["bug", "question"], ["bug", "feature"]),
        (2, ["bug"], []),
    ]


def test_a_tuned_threshold_decides_what_is_wrong() -> None:
    logits = np.array([[-1.0], [-3.0]], dtype=np.float32)
    labels = np.array([[True], [False]])
    found = task_of("MultiLabel").mistakes(("bug",), logits, labels, np.array([0.2]))
    assert found == []
    found = task_of("MultiLabel").mistakes(("bug",), logits, labels, np.array([0.01]))
    assert [(one.row, one.prediction) for one in found] == [(1, ["bug"])]


def test_numbers_are_wrong_by_how_far_they_are_off() -> None:
    logits = np.array([[1.0], [5.0], [-3.0]], dtype=np.float32)
    labels = np.array([1.0, 4.0, 3.0], dtype=np.float32)
    found = task_of("Regression").mistakes(("value",), logits, labels, None)
    assert [(one.row, one.label, one.prediction) for one in found] == [
        (2, 3.0, -3.0),
        (1, 4.0, 5.0),
    ]


def test_of_words_those_that_are_tagged_wrongly_are_named() -> None:
    names = ("O", "B-name", "I-name")
    labels = Tags.of([[0, 1], [1, 2, 0], []], np.int64, singles=False)
    logits = Ragged(
        np.array([[9, 0, 0], [0, 9, 0], [0, 1, 0], [0, 3, 0], [9, 0, 0]], dtype=np.float32),
        labels.offsets,
    )
    found = task_of("TokenClassification").mistakes(names, logits, labels, None)
    assert [(one.row, one.label, one.prediction) for one in found] == [(1, ["I-name"], ["B-name"])]


@given(st.data(), st.integers(0, 40), st.integers(1, 30))
def test_no_right_row_is_a_mistake_and_none_is_left_out(
    data: st.DataObject, rows: int, most: int
) -> None:
    cells = data.draw(st.lists(st.tuples(AMOUNTS, AMOUNTS, AMOUNTS), min_size=rows, max_size=rows))
    logits = np.array(cells, dtype=np.float32).reshape(rows, 3)
    drawn: Any = st.lists(st.integers(0, 2), min_size=rows, max_size=rows)
    labels = np.array(data.draw(drawn), dtype=np.int64)
    task = task_of("SingleLabel")
    wrong = set(np.flatnonzero(task.predictions(logits) != labels).tolist())
    found = task.mistakes(NAMES, logits, labels, None, most)
    assert {one.row for one in found} <= wrong
    assert len(found) == min(most, len(wrong))
    losses = task.wrongness(logits, labels, None)
    assert [losses[one.row] for one in found] == sorted(
        (losses[row] for row in wrong), reverse=True
    )[:most]
