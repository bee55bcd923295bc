"""Regret over time as a picture, from the runs of `python -m benchmarks.search.lcbench`.

    python -m benchmarks.search.lcbench.picture --runs runs.jsonl --out docs/images/regret.svg [--workers 4]

Draws the mean regret after each whole training with its 95 % interval, for light and for dark pages (`regret-dark.svg`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.search.lcbench.__main__ import interval, regrets_of

mpl.use("svg")
import matplotlib.pyplot as plt  # after the backend

SHOWN = {
    "ours Auto": ("chosen for you: search: {}", "#0072B2", 2.6),
    "ours TPE + Hyperband": ("TPE + Hyperband", "#009E73", 1.6),
    "ours Random + ASHA": ("Random + ASHA", "#56B4E9", 1.6),
    "ours Random": ("Random, whole trainings", "#999999", 1.6),
    "Ray ASHA": ("Ray: ASHA", "#D55E00", 1.6),
    "Optuna TPE + HyperbandPruner": ("Optuna: TPE + HyperbandPruner", "#CC79A7", 1.6),
}
"""Searches with their labels, colours (Okabe and Ito's, which colour-blind people can tell apart) and widths."""


def draw(found: list[dict[str, Any]], most: int, path: Path, ink: str) -> None:
    """One picture on a transparent ground, text and axes in the colour `ink`."""
    style: dict[Any, Any] = {
        "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink,
        "axes.edgecolor": ink, "font.size": 11, "svg.fonttype": "none", "svg.hashsalt": "regret",
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.2, 4.2))
        marks = range(1, most + 1)
        for name, (label, colour, width) in SHOWN.items():
            each = [regrets_of(found, mark).get(name, {}) for mark in marks]
            if not all(each):
                continue
            keys = sorted(each[-1])
            tasks = [task for task, _ in keys]
            values = np.array([[at[key] for key in keys] for at in each])
            low, high = np.array([interval(row, tasks) for row in values]).T
            axes.plot(marks, values.mean(axis=1), color=colour, lw=width, label=label)
            if name == "ours Auto":
                axes.fill_between(marks, low, high, color=colour, alpha=0.15, lw=0)
        axes.set_xlabel("cost, in whole trainings (4 workers)")
        axes.set_ylabel("regret (0: the best known)")
        axes.set_xlim(1, most)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        figure.tight_layout()
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    lines = map(json.loads, given.runs.read_text().splitlines())
    runs = [run for run in lines if run["workers"] == given.workers and not run.get("limit")]
    most = max(run["trainings"] for run in runs)
    runs = [run for run in runs if run["trainings"] == most]
    draw(runs, most, given.out, "#1f2328")
    draw(runs, most, given.out.with_stem(f"{given.out.stem}-dark"), "#e6edf3")


if __name__ == "__main__":
    main()
