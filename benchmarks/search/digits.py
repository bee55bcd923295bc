"""Real learning curves to search in: scikit-learn's MLPClassifier on its digits, epoch by epoch.

The table is built once (minutes) and kept under the user's cache folder.
"""

import json
import os
import random
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeAlias

CONFIGURATIONS = 600
EPOCHS = 27

Curves: TypeAlias = list[list[float]]
"""Validation accuracy by configuration and epoch."""


def curves() -> Curves:
    """The table of all configurations."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "finetune"
    path = cache / f"digits-mlp-{CONFIGURATIONS}x{EPOCHS}.json"
    if not path.exists():
        print(f"training {CONFIGURATIONS} networks for {EPOCHS} epochs, once ...", flush=True)
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = "1"  # read by the processes below
        with ProcessPoolExecutor() as pool:
            found = list(pool.map(_curve, range(CONFIGURATIONS), chunksize=4))
        cache.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".partial").write_text(json.dumps(found))
        path.with_suffix(".partial").replace(path)
    table: Curves = json.loads(path.read_text())
    return table


def _curve(number: int) -> list[float]:
    """Train configuration `number`; its validation accuracy after each epoch."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    rng = random.Random(number)
    texts, labels = load_digits(return_X_y=True)
    train, validation, train_labels, validation_labels = train_test_split(
        texts / 16.0, labels, test_size=0.4, random_state=0, stratify=labels
    )
    model = MLPClassifier(
        hidden_layer_sizes=(rng.choice([8, 16, 32, 64, 128]),) * rng.choice([1, 2]),
        activation=rng.choice(["relu", "tanh", "logistic"]),
        solver=rng.choice(["adam", "sgd"]),
        learning_rate_init=10 ** rng.uniform(-5, 0),
        momentum=rng.uniform(0, 0.99),
        alpha=10 ** rng.uniform(-7, 0),
        batch_size=rng.choice([8, 16, 32, 64, 128]),
        random_state=number,
    )
    curve = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # wild learning rates overflow: that is what a search meets
        for _ in range(EPOCHS):
            try:
                model.partial_fit(train, train_labels, classes=np.arange(10))
                curve.append(float(model.score(validation, validation_labels)))
            except ValueError:  # scikit-learn's word for weights that became infinite
                curve.extend([0.0] * (EPOCHS - len(curve)))
                break
    return curve


if __name__ == "__main__":
    best = max(max(curve) for curve in curves())
    print(f"best accuracy of {CONFIGURATIONS} configurations: {best:.4f}")
    sys.exit(0)
