"""What seqeval says of random sequences of tags, for `seqeval_values.json`: its strict mode, with IOB2.

    uv run --no-project --with seqeval==1.2.2 python -m tests.trainer.seqeval_values

It has had no release since 2022, so the tests have its values and not the package.
"""

import json
import random
from pathlib import Path

VALUES = Path(__file__).with_suffix(".json")
TYPES = ("LOC", "ORG", "PER")
OUTPUTS = ("O", *(f"{mark}-{kind}" for kind in TYPES for mark in "BI"))
COUNT = 1000
NAMES = (
    "precision_micro",
    "recall_micro",
    "f1_micro",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "f1_weighted",
)


def sequences() -> list[tuple[list[list[str]], list[list[str]]]]:
    """Tags that are right and tags that are predicted, each of a few rows; the predicted ones may break every rule."""
    generator = random.Random(0)
    found = []
    for _ in range(COUNT):
        rows = generator.randint(1, 4)
        right = [_valid(generator) for _ in range(rows)]
        found.append((right, [[_other(generator, tag) for tag in row] for row in right]))
    return found


def _valid(generator: random.Random) -> list[str]:
    tags: list[str] = []
    while len(tags) < generator.randint(1, 12):
        if generator.random() < 0.5:
            tags.append("O")
        else:
            kind = generator.choice(TYPES)
            tags += [f"B-{kind}", *[f"I-{kind}"] * generator.choice((0, 0, 1, 2))]
    return tags


def _other(generator: random.Random, tag: str) -> str:
    return generator.choice(OUTPUTS) if generator.random() < 0.3 else tag


def main() -> None:
    """Write them."""
    # No dependency of this project: see above.
    from seqeval.metrics import (  # type: ignore[import-not-found]
        f1_score,
        precision_score,
        recall_score,
    )
    from seqeval.scheme import IOB2  # type: ignore[import-not-found]

    of = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    values = [
        [
            float(
                of[name.split("_")[0]](
                    right,
                    predicted,
                    mode="strict",
                    scheme=IOB2,
                    average=name.split("_")[1],
                    zero_division=0,
                )
            )
            for name in NAMES
        ]
        for right, predicted in sequences()
    ]
    VALUES.write_text(json.dumps(values, separators=(",", ":")).replace("],[", "],\n[") + "\n")


if __name__ == "__main__":
    main()
