"""Schedules, optimizers, batches, losses and metrics, each against the library that defines it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_class_weight

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.tasks import TASKS, Task
from finetune_trainer.tasks import task_of
from finetune_trainer.training.batches import (
    balanced_rows,
    evaluation_batches,
    training_steps,
)
from finetune_trainer.training.layers import Layers
from finetune_trainer.training.losses import TrainingLoss
from finetune_trainer.training.metrics import compute_metrics
from finetune_trainer.training.optimizers import adopt_state, begin_momentum, build_optimizer
from finetune_trainer.training.schedules import learning_rate

SCHEDULES: dict[str, Any] = {
    "Linear": transformers.get_linear_schedule_with_warmup,
    "Cosine": transformers.get_cosine_schedule_with_warmup,
    "CosineWithRestarts": lambda optimizer, warmup, total: (
        transformers.get_cosine_with_hard_restarts_schedule_with_warmup(
            optimizer, warmup, total, num_cycles=2
        )
    ),
    "Polynomial": lambda optimizer, warmup, total: (
        transformers.get_polynomial_decay_schedule_with_warmup(
            # of no steps after the warm-up it cannot take a share
            optimizer,
            warmup,
            max(total, warmup + 1),
            lr_end=0.0,
            power=2.0,
        )
    ),
    "InverseSqrt": lambda optimizer, warmup, total: transformers.get_inverse_sqrt_schedule(
        optimizer, warmup, timescale=warmup or total
    ),
    "Constant": lambda optimizer, warmup, total: transformers.get_constant_schedule_with_warmup(
        optimizer, warmup
    ),
}


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.5, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_that_of_transformers(name: Any, warmup: float) -> None:
    config = Hyperparameters(epochs=1, lr_schedule=name, warmup_ratio=warmup, learning_rate=0.3)
    total = 17
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = SCHEDULES[name](optimizer, math.ceil(warmup * total), total)
    for step in range(total):
        assert learning_rate(config, step, total) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_schedules_by_epochs_are_those_of_torch() -> None:
    each = 5
    config = Hyperparameters(
        epochs=6, warmup_ratio=0.0, learning_rate=0.3, lr_gamma=0.7, lr_patience=2
    )
    schedules: dict[str, Any] = {
        "Step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.7),
        "Exponential": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7),
    }
    for name, make in schedules.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule = make(optimizer)
        chosen = config.model_copy(update={"lr_schedule": name})
        for epoch in range(6):
            rate = learning_rate(chosen, epoch * each, each)
            assert rate == pytest.approx(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
    plateau = config.model_copy(update={"lr_schedule": "ReduceOnPlateau"})
    assert learning_rate(plateau, 29, each, reductions=2) == pytest.approx(0.3 * 0.7**2)


def test_optimizer_has_every_hyperparameter_and_no_decay_of_vectors() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    base = Hyperparameters(learning_rate=0.02, weight_decay=0.3, momentum=0.7, adam_epsilon=1e-5)
    chosen: dict[str, dict[str, Any]] = {
        "AdamW": {"betas": (0.8, 0.95), "eps": 1e-5},
        "Adam": {"betas": (0.8, 0.95), "eps": 1e-5},
        "SGD": {"momentum": 0.7, "nesterov": False},
        "NesterovSGD": {"momentum": 0.7, "nesterov": True},
        "Adafactor": {},
        "RMSprop": {"momentum": 0.7, "alpha": 0.9, "eps": 1e-5},
    }
    for name, expected in chosen.items():
        more = {"optimizer": name, "adam_beta1": 0.8, "adam_beta2": 0.95, "rmsprop_alpha": 0.9}
        optimizer = build_optimizer(
            dict(model.named_parameters()), base.model_copy(update=more), Layers("encoder.", "", 0)
        )
        classes = {"NesterovSGD": "SGD", "Adam": "AdamW"}
        assert type(optimizer).__name__ == classes.get(name, name)
        matrices, vectors = optimizer.param_groups
        assert [tuple(p.shape) for p in matrices["params"]] == [(4, 3)]
        assert len(vectors["params"]) == 3
        found = [group.get("decay", group["weight_decay"]) for group in (matrices, vectors)]
        assert found == [0.3, 0.0]
        assert {key: matrices[key] for key in expected} == expected
        assert matrices["lr"] == 0.02


@pytest.mark.parametrize("name", ["SGD", "NesterovSGD", "RMSprop"])
def test_momentum_that_was_switched_off_begins_anew(name: str) -> None:
    """PBT may take it away and give it back: what it had before is long past by then."""
    weights = {"weight": torch.nn.Parameter(torch.ones(2, 2))}

    def optimizer(momentum: float, before: Any = None) -> Any:
        changes = {"optimizer": name, "momentum": momentum, "learning_rate": 0.1}
        config = Hyperparameters(weight_decay=0).model_copy(update=changes)
        made = build_optimizer(weights, config, Layers("encoder.", "", 0))
        if before is not None:
            adopt_state(made, before, lambda weight: weight)
        for _ in range(3):
            weights["weight"].grad = torch.ones(2, 2)
            begin_momentum(made)
            made.step()
        return made

    def buffer(made: Any) -> float:
        return float(made.state[weights["weight"]]["momentum_buffer"].mean())

    first = optimizer(0.9)
    kept, anew = optimizer(0.9, first), optimizer(0.9, optimizer(0.0, first))
    assert buffer(kept) > buffer(anew) > 0


@settings(deadline=None)
@given(
    rows=st.integers(1, 300),
    batch=st.integers(1, 40),
    accumulation=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_epoch_has_every_row_once(rows: int, batch: int, accumulation: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(3, 60, rows)
    chosen = np.arange(rows) + 1000
    steps = training_steps(chosen, lengths, batch, accumulation, seed, epoch=0)
    batches = [rows for step in steps for rows in step]
    assert sorted(np.concatenate(batches)) == chosen.tolist()
    assert max(map(len, batches)) <= batch
    assert len(steps) == math.ceil(math.ceil(rows / batch) / accumulation)
    assert all(len(step) == accumulation for step in steps[:-1])


def test_batches_need_little_padding_and_differ_between_epochs() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, 3000)

    def padded(batches: list[Any]) -> int:
        return sum(int(lengths[rows].max()) * len(rows) for rows in batches)

    def epoch(number: int) -> list[Any]:
        steps = training_steps(np.arange(3000), lengths, 16, 1, 7, number)
        return [rows for step in steps for rows in step]

    assert padded(epoch(0)) < 1.03 * lengths.sum()
    assert padded(evaluation_batches(np.arange(3000), lengths, 16)) < 1.01 * lengths.sum()
    first, second = ([rows.tolist() for rows in epoch(number)] for number in (0, 1))
    assert first == [rows.tolist() for rows in epoch(0)]
    assert first != second
    assert [lengths[rows].max() for rows in epoch(0)] != sorted(
        lengths[rows].max() for rows in epoch(0)
    )


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    balance=st.sampled_from(["Oversample", "Undersample"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_balanced_epochs_have_every_class_as_often(
    counts: list[int], balance: str, seed: int
) -> None:
    classes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = np.arange(len(classes)) + 500
    chosen = balanced_rows(rows, classes, balance, seed, epoch=0)
    size = max(counts) if balance == "Oversample" else min(counts)
    assert np.bincount(classes[chosen - 500]).tolist() == [size] * len(counts)
    times = np.bincount(chosen - 500, minlength=len(rows))
    for number, count in enumerate(counts):
        of_class = times[classes == number]
        assert set(of_class) <= {size // count, size // count + 1}  # as evenly as whole rows allow
    assert chosen.tolist() == balanced_rows(rows, classes, balance, seed, epoch=0).tolist()


def test_training_loss_smooths_and_weighs_as_torch_and_scikit_learn_do() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.from_numpy(labels)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(
        task_of("SingleLabel").balancing_weights(labels, 3), weights, rtol=1e-6
    )
    cpu = torch.device("cpu")
    config = Hyperparameters(label_smoothing=0.2)
    smooth = TrainingLoss.of("SingleLabel", labels, 3, config, cpu)(logits, targets)
    expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.2)
    assert smooth.item() == pytest.approx(expected.item())
    weighed = TrainingLoss.of(
        "SingleLabel", labels, 3, Hyperparameters(class_balance="Weights"), cpu
    )
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none").numpy()
    assert weighed(logits, targets).item() == pytest.approx(np.mean(each * weights[labels]))

    many = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=np.bool_)
    np.testing.assert_allclose(task_of("MultiLabel").balancing_weights(many, 2), [1 / 3, 3])
    logits, targets = logits[:4, :2], torch.from_numpy(many)
    smooth = TrainingLoss.of("MultiLabel", many, 2, config, cpu)(logits, targets)
    soft = targets.float() * 0.8 + 0.1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, soft)
    assert smooth.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_is_that_of_its_paper_and_has_a_slope_everywhere(gamma: float) -> None:
    """Lin et al., 2017, equation 4: -(1 - p)^gamma log p."""
    generator = torch.Generator().manual_seed(0)
    one, many = torch.tensor([0, 2, 1, 1]), torch.tensor([[1, 0, 1]] * 4, dtype=torch.bool)
    cases: list[tuple[Task, torch.Tensor]] = [("SingleLabel", one), ("MultiLabel", many)]
    for task, labels in cases:
        logits = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        if task == "SingleLabel":
            shares = logits.softmax(dim=1)[torch.arange(4), labels]
        else:
            shares = torch.where(labels, logits.sigmoid(), 1 - logits.sigmoid())
        expected = (-((1 - shares) ** gamma) * shares.log()).mean()
        assert task_of(task).loss(logits, labels, gamma=gamma).item() == pytest.approx(
            expected.item()
        )
        sure = (logits.sign() * 200).float().requires_grad_()
        task_of(task).loss(sure, labels, gamma=gamma).backward()  # type: ignore[no-untyped-call]
        assert sure.grad is not None
        assert torch.isfinite(sure.grad).all()


def single(seed: int = 0) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(90, 4)).astype(np.float32), generator.integers(0, 4, 90)


def multi(seed: int = 0) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(90, 4)).astype(np.float32), generator.random((90, 4)) < 0.4


def test_single_label_metrics_are_those_of_scikit_learn() -> None:
    logits, labels = single()
    found = compute_metrics("SingleLabel", logits, labels, TASKS["SingleLabel"].metrics)
    assert tuple(found) == TASKS["SingleLabel"].metrics
    predicted = logits.argmax(1)
    shares = torch.from_numpy(logits).double().softmax(1).numpy()
    assert found["accuracy"] == sk.accuracy_score(labels, predicted)
    assert found["jaccard"] == sk.jaccard_score(labels, predicted, average="macro")
    assert found["loss"] == pytest.approx(sk.log_loss(labels, shares))
    area = sk.roc_auc_score(labels, shares, multi_class="ovr", average="macro")
    assert found["roc_auc"] == pytest.approx(area)
    for average in ("micro", "macro", "weighted"):
        assert found[f"f1_{average}"] == sk.f1_score(labels, predicted, average=average)
        recall = sk.recall_score(labels, predicted, average=average)
        assert found[f"recall_{average}"] == recall
        precision = sk.precision_score(labels, predicted, average=average)
        assert found[f"precision_{average}"] == precision


def test_multi_label_metrics_are_those_of_scikit_learn() -> None:
    logits, labels = multi()
    labels[0], logits[0] = False, -1  # nothing to find and nothing found is right
    found = compute_metrics("MultiLabel", logits, labels, TASKS["MultiLabel"].metrics)
    assert tuple(found) == TASKS["MultiLabel"].metrics
    predicted = logits > 0
    shares = torch.from_numpy(logits).sigmoid().numpy()
    assert found["accuracy"] == sk.accuracy_score(labels, predicted)
    jaccard = sk.jaccard_score(labels, predicted, average="samples", zero_division=1.0)
    assert found["jaccard"] == jaccard
    losses = [sk.log_loss(labels[:, n], shares[:, n]) for n in range(4)]
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, logits, average="macro"))
    assert found["f1_micro"] == sk.f1_score(labels, predicted, average="micro")


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=50).astype(np.float32)
    logits = generator.normal(size=(50, 1)).astype(np.float32)
    found = compute_metrics("Regression", logits, labels, TASKS["Regression"].metrics)
    assert tuple(found) == TASKS["Regression"].metrics
    mse = sk.mean_squared_error(labels, logits[:, 0])
    expected = {"mse": mse, "rmse": mse**0.5, "loss": mse, "r2": sk.r2_score(labels, logits[:, 0])}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5)


def test_roc_auc_is_the_mean_over_labels_that_have_one() -> None:
    logits, labels = multi()
    labels[:, 2], labels[:, 3] = False, True
    found = compute_metrics("MultiLabel", logits, labels, ["roc_auc"])
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(labels[:, :2], logits[:, :2]))


@pytest.mark.parametrize(
    ("task", "labels", "metric"),
    [
        ("SingleLabel", np.zeros(3, dtype=np.int64), "roc_auc"),
        ("MultiLabel", np.ones((3, 2), dtype=np.bool_), "roc_auc"),
        ("Regression", np.ones(1, dtype=np.float32), "r2"),
    ],
)
def test_undefined_metrics_are_left_out(task: Task, labels: Any, metric: str) -> None:
    width = 1 if task == "Regression" else 2
    logits = np.ones((len(labels), width), dtype=np.float32)
    assert set(compute_metrics(task, logits, labels, [metric, "loss"])) == {"loss"}
