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
from benchmarks.search.lcbench.searches import AUTO

mpl.use("svg")
import matplotlib.pyplot as plt  # after the backend

SHOWN = {
    AUTO: ("chosen for you: search: {}", "#0072B2", 2.6),
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
        at = [regrets_of(found, mark) for mark in marks]
        names = [name for name in SHOWN if all(name in each for each in at)]
        runs = sorted(set.intersection(*(set(at[-1][name]) for name in names)))
        curves = {
            name: np.array([[each[name][key] for key in runs] for each in at]) for name in names
        }
        for name in sorted(names, key=lambda name: -float(curves[name][-1].mean())):
            label, colour, width = SHOWN[name]
            axes.plot(marks, curves[name].mean(axis=1), color=colour, lw=width, label=label)
        if AUTO in names:
            bands = [interval(row, [task for task, _ in runs]) for row in curves[AUTO]]
            axes.fill_between(marks, *np.array(bands).T, color=SHOWN[AUTO][1], alpha=0.15, lw=0)
        axes.set_xlabel("cost, in whole trainings (4 workers)")
        axes.set_ylabel("regret (0: the best known)")
        axes.set_xlim(1, most)
        axes.set_ylim(0, 0.8)
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
