"""Metrics against formulas of their own, what leaves them undefined, and the report beside them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sk

from finetune_api.metrics import natural_goal
from finetune_api.tasks import TASKS, Task
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.errors import DataError
from finetune_trainer.tasks import task_of
from finetune_trainer.tasks.report import QUANTILES
from finetune_trainer.training import baseline_metrics
from finetune_trainer.training.metrics import compute_metrics
from tests.trainer.conftest import MakeSpec


def logits_of(predicted: list[int], classes: int) -> Any:
    """Logits that predict these classes."""
    return np.eye(classes, dtype=np.float32)[predicted]


def single(seed: int = 0, rows: int = 90) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, 4)).astype(np.float32), generator.integers(0, 4, rows)


def multi(seed: int = 0, rows: int = 90) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, 3)).astype(np.float32), generator.random((rows, 3)) < 0.4


def value(name: str, task: Task, logits: Any, labels: Any) -> float:
    return compute_metrics(task, logits, labels, [name])[name]


# Matthews' coefficient, balanced accuracy, hamming loss.


def test_matthews_of_two_classes_is_that_of_the_four_counts() -> None:
    labels = np.array([1, 1, 1, 1, 0, 0, 0])
    logits = logits_of(
        [1, 1, 1, 0, 0, 0, 1], classes=2
    )  # 3 right and 1 missed, 2 right and 1 wrong
    expected = (3 * 2 - 1 * 1) / math.sqrt((3 + 1) * (3 + 1) * (2 + 1) * (2 + 1))
    assert value("matthews", "SingleLabel", logits, labels) == pytest.approx(expected)


def test_matthews_of_many_classes_is_the_correlation_of_their_indicators() -> None:
    logits, labels = single()
    given, taken = np.eye(4)[labels], np.eye(4)[logits.argmax(axis=1)]

    def covariance(one: Any, other: Any) -> float:
        return float(((one - one.mean(axis=0)) * (other - other.mean(axis=0))).sum())

    expected = covariance(given, taken) / math.sqrt(
        covariance(given, given) * covariance(taken, taken)
    )
    assert value("matthews", "SingleLabel", logits, labels) == pytest.approx(expected)


def test_matthews_of_labels_is_their_mean_correlation() -> None:
    logits, labels = multi()
    each = [np.corrcoef(labels[:, n], logits[:, n] > 0)[0, 1] for n in range(3)]
    assert value("matthews", "MultiLabel", logits, labels) == pytest.approx(np.mean(each))


def test_matthews_is_zero_where_only_one_class_is_predicted() -> None:
    labels = np.array([0, 1, 1, 2])
    assert value("matthews", "SingleLabel", logits_of([1, 1, 1, 1], 3), labels) == 0
    silent = np.full((4, 2), -1, dtype=np.float32)
    some = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=np.bool_)
    assert value("matthews", "MultiLabel", silent, some) == 0
    assert value("balanced_accuracy", "MultiLabel", silent, some) == 0.5


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    logits = logits_of([0, 0, 0, 2, 1, 0], classes=3)  # class 2 is predicted and does not occur
    found = value("balanced_accuracy", "SingleLabel", logits, labels)
    assert found == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_balanced_accuracy_of_labels_is_the_mean_of_both_recalls() -> None:
    logits, labels = multi()
    predicted = logits > 0
    each = [
        (predicted[labels[:, n], n].mean() + (~predicted)[~labels[:, n], n].mean()) / 2
        for n in range(3)
    ]
    found = value("balanced_accuracy", "MultiLabel", logits, labels)
    assert found == pytest.approx(np.mean(each))


def test_hamming_loss_is_the_share_of_wrong_cells() -> None:
    logits, labels = single()
    wrong = 1 - value("accuracy", "SingleLabel", logits, labels)
    assert value("hamming_loss", "SingleLabel", logits, labels) == pytest.approx(wrong)
    logits, labels = multi()
    wrong = ((logits > 0) != labels).mean()
    assert value("hamming_loss", "MultiLabel", logits, labels) == pytest.approx(wrong)
    assert natural_goal("hamming_loss") == "Minimize"


# Average precision.


def average_precision(positive: Any, scores: Any) -> float:
    """The mean, over the positive rows, of the precision down to each; of scores that all differ."""
    ranked = positive[np.argsort(-scores)]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def test_average_precision_is_the_mean_precision_at_the_positive_rows() -> None:
    logits, labels = multi()
    each = [average_precision(labels[:, n], logits[:, n]) for n in range(3)]
    found = value("average_precision", "MultiLabel", logits, labels)
    assert found == pytest.approx(np.mean(each))
    logits, labels = single()
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    each = [average_precision(labels == n, shares[:, n]) for n in range(4)]
    found = value("average_precision", "SingleLabel", logits, labels)
    assert found == pytest.approx(np.mean(each))


def test_rows_with_the_same_score_are_found_together() -> None:
    logits = np.array([[2], [1], [1], [0]], dtype=np.float32).repeat(2, axis=1)
    labels = np.array([[1], [0], [1], [0]], dtype=np.bool_).repeat(2, axis=1)
    # Half of the labels at a precision of 1, the other half at 2 of 3; area 1, or half of a tie.
    found = compute_metrics("MultiLabel", logits, labels, ["average_precision", "roc_auc"])
    assert found["average_precision"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert found["roc_auc"] == pytest.approx((1 + 1 + 1 + 1 / 2) / 4)


# Correlations.


def numbers(seed: int = 0) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    labels = generator.normal(size=60).astype(np.float32)
    return (labels + generator.normal(size=60)).astype(np.float32)[:, None], labels


def test_correlations_are_those_of_scipy() -> None:
    logits, labels = numbers()
    found = compute_metrics("Regression", logits, labels, ["pearson", "spearman"])
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(labels, logits[:, 0]).statistic)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(labels, logits[:, 0]).statistic)


def test_spearman_sees_only_the_order_and_shares_the_rank_of_ties() -> None:
    labels = np.array([1, 2, 3, 4, 5], dtype=np.float32)
    found = compute_metrics("Regression", np.exp(labels)[:, None], labels, ["pearson", "spearman"])
    assert found["spearman"] == pytest.approx(1)
    assert found["pearson"] < 0.95
    tied = np.array([[1], [1], [3], [4], [4]], dtype=np.float32)  # ranks 1.5, 1.5, 3, 4.5, 4.5
    expected = 9 / math.sqrt(10 * 9)  # sums of squares about the mean rank of 3, and of products
    assert value("spearman", "Regression", tied, labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [([0.1, 0.1, 0.1], [1, 2, 3]), ([1, 2, 3], [0.1, 0.1, 0.1]), ([1], [2])],
)
def test_a_constant_correlates_with_nothing(logits: list[float], labels: list[float]) -> None:
    predicted = np.array(logits, dtype=np.float32)[:, None]
    known = np.array(labels, dtype=np.float32)
    names = ["pearson", "spearman", "loss"]
    assert set(compute_metrics("Regression", predicted, known, names)) == {"loss"}


# What leaves a metric undefined.


def test_rows_of_one_class_leave_only_defined_metrics() -> None:
    labels = np.array([1, 1, 1])
    found = compute_metrics(
        "SingleLabel", logits_of([1, 0, 2], 3), labels, TASKS["SingleLabel"].metrics
    )
    undefined = {"matthews", "roc_auc", "average_precision"}
    assert set(TASKS["SingleLabel"].metrics) - set(found) == undefined
    assert found["balanced_accuracy"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["matthews", "balanced_accuracy", "roc_auc", "average_precision"])
def test_means_leave_out_labels_that_all_rows_have_or_none(name: str) -> None:
    logits, labels = multi()
    alone = value(name, "MultiLabel", logits[:, :2], labels[:, :2])
    labels[:, 2] = False
    assert value(name, "MultiLabel", logits, labels) == alone
    labels[:, 2] = True
    assert value(name, "MultiLabel", logits, labels) == alone
    labels[:] = True
    assert compute_metrics("MultiLabel", logits, labels, [name]) == {}


def test_a_single_label_is_not_taken_for_two_classes() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 0], dtype=np.bool_)[:, None]
    logits = np.array([1, 1, -1, 1, -1, -1, -1, -1], dtype=np.float32)[:, None]
    found = compute_metrics("MultiLabel", logits, labels, TASKS["MultiLabel"].metrics)
    assert set(found) == set(TASKS["MultiLabel"].metrics)
    for kind in ("precision", "recall", "f1"):
        for average in ("micro", "macro", "weighted"):
            assert found[f"{kind}_{average}"] == pytest.approx(2 / 3)
    assert found["jaccard"] == found["accuracy"] == 6 / 8


def test_every_metric_of_a_task_can_be_computed_and_is_finite() -> None:
    cases: dict[Task, Any] = {"SingleLabel": single(), "MultiLabel": multi()}
    for task, (logits, labels) in cases.items():
        assert (
            tuple(compute_metrics(task, logits, labels, TASKS[task].metrics)) == TASKS[task].metrics
        )
    assert (
        tuple(compute_metrics("Regression", *numbers(), TASKS["Regression"].metrics))
        == TASKS["Regression"].metrics
    )


PreparePart = Callable[..., PreparedData]


@pytest.fixture
def prepare_part(make_spec: MakeSpec, tmp_path: Path) -> PreparePart:
    """Prepares a study whose validation rows have the given labels."""

    def run(labels: list[str], validation: list[str], **changes: Any) -> PreparedData:
        for name, chosen in (("train", labels), ("validation", validation)):
            lines = [f"word {n},{label}" for n, label in enumerate(chosen)]
            (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
        files = {"train": "train.csv", "validation": "validation.csv", "test": "train.csv"}
        dataset = {"files": files, "labelColumn": "label", **changes.pop("dataset", {})}
        return prepare(make_spec(dataset=dataset, **changes), tmp_path)

    return run


SEPARATED = {"dataset": {"labelSeparator": ";"}, "task": "MultiLabel"}


@pytest.mark.parametrize(
    ("metric", "changes"),
    [
        ("average_precision", {}),
        ("matthews", {}),
        ("matthews", SEPARATED),
        ("balanced_accuracy", SEPARATED),
    ],
)
def test_validation_rows_that_leave_the_objective_undefined_are_refused(
    metric: str, changes: dict[str, Any], prepare_part: PreparePart
) -> None:
    with pytest.raises(DataError, match=f"{metric} must have a label that some") as error:
        prepare_part(list("aabb") * 3, ["a"], objective={"metric": metric}, **changes)
    assert error.value.field == "spec.objective.metric"


def test_one_class_is_enough_for_balanced_accuracy(prepare_part: PreparePart) -> None:
    data = prepare_part(list("aabb") * 3, ["a"], objective={"metric": "balanced_accuracy"})
    assert not [text for text in data.warnings if "balanced_accuracy" in text]


def test_each_mean_over_labels_says_what_it_leaves_out(prepare_part: PreparePart) -> None:
    names = ["matthews", "balanced_accuracy", "average_precision", "hamming_loss"]
    objective = {"metric": "f1_micro", "additionalMetrics": names}
    data = prepare_part(["a", "b", "a;c"] * 4, ["a", "b"], objective=objective, **SEPARATED)
    said = [text.split(" is the mean over 2 of 3 labels")[0] for text in data.warnings]
    assert [name for name in names if name in said] == names[:3]


@pytest.mark.parametrize(
    ("metric", "validation", "what"),
    [
        ("r2", ["1"], "two validation rows"),
        ("pearson", ["2", "2"], "two different labels"),
        ("spearman", ["2"], "two different labels"),
    ],
)
def test_correlations_need_validation_rows_that_differ(
    metric: str, validation: list[str], what: str, prepare_part: PreparePart
) -> None:
    changes = {"task": "Regression", "objective": {"metric": metric}}
    with pytest.raises(DataError, match=rf"{metric} must have at least {what}.* \(got 1\)"):
        prepare_part(list("1234") * 3, validation, **changes)
    assert len(prepare_part(list("1234") * 3, ["2", "3"], **changes).validation) == 2


def test_baselines_have_what_a_constant_has_of_each_metric(
    make_spec: MakeSpec, examples: Path
) -> None:
    data = prepare(make_spec(), examples)
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 2])
    one = replace(
        data, label_names=("a", "b", "c"), labels=labels, train=np.arange(4), test=np.arange(4, 8)
    )
    expected = {
        "matthews": 0.0,
        "balanced_accuracy": 1 / 3,
        "hamming_loss": 3 / 4,
        "average_precision": (1 / 4 + 2 / 4 + 1 / 4) / 3,
    }
    assert baseline_metrics(one, expected) == pytest.approx(expected)
    number = replace(one, task="Regression", labels=labels.astype(np.float32))
    assert set(baseline_metrics(number, ["pearson", "spearman", "mae"])) == {"mae"}


# The report.


def test_report_of_classes_is_that_of_scikit_learn() -> None:
    logits, labels = single(rows=40)
    labels[labels == 3] = 0  # predicted, and never right
    logits[:, 2] = -9  # never predicted
    report = task_of("SingleLabel").report(["a", "b", "ü", "d"], logits, labels, None)
    predicted = logits.argmax(axis=1)
    table = sk.precision_recall_fscore_support(
        labels, predicted, labels=range(4), zero_division=0.0
    )
    assert report.labels is not None
    for n, found in enumerate(report.labels):
        expected = [column[n] for column in table]
        assert [found.precision, found.recall, found.f1, found.support] == pytest.approx(expected)
    assert report.confusion == sk.confusion_matrix(labels, predicted, labels=range(4)).tolist()
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [row["label"] for row in document["labels"]] == ["a", "b", "ü", "d"]
    assert set(document) == {"task", "rows", "labels", "confusion"}
    assert set(document["labels"][0]) == {"label", "precision", "recall", "f1", "support"}


def test_report_of_labels_has_their_thresholds_and_is_that_of_scikit_learn() -> None:
    logits, labels = multi()
    thresholds = np.array([0.5, 0.3, 0.9])
    report = task_of("MultiLabel").report(["x", "y", "z"], logits, labels, thresholds)
    predicted = 1 / (1 + np.exp(-logits)) >= thresholds
    table = sk.precision_recall_fscore_support(labels, predicted, zero_division=0.0)
    matrices = sk.multilabel_confusion_matrix(labels, predicted)
    assert report.labels is not None
    for n, found in enumerate(report.labels):
        expected = [column[n] for column in table]
        assert [found.precision, found.recall, found.f1, found.support] == pytest.approx(expected)
        assert found.threshold == thresholds[n]
        assert found.confusion == matrices[n].tolist()
    assert set(report.to_json()) == {"task", "rows", "labels"}


def test_report_of_numbers_has_the_quantiles_of_what_is_left() -> None:
    labels = np.arange(101, dtype=np.float32)
    logits = np.full((101, 1), 10, dtype=np.float32)
    report = task_of("Regression").report(["arity"], logits, labels, None)
    expected = {f"{at:g}": 100 * at - 10 for at in QUANTILES}
    assert report.residuals == pytest.approx(expected)
    assert set(report.to_json()) == {"task", "rows", "residuals"}
