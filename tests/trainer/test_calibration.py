"""How sure a model is, and how often it is right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.tasks import task_of
from finetune_trainer.tasks.calibration import calibration_of


def test_predictions_are_put_together_by_their_probability() -> None:
    found = calibration_of(
        np.array([0.05, 0.55, 0.58, 0.95, 1.0]), np.array([False, True, False, True, True])
    )
    assert [(one.count, round(one.confidence, 3), one.accuracy) for one in found.bins] == [
        (1, 0.05, 0.0),
        (2, 0.565, 0.5),
        (2, 0.975, 1.0),
    ]
    assert found.error == pytest.approx((0.05 + 2 * 0.065 + 2 * 0.025) / 5)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=50))
def test_every_prediction_is_counted_and_the_error_is_a_share(
    pairs: list[tuple[float, bool]],
) -> None:
    found = calibration_of(
        np.array([share for share, _ in pairs], dtype=np.float64),
        np.array([right for _, right in pairs], dtype=np.bool_),
    )
    assert sum(one.count for one in found.bins) == len(pairs)
    assert 0 <= found.error <= 1


def test_each_task_says_what_its_probabilities_are_of() -> None:
    sure = np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], dtype=np.float32)
    single = task_of("SingleLabel").calibration(sure, np.array([0, 2]))
    assert single is not None
    assert [(one.count, one.accuracy) for one in single.bins] == [(2, 0.5)]
    labels = np.array([[True, False, False], [False, False, False]])
    several = task_of("MultiLabel").calibration(sure, labels)
    assert several is not None
    assert [(one.count, one.accuracy) for one in several.bins] == [(4, 0.0), (2, 0.5)]
    assert task_of("Regression").calibration(sure[:, :1], np.array([1.0, 2.0])) is None
