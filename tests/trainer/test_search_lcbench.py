"""Models over rungs find no worse than random draws, on ground that others made (docs/search.md has the figures)."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.search.lcbench.__main__ import TASKS, Setting, interval, regrets_of, results
from benchmarks.search.lcbench.searches import AUTO, BASE

pytestmark = pytest.mark.extended

BARS = {6: 0.08, 12: 0.08, 25: 0.05}
"""Whole trainings → how much more regret than that of random draws the interval may reach."""


@pytest.mark.parametrize(
    ("search", "seeds"),
    [
        ("ours TPE + ASHA", 10),
        ("ours TPE + Hyperband", 10),
        ("ours CMAES + ASHA", 10),
        ("ours GP + ASHA", 3),  # a minute each
        (AUTO, 3),
    ],
)
def test_a_search_is_no_worse_than_random_draws(search: str, seeds: int, tmp_path: Path) -> None:
    settings = [
        Setting(name, task, seed, 4, 25)
        for name in (BASE, search)
        for task in TASKS
        for seed in range(seeds)
    ]
    found = results(settings, tmp_path / "runs.jsonl")
    for mark, bar in BARS.items():
        regrets = regrets_of(found, mark)
        keys = sorted(regrets[BASE])
        differences = np.array([regrets[search][key] - regrets[BASE][key] for key in keys])
        assert interval(differences, [task for task, _ in keys])[1] < bar, mark
