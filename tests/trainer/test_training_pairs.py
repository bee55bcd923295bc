"""Tasks, freezing, precision, augmentation and folds together: every pair of them trains, or is refused."""

from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.study import Compute, Objective
from finetune_api.tasks import Task
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.training import Pretrained, TrialRun
from tests.trainer.conftest import MakeSpec
from tests.trainer.small_trials import small

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS: dict[Task, tuple[str, str, str]] = {
    "SingleLabel": ("library.csv", "library", "accuracy"),
    "MultiLabel": ("parameters.jsonl", "parameters", "f1_micro"),
    "Regression": ("arity.csv", "arity", "rmse"),
}
FACTORS: dict[str, tuple[Any, ...]] = {
    "task": tuple(TASKS),
    "freeze": ("None", "Embeddings", "Layers", "Encoder"),
    "pooling": ("Architecture", "Cls", "Mean"),
    "precision": ("FP32", "TF32", "BF16"),
    "augmentation": ("None", "Synonyms", "Insertion", "Deletion", "Swap", "All"),
    "folds": (None, 2),
    "focal_gamma": (0.0, 2.0),
    "lora_rank": (0, 2),
    "checkpointing": (False, True),
}


def covering() -> list[tuple[Any, ...]]:
    """Few combinations that have every pair of values of any two factors: the most new pairs first."""
    numbers = list(combinations(range(len(FACTORS)), 2))

    def pairs(case: tuple[Any, ...]) -> set[Any]:
        return {(one, other, case[one], case[other]) for one, other in numbers}

    candidates = {case: pairs(case) for case in product(*FACTORS.values())}
    missing = set().union(*candidates.values())
    chosen = []
    while missing:
        best = max(candidates, key=lambda case: len(candidates[case] & missing))
        missing -= candidates[best]
        chosen.append(best)
    return chosen


@pytest.fixture(scope="module")
def prepared(
    make_spec: MakeSpec, shallow: Path, examples: Path
) -> dict[str, tuple[PreparedData, Pretrained]]:
    """Eight rows of each task, and its model."""
    found: dict[str, tuple[PreparedData, Pretrained]] = {}
    for task, (file, label, metric) in TASKS.items():
        spec = make_spec(
            task=task,
            model={"name": str(shallow)},
            dataset={
                "files": {"train": str(examples / "data" / file)},
                "labelColumn": label,
                "allowLabelInText": True,
            },
            objective={"metric": metric},
            searchSpaces=[{"augmentation": {"values": list(FACTORS["augmentation"])}}],
        )
        data = small(prepare(spec, Path("/")), 8, 8)
        found[task] = (data, Pretrained.load(data.model, data.task, data.label_names))
    return found


@pytest.mark.parametrize("case", covering(), ids=lambda case: "-".join(map(str, case)))
def test_every_pair_of_techniques_trains(
    case: tuple[Any, ...], prepared: dict[str, tuple[PreparedData, Pretrained]], tmp_path: Path
) -> None:
    chosen = dict(zip(FACTORS, case, strict=True))
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
            for name in ("freeze", "pooling", "augmentation", "lora_rank", "focal_gamma")
        },
    )
    compute = Compute(precision=chosen["precision"], gradient_checkpointing=chosen["checkpointing"])
    objective = Objective(metric=TASKS[chosen["task"]][2])
    run = TrialRun(pretrained, data, config, 3, objective, compute=compute)
    untrained = run.predict(data.validation)
    first = run.train_to(0.5)
    run.save(tmp_path)
    resumed = TrialRun.resume(tmp_path, pretrained, data, objective, compute=compute)
    second = resumed.train_to(1)
    assert first is not None
    assert second is not None
    assert np.isfinite([first.train_loss, second.train_loss, *second.metrics.values()]).all()
    assert not np.array_equal(resumed.predict(data.validation), untrained)
