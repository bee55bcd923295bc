"""What every task promises to the rooms that ask it. A new task is added to `SAMPLES`, or its test fails."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import finetune_trainer
from finetune_api.metrics import best_value, natural_goal
from finetune_api.tasks import TASKS, Task
from finetune_trainer.cells.places import WrongCell
from finetune_trainer.tasks import TrainingTask, task_of

ROOMS = Path(finetune_trainer.__file__).parent


@dataclass(frozen=True)
class Sample:
    """Cells of the label column as users write them, the names of the outputs, and a cell that is refused."""

    cells: list[Any]
    names: list[str]
    wrong: Any
    separator: str | None = None


SAMPLES: dict[Task, Sample] = {
    "SingleLabel": Sample(["a", "b", "c", "a", "a", "b"] * 4, ["a", "b", "c"], ["a"]),
    "MultiLabel": Sample(
        ["a;b", "b", "a;b;c", '["c"]', "a", "c;a"] * 4, ["a", "b", "c"], {"a": 1}, ";"
    ),
    "Regression": Sample([1, 2.5, "3", -4, 0.5, 7] * 4, ["size"], "many"),
}
ALL = [pytest.param(name, id=name) for name in TASKS]


def encoded(name: Task) -> tuple[TrainingTask, Any, int]:
    task, sample = task_of(name), SAMPLES[name]
    cells = [task.unpacked(cell) for cell in sample.cells]
    task.check_cells(cells)
    labels = [task.label_of(cell, sample.separator) for cell in cells]
    assert None not in labels
    return task, task.encode(labels, sample.names), len(sample.names)  # type: ignore[arg-type]  # none is None


def logits_for(labels: Any, outputs: int) -> Any:
    """Logits that are right of most rows, and of some not."""
    wide = labels if labels.ndim == 2 else labels[:, None] == np.arange(outputs)
    if labels.dtype == np.float32:
        wide = labels[:, None]
    noise = np.random.default_rng(0).normal(0, 1, wide.shape)
    return (wide.astype(np.float32) * 2 + noise).astype(np.float32)


def test_every_task_has_a_sample() -> None:
    assert SAMPLES.keys() == TASKS.keys()


@pytest.mark.parametrize("name", ALL)
def test_cells_that_hold_no_label_of_the_task_are_refused_or_missing(name: Task) -> None:
    task, sample = task_of(name), SAMPLES[name]
    for empty in (None, float("nan"), "  "):
        assert task.label_of(empty, sample.separator) is None
    with pytest.raises(WrongCell):
        task.label_of(task.unpacked(sample.wrong), sample.separator)


@pytest.mark.parametrize("name", ALL)
def test_counts_agree_with_the_rows_that_have_each_output(name: Task) -> None:
    task, labels, outputs = encoded(name)
    counts = task.counts(labels, outputs)
    assert counts.shape == (outputs,)
    assert counts.tolist() == [task.having(labels, each).sum() for each in range(outputs)]
    assert task.counts(labels[:0], outputs).tolist() == [0] * outputs


@pytest.mark.parametrize("name", ALL)
def test_loss_is_the_mean_over_rows_and_least_of_what_is_right(name: Task) -> None:
    task, labels, outputs = encoded(name)
    logits, targets = torch.from_numpy(logits_for(labels, outputs)), torch.from_numpy(labels)
    whole = task.loss(logits, targets)
    halves = [task.loss(logits[at], targets[at]) for at in (slice(0, 12), slice(12, None))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())
    priors = torch.from_numpy(task.priors(labels, outputs)).expand(len(labels), -1)
    for shift in (-0.5, 0.5):
        worse = priors + torch.nn.functional.one_hot(torch.tensor(0), outputs) * shift
        assert task.loss(priors, targets) < task.loss(worse, targets)


@pytest.mark.parametrize("name", ALL)
def test_predictions_differ_from_others_alone_and_both_ways_alike(name: Task) -> None:
    task, labels, outputs = encoded(name)
    one = torch.from_numpy(logits_for(labels, outputs))
    other = one + torch.linspace(0, 1, outputs + 1)[1:]
    assert task.divergence(one, one) == 0
    assert task.divergence(one, other) > 0
    torch.testing.assert_close(task.divergence(one, other), task.divergence(other, one))
    probabilities = [torch.from_numpy(task.shares(each.numpy())) for each in (one, other)]
    if name == "SingleLabel":  # the definition, by torch
        kl = torch.nn.functional.kl_div
        both = sum(
            kl(a.log(), b, reduction="batchmean")
            for a, b in (probabilities, reversed(probabilities))
        )
        assert task.divergence(one, other).item() == pytest.approx(float(both) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_outputs_and_logits_stand_for_each_other(name: Task) -> None:
    task, labels, outputs = encoded(name)
    logits = logits_for(labels, outputs)
    shares = task.shares(logits)
    again = task.logits_of(shares).astype(np.float32)
    np.testing.assert_allclose(task.shares(again), shares, rtol=1e-5)
    np.testing.assert_allclose(
        task.predictions(again, None), task.predictions(logits, None), rtol=1e-5
    )


@pytest.mark.parametrize("name", ALL)
def test_what_is_right_has_the_best_value_of_each_metric(name: Task) -> None:
    task, labels, outputs = encoded(name)
    wide = labels if labels.ndim == 2 else labels[:, None] == np.arange(outputs)
    right = labels[:, None] if name == "Regression" else np.where(wide, 9.0, -9.0)
    wrong = logits_for(labels, outputs)[::-1].copy()
    for metric in TASKS[name].metrics:
        if metric != "loss":
            best = task.metric(metric, right.astype(np.float32), labels, None)
            assert best == pytest.approx(best_value(metric)), metric
            other = task.metric(metric, wrong, labels, None)
            worse = other < best if natural_goal(metric) == "Maximize" else other > best
            assert worse, metric


@pytest.mark.parametrize("name", ALL)
def test_report_and_constant_are_of_these_rows(name: Task) -> None:
    task, labels, outputs = encoded(name)
    logits = logits_for(labels, outputs)
    thresholds = np.full(outputs, 0.5) if task.has_thresholds else None
    report = task.report(SAMPLES[name].names, logits, labels, thresholds)
    assert report.rows == len(labels)
    assert report.task == name
    if report.labels is not None:
        supports = [label.support for label in report.labels]
        assert supports == task.counts(labels, outputs).tolist()
    assert task.constant(labels, outputs).shape == (outputs,)
    predicted = task.predictions(logits, thresholds)[0]
    assert set(task.explained(logits[:1], predicted)) <= set(range(outputs))
    words = np.ravel(task.named(predicted, SAMPLES[name].names)).tolist()
    assert set(words) <= set(SAMPLES[name].names) or not task.has_classes


@pytest.mark.parametrize("name", ALL)
def test_card_of_the_task_is_code_and_sentences(name: Task) -> None:
    task = task_of(name)
    compile("\n".join((*task.card_imports, *task.card_answer)), "card", "exec")
    compile(task.card_answer_together, "card", "exec")
    assert task.purpose.format(count=3, name="size")
    assert task.constant_words
    assert task.card_limit == "" or task.card_limit.endswith(".")


def test_no_room_but_tasks_asks_for_the_name_of_a_task() -> None:
    asking = [
        f"{path.relative_to(ROOMS)}:{number}"
        for path in sorted(ROOMS.rglob("*.py"))
        if path.parent.name != "tasks"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for name in TASKS
        if f'"{name}"' in line
    ]
    assert asking == []
