"""Tasks, freezing, precision, augmentation and folds together: every pair of them trains, or is refused."""

from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.cluster import Compute
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_api.tasks import TASKS, Task
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.tasks.ragged import flat
from finetune_trainer.training import Pretrained, TrialRun
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import small

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLES: dict[Task, tuple[str, dict[str, Any], str]] = {
    "SingleLabel": ("library.csv", {"labelColumn": "library"}, "accuracy"),
    "MultiLabel": ("parameters.jsonl", {"labelColumn": "parameters"}, "f1_micro"),
    "Regression": ("arity.csv", {"labelColumn": "arity"}, "rmse"),
    "TokenClassification": (
        "names.jsonl",
        {"labelColumn": None, "spansColumn": "names"},
        "accuracy",
    ),
}
assert SAMPLES.keys() == TASKS.keys()
FACTORS: dict[str, tuple[Any, ...]] = {
    "task": tuple(SAMPLES),
    "freeze": ("None", "Embeddings", "Layers", "Encoder"),
    "pooling": ("Architecture", "Cls", "Mean"),
    "precision": ("FP32", "TF32", "BF16"),
    "augmentation": ("None", "Synonyms", "Insertion", "Deletion", "Swap", "All"),
    "folds": (None, 2),
    "focal_gamma": (0.0, 2.0),
    "reinit_layers": (0, 1),
    "r_drop": (0.0, 1.0),
    "mixout": (0.0, 0.5),
    "pretrained_pull": (0.0, 1.0),
    "adversarial_epsilon": (0.0, 1.0),
    "lora_rank": (0, 2),
    "checkpointing": (False, True),
}


Choice = dict[str, Any]


def refused(chosen: Choice) -> bool:
    """What no trial trains: what means nothing for its task, and frozen layers that are drawn at random or below which
    words move (test_training_techniques).
    """
    if "task" in chosen and any(
        name in TASKS[chosen["task"]].without and value not in ("None", "Architecture", 0.0, 0)
        for name, value in chosen.items()
    ):
        return True  # by the schema
    freeze = chosen.get("freeze")
    moved = chosen.get("adversarial_epsilon") and freeze in ("Layers", "Encoder")
    return bool(moved or (chosen.get("reinit_layers") and freeze == "Encoder"))


def covering() -> list[Choice]:
    """Few combinations that have every pair of values of any two factors, but for those that are refused."""
    missing = [
        ((one, a), (other, b))
        for one, other in combinations(FACTORS, 2)
        for a, b in product(FACTORS[one], FACTORS[other])
        if not refused({one: a, other: b})
    ]
    found = []
    while missing:
        chosen = dict(missing[0])
        for name, values in FACTORS.items():
            if name not in chosen:
                chosen[name] = max(
                    (value for value in values if not refused({**chosen, name: value})),
                    key=lambda value: _new(missing, {**chosen, name: value}, name),  # called here
                )
        missing = [
            (one, other)
            for one, other in missing
            if chosen[one[0]] != one[1] or chosen[other[0]] != other[1]
        ]
        found.append({name: chosen[name] for name in FACTORS})
    return found


def _new(missing: list[Any], chosen: Choice, name: str) -> int:
    """How many of the missing pairs the chosen values have, with the one of this factor."""
    items = list(chosen.items())
    return sum(
        one in items and other in items for one, other in missing if name in (one[0], other[0])
    )


@pytest.fixture(scope="module")
def prepared(
    make_spec: MakeSpec, shallow: Path, examples: Path
) -> dict[str, tuple[PreparedData, Pretrained]]:
    """Eight rows of each task, and its model."""
    found: dict[str, tuple[PreparedData, Pretrained]] = {}
    for task, (file, columns, metric) in SAMPLES.items():
        spec = make_spec(
            task=task,
            model={"name": str(shallow)},
            dataset={
                "files": {"train": str(examples / "data" / file)},
                "allowLabelInText": True,
                **columns,
            },
            objective={"metric": metric},
            searchSpaces=[
                {"learningRate": {"values": [1e-3]}}
                if "augmentation" in TASKS[task].without
                else {"augmentation": {"values": list(FACTORS["augmentation"])}}
            ],
        )
        data = small(prepare(spec, Path("/")), 8, 8)
        found[task] = (data, Pretrained.load(data.model, data.task, data.label_names))
    return found


@pytest.mark.parametrize(
    "chosen", covering(), ids=lambda chosen: "-".join(map(str, chosen.values()))
)
def test_every_pair_of_techniques_trains(
    chosen: Choice, prepared: dict[str, tuple[PreparedData, Pretrained]], tmp_path: Path
) -> None:
    data, pretrained = prepared[chosen["task"]]
    if chosen["folds"]:
        data = data.fold(0, chosen["folds"], stratify=True, seed=0)
    config = Hyperparameters(
        epochs=1,
        batch_size=4,
        max_length=12,
        warmup_ratio=0.0,
        learning_rate=1e-3,
        augmentation_share=0.5,
        **{
            name: chosen[name]
            for name in (
                "freeze",
                "pooling",
                "augmentation",
                "lora_rank",
                "focal_gamma",
                "reinit_layers",
                "r_drop",
                "mixout",
                "pretrained_pull",
                "adversarial_epsilon",
            )
        },
    )
    compute = Compute(precision=chosen["precision"], gradient_checkpointing=chosen["checkpointing"])
    objective = Objective(metric=SAMPLES[chosen["task"]][2])
    run = TrialRun(pretrained, data, config, 3, objective, compute=compute)
    untrained = run.predict(data.validation)
    first = run.train_to(0.5)
    run.save(tmp_path)
    resumed = TrialRun.resume(tmp_path, pretrained, data, objective, compute=compute)
    second = resumed.train_to(1)
    assert first is not None
    assert second is not None
    assert np.isfinite([first.train_loss, second.train_loss, *second.metrics.values()]).all()
    assert not np.array_equal(flat(resumed.predict(data.validation)), flat(untrained))
