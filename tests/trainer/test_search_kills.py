"""A hundred drivers killed at random moments: see `kills`, which prints their log."""

from pathlib import Path

import pytest

from tests.trainer.kills import kill_all

pytestmark = pytest.mark.in_memory


def test_a_hundred_random_kills_change_no_decision_and_lose_nothing(tmp_path: Path) -> None:
    fates = kill_all(tmp_path, kills=100)
    assert {(fate.study, fate.slots): fate.wrong for fate in fates if fate.wrong} == {}
    assert sum(fate.resumes for fate in fates if fate.slots == 1) >= 100
    assert all(sum(fate.kills[how] for fate in fates) > 20 for how in ("before", "torn", "after"))
