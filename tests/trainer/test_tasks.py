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
from finetune_trainer.data.slices import Slices
from finetune_trainer.tasks import TrainingTask, task_of
from finetune_trainer.tasks.ragged import Ragged, flat
from finetune_trainer.tasks.tagging import Tagged
from finetune_trainer.training.metrics import compute_metrics
from finetune_trainer.training.slices import slice_reports

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
    "TokenClassification": Sample(
        [("B-X", "I-X", "O"), ("O", "B-Y"), ("B-X",), ("O", "O", "B-Y", "I-Y")] * 6,
        ["O", "B-X", "I-X", "B-Y", "I-Y"],
        None,
    ),
}
ALL = [pytest.param(name, id=name) for name in TASKS]
OF_CELLS = [pytest.param(name, id=name) for name in TASKS if not task_of(name).tags_words]
"""Those whose labels are in single cells; the others are read by `data.tagged` (test_data_tagged)."""


def encoded(name: Task) -> tuple[TrainingTask, Any, int]:
    task, sample = task_of(name), SAMPLES[name]
    if task.tags_words:
        rows = [Tagged((*range(len(row)),), (*range(len(row)),), row) for row in sample.cells]
        return task, task.encode(rows, sample.names), len(sample.names)
    cells = [task.unpacked(cell) for cell in sample.cells]
    task.check_cells(cells)
    labels = [task.label_of(cell, sample.separator) for cell in cells]
    assert None not in labels
    return task, task.encode(labels, sample.names), len(sample.names)  # type: ignore[arg-type]  # none is None


def logits_for(labels: Any, outputs: int) -> Any:
    """Logits that are right of most rows, and of some not."""
    if isinstance(labels, Ragged):
        return labels.with_values(logits_for(labels.values, outputs))
    wide = labels if labels.ndim == 2 else labels[:, None] == np.arange(outputs)
    if labels.dtype == np.float32:
        wide = labels[:, None]
    noise = np.random.default_rng(0).normal(0, 1, wide.shape)
    return (wide.astype(np.float32) * 2 + noise).astype(np.float32)


def test_every_task_has_a_sample() -> None:
    assert SAMPLES.keys() == TASKS.keys()


@pytest.mark.parametrize("name", OF_CELLS)
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
    logits = torch.from_numpy(flat(logits_for(labels, outputs)))
    targets = torch.from_numpy(flat(labels))
    whole = task.loss(logits, targets)
    half = len(targets) // 2
    halves = [task.loss(logits[at], targets[at]) for at in (slice(0, half), slice(half, None))]
    torch.testing.assert_close(whole, torch.stack(halves).mean())
    value = task.value_of_loss(logits_for(labels, outputs), labels)
    assert value == pytest.approx(whole.item(), rel=1e-5)
    priors = torch.from_numpy(task.priors(labels, outputs)).expand(len(targets), -1)
    for shift in (-0.5, 0.5):
        worse = priors + torch.nn.functional.one_hot(torch.tensor(0), outputs) * shift
        assert task.loss(priors, targets) < task.loss(worse, targets)


@pytest.mark.parametrize("name", ALL)
def test_predictions_differ_from_others_alone_and_both_ways_alike(name: Task) -> None:
    task, labels, outputs = encoded(name)
    one = torch.from_numpy(flat(logits_for(labels, outputs)))
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
    values = task.logits_of(shares).astype(np.float32)
    again = labels.with_values(values) if isinstance(labels, Ragged) else values
    np.testing.assert_allclose(task.shares(again), shares, rtol=1e-5)
    one, other = task.predictions(again, None), task.predictions(logits, None)
    np.testing.assert_allclose(flat(one), flat(other), rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_what_is_right_has_the_best_value_of_each_metric(name: Task) -> None:
    task, labels, outputs = encoded(name)
    known = flat(labels)
    wide = known if known.ndim == 2 else known[:, None] == np.arange(outputs)
    values = known[:, None] if name == "Regression" else np.where(wide, 9.0, -9.0)
    right, wrong = values.astype(np.float32), flat(logits_for(labels, outputs))[::-1].copy()
    if isinstance(labels, Ragged):
        right, wrong = (labels.with_values(one) for one in (right, wrong))  # type: ignore[assignment]
    for metric in TASKS[name].metrics:
        if metric != "loss":
            best = task.metric(metric, right, labels, None)
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
        if task.tags_words:
            assert supports == [12, 12], "entities"
        else:
            assert supports == task.counts(labels, outputs).tolist()
    constant = task.constant(labels, outputs)
    assert constant.shape == (outputs,)
    assert len(task.tiled(constant, labels)) == len(labels)
    assert len(task.kind_counts(labels, outputs)) == len(task.kinds(SAMPLES[name].names))
    if task.tags_words:
        return
    predicted = task.predictions(logits, thresholds)[0]
    assert set(task.explained(logits[:1], predicted)) <= set(range(outputs))
    words = np.ravel(task.named(predicted, SAMPLES[name].names)).tolist()
    assert set(words) <= set(SAMPLES[name].names) or not task.has_classes


@pytest.mark.parametrize("name", ALL)
def test_card_of_the_task_is_code_and_sentences(name: Task) -> None:
    task = task_of(name)
    lines = (*task.card_imports, *task.card_answer, *task.card_pipeline)
    compile("\n".join(lines).format(given='"a"', overlap=4), "card", "exec")
    assert task.card_answer or task.card_pipeline
    compile(task.card_answer_together, "card", "exec")
    assert task.purpose.format(count=3, name="size")
    assert task.constant_words
    assert task.card_limit == "" or task.card_limit.endswith(".")


ROOMS_OF_TASKS = ("tasks", "drafts")
"""`drafts` guesses which task data are for, so it has to name them."""


def test_no_room_but_tasks_asks_for_the_name_of_a_task() -> None:
    asking = [
        f"{path.relative_to(ROOMS)}:{number}"
        for path in sorted(ROOMS.rglob("*.py"))
        if path.parent.name not in ROOMS_OF_TASKS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for name in TASKS
        if f'"{name}"' in line
    ]
    assert asking == []


@pytest.mark.parametrize("name", ALL)
def test_what_is_kept_of_batches_in_any_order_has_the_same_metrics(name: Task) -> None:
    task, labels, outputs = encoded(name)
    logits = logits_for(labels, outputs)
    order = np.random.default_rng(1).permutation(len(labels))
    kept = task.kept(torch.from_numpy(flat(logits[order])), torch.from_numpy(flat(labels[order])))
    answers = task.arranged(kept.numpy(), order, labels)
    assert len(answers) == len(labels)
    for metric in TASKS[name].metrics:
        whole = compute_metrics(name, logits, labels, [metric])
        assert compute_metrics(name, answers, labels, [metric]) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_metrics_of_a_slice_are_those_of_its_rows(name: Task) -> None:
    task, labels, outputs = encoded(name)
    logits = logits_for(labels, outputs)
    number = (np.arange(len(labels)) % 3 == 0).astype(np.int64)
    sliced = Slices("third", ("no", "yes"), number)
    metric = TASKS[name].usual_metric
    found = compute_metrics(name, logits, labels, [metric, f"{metric}@worst"], slices=[sliced])
    for value, rows in sliced:
        alone = compute_metrics(name, logits[rows], labels[rows], [metric])
        assert found[f"{metric}@third={value}"] == alone[metric]
    reports = slice_reports(name, logits, labels, [metric], None, [sliced])
    assert [one.metrics[metric] for one in reports] == [
        found[f"{metric}@third=no"],
        found[f"{metric}@third=yes"],
    ]
    assert all(low <= high for low, high in (one.interval or (0, 1) for one in reports))
    assert task.name == name
