"""From which probability on labels are predicted: fixed, tuned, and carried from the search to the final model."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as sk

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_api.study import StudySpec
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.records import events as ev
from finetune_trainer.tasks.thresholds import best_thresholds, probabilities, tuned_thresholds
from finetune_trainer.training import EpochResult, Pretrained, TrialRun
from finetune_trainer.training.metrics import compute_metrics
from finetune_trainer.training.out_of_fold import FOLDS, metrics_out_of_fold, tuning_folds
from tests.trainer.conftest import MakeSpec
from tests.trainer.one_slot import run_study
from tests.trainer.search_studies import replay, study_spec
from tests.trainer.small_trials import small

pytestmark = pytest.mark.usefixtures("one_thread")


def logits_of(shares: list[float]) -> Any:
    """Logits (rows, 1) with these probabilities."""
    known = np.array(shares)[:, None]
    return np.log(known / (1 - known)).astype(np.float32)


def tuned(shares: list[float], having: list[int], usual: float) -> float:
    found = best_thresholds(logits_of(shares), np.array(having, dtype=np.bool_)[:, None], usual)
    return float(found[0])


def f1(labels: Any, chosen: Any) -> float:
    """The harmonic mean of precision and recall; some row must have the label."""
    found = float((labels & chosen).sum())
    if not found:
        return 0.0
    precision, recall = found / chosen.sum(), found / labels.sum()
    return float(2 / (1 / precision + 1 / recall))


SCORES = st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]) | st.floats(-120, 120, width=32)
"""Some often the same, some so large that their probabilities are."""


@settings(deadline=None)
@given(data=st.data(), rows=st.integers(1, 12), usual=st.floats(0.01, 0.99))
def test_no_threshold_has_a_better_f1_than_the_best_one(
    data: st.DataObject, rows: int, usual: float
) -> None:
    logits = data.draw(arrays.arrays(np.float32, (rows, 2), elements=SCORES))
    labels = data.draw(arrays.arrays(np.bool_, (rows, 2)))
    found = best_thresholds(logits, labels, usual)
    shares = probabilities(logits)
    for n in range(2):
        if not labels[:, n].any():
            assert found[n] == usual
            continue
        possible = [
            *shares[:, n],
            usual,
        ]  # whatever else is chosen chooses the same rows as one of these
        best = max(f1(labels[:, n], shares[:, n] >= at) for at in possible)
        assert f1(labels[:, n], shares[:, n] >= found[n]) == pytest.approx(best)


def test_of_equally_good_thresholds_the_one_nearest_to_the_decision_threshold_is_taken() -> None:
    shares = [0.8, 0.6, 0.4, 0.2]
    # F1 is 2/3 for the first row alone (from 0.7 on) and for all rows (from 0.1 on), and less between.
    assert tuned(shares, [1, 0, 0, 1], usual=0.45) == pytest.approx(0.7)
    assert tuned(shares, [1, 0, 0, 1], usual=0.35) == pytest.approx(0.1)
    assert tuned(shares, [1, 0, 0, 1], usual=0.65) == 0.65
    assert tuned(shares, [1, 1, 0, 0], usual=0.9) == pytest.approx(0.5)
    assert tuned(shares, [0, 0, 0, 0], usual=0.9) == 0.9


def test_rows_of_the_same_probability_are_not_parted() -> None:
    assert tuned([0.8, 0.4, 0.4, 0.2], [1, 1, 0, 0], usual=0.9) == pytest.approx(0.3)


def test_the_threshold_of_a_rare_label_leans_on_the_common_one() -> None:
    generator = np.random.default_rng(0)
    rows = 2000
    labels = generator.random((rows, 3)) < [0.3, 0.3, 0.002]
    logits = (generator.normal(size=(rows, 3)) + 2 * labels - 1).astype(np.float32)
    own, found = best_thresholds(logits, labels, 0.5), tuned_thresholds(logits, labels, 0.5)
    assert found[:2] == pytest.approx(own[:2], abs=0.02)
    assert labels[:, 2].sum() < 10
    assert abs(found[2] - found[:2].mean()) < abs(own[2] - found[:2].mean()) / 2
    nothing = np.zeros((4, 3), dtype=np.bool_)
    assert tuned_thresholds(logits[:4], nothing, 0.3).tolist() == pytest.approx([0.3] * 3)


Scored = tuple[Any, Any]


def scored(generator: np.random.Generator, rows: int, share: float, signal: float) -> Scored:
    """Logits (rows, 20) that know nothing, or `signal`, of labels of which each is in a `share` of the rows."""
    labels = generator.random((rows, 20)) < share
    noise = generator.normal(size=labels.shape)
    return (np.log(share) + 0.7 * noise + signal * labels).astype(np.float32), labels


@pytest.mark.parametrize(("positives", "most"), [(15, 0.01), (100, 0.005)])
@pytest.mark.parametrize("signal", [0.0, 1.0])
def test_what_is_told_of_tuned_thresholds_is_no_better_than_on_rows_of_tomorrow(
    positives: int, most: float, signal: float
) -> None:
    generator, lead, in_sample = np.random.default_rng(0), [], []
    for _ in range(8):
        logits, labels = scored(generator, 1000, positives / 1000, signal)
        fresh, known = scored(generator, 20_000, positives / 1000, signal)

        def tune(logits: Any, labels: Any) -> Any:
            return tuned_thresholds(logits, labels, 0.5)

        found = tune(logits, labels)
        folds = tuning_folds(labels, None)
        told = metrics_out_of_fold("MultiLabel", logits, labels, folds, ["f1_macro"], tune)[
            "f1_macro"
        ]
        of = partial(compute_metrics, "MultiLabel", names=["f1_macro"], thresholds=found)
        tomorrow = of(logits=fresh, labels=known)["f1_macro"]
        lead.append(told - tomorrow)
        in_sample.append(of(logits=logits, labels=labels)["f1_macro"] - tomorrow)
    assert np.mean(lead) <= most
    assert np.mean(in_sample) > np.mean(lead)


def test_folds_have_each_row_once_whole_groups_and_labels_alike() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random((200, 4)) < [0.5, 0.2, 0.1, 0.05]
    folds = tuning_folds(labels, None)
    assert sorted(np.concatenate(folds).tolist()) == list(range(200))
    for counts in np.array([labels[fold].sum(axis=0) for fold in folds]).T:
        assert counts.max() - counts.min() <= 2
    again = tuning_folds(labels, None)
    assert all(np.array_equal(one, other) for one, other in zip(folds, again, strict=True))
    groups = np.arange(200) // 7
    of_group = [set(groups[fold]) for fold in tuning_folds(labels, groups)]
    assert len(of_group) == FOLDS
    assert sum(map(len, of_group)) == len(set(groups))
    assert len(tuning_folds(labels, np.arange(200) // 100)) == 2
    assert tuning_folds(labels[:1], None) == tuning_folds(labels, np.zeros(200, dtype=int)) == []


def test_metrics_take_the_threshold_of_each_label_and_ranking_metrics_none() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(60, 3)).astype(np.float32)
    labels = generator.random((60, 3)) < 0.4
    thresholds = np.array([0.2, 0.5, 0.8])
    names = ["f1_macro", "jaccard", "matthews", "loss", "roc_auc", "average_precision"]
    usual = compute_metrics("MultiLabel", logits, labels, names)
    found = compute_metrics("MultiLabel", logits, labels, names, thresholds)
    predicted = torch.from_numpy(logits).sigmoid().numpy() >= thresholds
    assert found["f1_macro"] == sk.f1_score(labels, predicted, average="macro")
    changed = {name for name in names if found[name] != usual[name]}
    assert changed == {"f1_macro", "jaccard", "matthews"}
    assert compute_metrics("MultiLabel", logits, labels, names, np.full(3, 0.5)) == usual


MULTI: dict[str, Any] = {
    "task": "MultiLabel",
    "dataset": {"files": {"train": "data/parameters.jsonl"}, "labelColumn": "parameters"},
    "objective": {"metric": "f1_macro", "additionalMetrics": ["recall_micro"]},
}
OBJECTIVE = Objective(metric="f1_macro", additional_metrics=["recall_micro"])
CONFIG = Hyperparameters(epochs=1, batch_size=8, max_length=16, learning_rate=4e-4)


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec, examples: Path) -> PreparedData:
    return small(prepare(make_spec(**MULTI), examples), 48, 24)


@pytest.fixture(scope="module")
def pretrained(data: PreparedData) -> Pretrained:
    return Pretrained.load(data.model, data.task, data.label_names)


def trained(
    pretrained: Pretrained, data: PreparedData, out_of_fold: bool = False, **changes: Any
) -> tuple[TrialRun, Any]:
    """A run of one epoch, always the same but for the `changes`, and what it showed."""
    config = CONFIG.model_copy(update=changes)
    run = TrialRun(pretrained, data, config, 5, OBJECTIVE, out_of_fold=out_of_fold)
    return run, run.train_to(1)


@pytest.fixture(scope="module")
def usual(pretrained: Pretrained, data: PreparedData) -> EpochResult:
    """What the epoch showed with a threshold of one half."""
    result: EpochResult = trained(pretrained, data)[1]
    return result


def test_a_lower_decision_threshold_finds_more(
    usual: EpochResult, pretrained: Pretrained, data: PreparedData
) -> None:
    run, low = trained(pretrained, data, decision_threshold=0.1)
    assert low.metrics["recall_micro"] > usual.metrics["recall_micro"]
    assert low.metrics["loss"] == usual.metrics["loss"]
    labels, logits = data.labels[data.test], run.predict(data.test)
    chosen = torch.from_numpy(logits).sigmoid().numpy() >= 0.1
    recall = sk.recall_score(labels, chosen, average="micro")
    assert run.evaluate("test")["recall_micro"] == recall
    assert low.thresholds is None  # nothing was tuned


def test_tuned_thresholds_have_a_better_f1_and_hold_for_the_test_rows(
    usual: EpochResult, pretrained: Pretrained, data: PreparedData
) -> None:
    run, result = trained(pretrained, data, out_of_fold=True, threshold_tuning="PerLabel")
    before = trained(pretrained, data, threshold_tuning="PerLabel")[1]
    plain = trained(pretrained, data, out_of_fold=True)[1]
    assert before.metrics["f1_macro"] > result.metrics["f1_macro"] > plain.metrics["f1_macro"]
    assert plain.metrics == result.metrics | {
        name: plain.metrics[name] for name in ("f1_macro", "recall_micro")
    }
    assert result.metrics["loss"] == pytest.approx(usual.metrics["loss"], rel=0.05)  # folds differ
    logits, known = run.predict(data.validation), data.labels[data.validation]
    assert before.thresholds == best_thresholds(logits, known, 0.5).tolist()
    assert result.thresholds == tuned_thresholds(logits, known, 0.5).tolist()
    assert len(set(result.thresholds)) > 1
    chosen = probabilities(run.predict(data.test)) >= np.array(result.thresholds)
    macro = sk.f1_score(data.labels[data.test], chosen, average="macro", zero_division=0.0)
    assert run.evaluate("test")["f1_macro"] == macro


def test_other_tasks_have_no_thresholds(make_spec: MakeSpec, examples: Path) -> None:
    data = small(prepare(make_spec(), examples), 8, 8)
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    objective = Objective(metric="f1_macro")
    config = CONFIG.model_copy(update={"threshold_tuning": "PerLabel"})
    run = TrialRun(pretrained, data, config, 5, objective)
    result = run.train_to(1)
    assert result is not None
    assert run.thresholds is None
    assert result.thresholds is None


# From the search to the final model.


def test_the_refit_has_the_thresholds_of_the_best_epoch() -> None:
    def done(epoch: int, value: float, thresholds: list[float], run: int = 0) -> ev.Event:
        return ev.EpochDone(
            0.0,
            trial=0,
            epoch=epoch,
            value=value,
            metrics={},
            train_loss=0.1,
            seconds=1.0,
            gpu_seconds=0.0,
            run=run,
            thresholds=thresholds,
        )

    begun = [ev.TermStarted(0.0, term=1), ev.Proposed(0.0, trial=0, params={"learningRate": 1e-3})]
    one = replay(
        study_spec(),
        [
            *begun,
            ev.Started(0.0, trial=0, slot="slot", to_epoch=9),
            done(1, 0.9, [0.3, 0.4]),
            done(2, 0.5, [0.7, 0.8]),
        ],
    )
    assert one.refit_item(one.trials[0]).thresholds == [0.3, 0.4]
    folds = replay(
        study_spec(validation={"crossValidation": {"folds": 2}}),
        [
            *begun,
            *(ev.Started(0.0, trial=0, slot="slot", to_epoch=9, run=run) for run in range(2)),
            *(done(1, 0.9, [0.2 + run / 2, 0.5], run) for run in range(2)),
        ],
    )
    assert folds.refit_item(folds.trials[0]).thresholds == pytest.approx([0.45, 0.5])


def predicted_by_a_user(folder: Path, data: PreparedData) -> Any:
    """The labels that the exported model, its tokenizer and its thresholds predict for the test rows."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    thresholds = json.loads((folder / "thresholds.json").read_text())
    texts = [tokenizer.decode(data.columns[0][row]) for row in data.test]
    inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        shares = model(**inputs).logits.sigmoid().numpy()
    names = [model.config.id2label[n] for n in range(shares.shape[1])]
    return shares >= np.array([thresholds[name] for name in names])


def test_a_study_carries_tuned_thresholds_to_test_report_and_model(
    make_spec: MakeSpec, data: PreparedData, tmp_path: Path
) -> None:
    spec: StudySpec = make_spec(
        **MULTI,
        hyperparameters={
            "epochs": 1, "maxLength": 16, "batchSize": 8, "thresholdTuning": "PerLabel", "decisionThreshold": 0.4,
        },
        searchSpaces=[{"learningRate": {"values": [4e-4]}}],
        validation={"crossValidation": {"folds": 2}},
    )  # fmt: skip
    events = run_study(spec, data, tmp_path)
    each: list[Any] = [event.thresholds for event in events if isinstance(event, ev.EpochDone)]
    expected = np.mean(each, axis=0)
    assert expected.shape == (len(data.label_names),)
    assert set(expected) != {0.4}

    thresholds = json.loads((tmp_path / "model" / "thresholds.json").read_text())
    assert thresholds == pytest.approx(dict(zip(data.label_names, expected, strict=True)))
    report = json.loads((tmp_path / "results" / "test_report.json").read_text())
    assert {row["label"]: row["threshold"] for row in report["labels"]} == thresholds
    (refit,) = (event for event in events if isinstance(event, ev.RefitDone))
    chosen = predicted_by_a_user(tmp_path / "model", data)
    of_labels = sk.f1_score(data.labels[data.test], chosen, average=None, zero_division=0.0)
    assert [row["f1"] for row in report["labels"]] == pytest.approx(of_labels)
    assert refit.test_metrics["f1_macro"] == pytest.approx(of_labels.mean())
