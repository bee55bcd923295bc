"""Ensembles of the best trials: how outputs are combined, when that is kept, and what becomes of it."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_api.status import Findings
from finetune_api.study import StudySpec
from finetune_api.tasks import Task
from finetune_trainer.artifacts.ensemble import (
    ABOUT,
    MEMBERS,
    EnsembleAbout,
    EnsembleMember,
    ensemble_files,
    load_ensemble,
)
from finetune_trainer.data import PreparedData, prepare
from finetune_trainer.errors import TrialFailure
from finetune_trainer.records import events as ev
from finetune_trainer.search.items import RefitItem
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.results import findings
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from finetune_trainer.tasks import task_of
from finetune_trainer.tasks.thresholds import trial_thresholds
from finetune_trainer.training import Pretrained, TrialRun
from finetune_trainer.training.ensemble import (
    QUANTILES,
    Answers,
    Combination,
    Verdict,
    judge,
    ranks,
)
from finetune_trainer.training.metrics import compute_metrics
from finetune_trainer.training.out_of_fold import metrics_out_of_fold, tuning_folds
from tests.trainer.conftest import MakeSpec
from tests.trainer.data_files import texts_of
from tests.trainer.one_slot import run_study
from tests.trainer.search_studies import Driver, study_spec
from tests.trainer.small_trials import small

pytestmark = pytest.mark.usefixtures("one_thread")


def single(*shares: list[float]) -> Answers:
    """What a model says that gives each row these probabilities of its classes."""
    return Answers(np.log(np.array(shares)).astype(np.float32), None)


def multi(*shares: list[float], thresholds: list[float]) -> Answers:
    known = np.array(shares)
    return Answers(np.log(known / (1 - known)).astype(np.float32), np.array(thresholds))


def combined(
    task: Task, method: Any, members: list[Answers], leads: list[float] | None = None
) -> Answers:
    """What the ensemble says of the rows that its ranks refer to."""
    logits = [member.logits for member in members]
    return Combination.of(task, method, leads or [0.0] * len(members), logits)(members)


def test_mean_is_that_of_the_probabilities_not_of_the_logits() -> None:
    members = [single([0.9, 0.1], [0.3, 0.7]), single([0.5, 0.5], [0.1, 0.9])]
    found = task_of("SingleLabel").shares(combined("SingleLabel", "Mean", members).logits)
    np.testing.assert_allclose(found, [[0.7, 0.3], [0.2, 0.8]], rtol=1e-6)


def test_mean_of_labels_has_the_mean_of_the_thresholds() -> None:
    members = [
        multi([0.9, 0.2], thresholds=[0.5, 0.3]),
        multi([0.4, 0.6], thresholds=[0.7, 0.3]),
    ]
    found = combined("MultiLabel", "Mean", members)
    np.testing.assert_allclose(task_of("MultiLabel").shares(found.logits), [[0.65, 0.4]], rtol=1e-6)
    assert found.thresholds == pytest.approx([0.6, 0.3])


@pytest.mark.parametrize(
    ("leads", "expected"), [([0.3, 0.1, 0.0], 0.75 * 1 + 0.25 * 3), ([0.0, 0.0, 0.0], 4.0)]
)
def test_weights_are_the_leads_or_equal_without_any(leads: list[float], expected: float) -> None:
    members = [Answers(np.array([[n]], dtype=np.float32), None) for n in (1, 3, 8)]
    found = combined("Regression", "Weighted", members, leads)
    np.testing.assert_allclose(found.logits, [[expected]], rtol=1e-6)


def test_certainty_stays_finite() -> None:
    sure = Answers(np.array([[900.0, -900.0]], dtype=np.float32), np.array([0.5, 0.5]))
    for task in ("SingleLabel", "MultiLabel"):
        found = combined(task, "Mean", [sure, sure])
        assert np.isfinite(found.logits).all()
        np.testing.assert_allclose(task_of(task).shares(found.logits), [[1, 0]], atol=1e-12)


def test_ranks_are_places_among_the_reference_rows() -> None:
    reference = np.array([[0.1], [0.2], [0.2], [0.7]])
    asked = np.array([[0.05], [0.1], [0.15], [0.2], [0.7], [0.9]])
    # 4 reference values part (0, 1) into fifths; what is before all of them is half-way to the first.
    expected = [0.1, 0.2, 0.3, 0.5, 0.8, 0.9]
    np.testing.assert_allclose(ranks(asked, reference)[:, 0], expected)
    own = ranks(reference, reference)[:, 0]
    np.testing.assert_allclose(own, rankdata(reference[:, 0]) / 5)


def test_rank_mean_gives_a_timid_model_the_same_say() -> None:
    bold = multi([0.9], [0.8], [0.1], thresholds=[0.5])
    timid = multi([0.02], [0.01], [0.03], thresholds=[0.5])
    found = combined("MultiLabel", "RankMean", [bold, timid])
    # Ranks 3, 2, 1 and 2, 1, 3 of four parts.
    expected = np.array([[5], [3], [4]]) / 8
    np.testing.assert_allclose(task_of("MultiLabel").shares(found.logits), expected, rtol=1e-6)


def test_ranks_of_a_row_do_not_depend_on_the_rows_beside_it() -> None:
    generator = np.random.default_rng(0)
    validation = [generator.normal(size=(3 * QUANTILES, 4)).astype(np.float32) for _ in range(2)]
    combination = Combination.of("SingleLabel", "RankMean", [0.0, 0.0], validation)
    assert combination.references is not None
    assert combination.references[0].shape == (QUANTILES, 4)
    asked = [Answers(logits[:50], None) for logits in validation]
    together = combination(asked).logits
    alone = [
        combination([Answers(one.logits[row : row + 1], None) for one in asked]).logits[0]
        for row in range(50)
    ]
    np.testing.assert_array_equal(together, alone)
    assert task_of("SingleLabel").shares(together).sum(axis=1) == pytest.approx(np.ones(50))


@pytest.mark.parametrize("method", ["Mean", "Weighted", "RankMean"])
def test_a_model_with_itself_predicts_what_it_predicts_alone(method: str) -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(200, 3)).astype(np.float32)
    model = Answers(logits, np.array([0.2, 0.5, 0.8]))
    found = combined("MultiLabel", method, [model, model, model], [0.2, 0.1, 0.0])
    expected = task_of("MultiLabel").predictions(logits, model.thresholds)
    np.testing.assert_array_equal(
        task_of("MultiLabel").predictions(found.logits, found.thresholds), expected
    )
    assert 0 < expected.mean() < 1


# Whether it is kept.


def judged(metric: str, members: list[Answers], labels: list[int], **objective: Any) -> Verdict:
    combination = Combination.of("SingleLabel", "Mean", [0.0] * len(members), [])
    asked = Objective(metric=metric, **objective)
    return judge(combination, members, np.array(labels), asked)


def sure(*shares: float) -> Answers:
    """What a model says that gives each row this probability of class 1."""
    return single(*([1 - share, share] for share in shares))


COMPLEMENTARY = [sure(0.1, 0.6, 0.9, 0.9), sure(0.1, 0.1, 0.4, 0.9)]
"""Of rows of the classes 0, 0, 1, 1 each has one wrong, and is unsure of it."""


def test_two_weak_models_that_complement_each_other_are_kept() -> None:
    assert judged("accuracy", COMPLEMENTARY, [0, 0, 1, 1]) == Verdict(1.0, [0.75, 0.75], 0.75, True)
    by_loss = judged("loss", COMPLEMENTARY, [0, 0, 1, 1])
    assert by_loss.kept
    assert by_loss.value < by_loss.best_single == min(by_loss.singles)


def test_an_ensemble_that_is_worse_or_no_better_is_not_kept() -> None:
    spoilt = judged("accuracy", [sure(0.4, 0.4, 0.6, 0.6), sure(0.9, 0.9, 0.1, 0.1)], [0, 0, 1, 1])
    assert spoilt == Verdict(0.0, [1.0, 0.0], 1.0, False)
    model = COMPLEMENTARY[0]
    for metric in ("accuracy", "loss"):
        same = judged(metric, [model, model], [0, 0, 1, 1])
        assert same.value == pytest.approx(same.best_single)
        assert not same.kept


def test_the_direction_is_that_of_the_goal() -> None:
    found = judged("accuracy", COMPLEMENTARY, [0, 0, 1, 1], goal="Minimize")
    assert (found.value, found.best_single, found.kept) == (1.0, 0.75, False)


def test_no_rows_are_judged_by_thresholds_that_were_tuned_on_them() -> None:
    generator = np.random.default_rng(5)
    labels = generator.random((60, 4)) < 0.15
    logits = [generator.normal(size=(60, 4)).astype(np.float32) for _ in range(3)]
    config = Hyperparameters(threshold_tuning="PerLabel")
    tune = partial(trial_thresholds, config=config, out_of_fold=True)
    members = [Answers(each, tune(each, labels)) for each in logits]
    combination = Combination.of("MultiLabel", "Mean", [0.0] * 3, logits)
    objective, folds = Objective(metric="f1_macro"), tuning_folds(labels, None)
    flattered = judge(combination, members, labels, objective)
    honest = judge(combination, members, labels, objective, folds, [tune] * 3)

    expected = []
    for fold in folds:
        others = np.setdiff1d(np.arange(60), fold)
        tuned = [tune(each[others], labels[others]) for each in logits]
        asked = [Answers(each[fold], own) for each, own in zip(logits, tuned, strict=True)]
        answers = combination(asked)
        expected.append(
            compute_metrics(
                "MultiLabel", answers.logits, labels[fold], ["f1_macro"], answers.thresholds
            )["f1_macro"]
        )
    assert honest.value == pytest.approx(np.mean(expected))
    alone = [
        metrics_out_of_fold("MultiLabel", each, labels, folds, ["f1_macro"], tune)["f1_macro"]
        for each in logits
    ]
    assert honest.singles == pytest.approx(alone)
    assert all(knows > says for knows, says in zip(flattered.singles, honest.singles, strict=True))


def test_an_objective_that_no_fold_has_is_told() -> None:
    labels = np.zeros((10, 2), dtype=np.bool_)
    members = [multi(*[[0.4, 0.6]] * 10, thresholds=[0.5, 0.5])] * 2
    combination = Combination.of("MultiLabel", "Mean", [0.0] * 2, [])
    tune = partial(trial_thresholds, config=Hyperparameters(), out_of_fold=True)
    folds = tuning_folds(labels, None)
    for more in ((), (folds, [tune, tune])):
        with pytest.raises(TrialFailure, match="roc_auc is undefined for members"):
            judge(combination, members, labels, Objective(metric="roc_auc"), *more)


# The members.


def refit_of(folder: Path, **changes: Any) -> tuple[RefitItem, StudyState]:
    """The refit of a study of an imaginary model, and the state in which it is handed out."""
    driver = Driver(study_spec(**changes), Storage.open(str(folder)), 1)
    driver.run()
    item = driver.items[-1]
    assert isinstance(item, RefitItem)
    return item, driver.state


def test_the_members_are_the_best_trials_each_as_if_it_were_the_winner(tmp_path: Path) -> None:
    item, state = refit_of(tmp_path, ensemble={"size": 3})
    best = state.top_trials(3)
    assert [member.trial for member in item.members] == [trial.number for trial in best]
    assert item.members[0].trial == item.trial
    values = [trial.best.value for trial in state.trials if trial.best is not None]
    for member, trial in zip(item.members, best, strict=True):
        assert trial.best is not None
        assert member.lead == pytest.approx(trial.best.value - min(values))
        alone = state.refit_item(trial)
        assert replace(member, lead=0.0) == replace(alone, members=())


def test_members_are_fewer_where_fewer_trials_have_a_value(tmp_path: Path) -> None:
    two, _ = refit_of(tmp_path / "two", ensemble={"size": 5}, budget={"maxTrials": 2})
    assert len(two.members) == 2
    one, _ = refit_of(tmp_path / "one", ensemble={"size": 5}, budget={"maxTrials": 1})
    assert one.members == ()
    none, _ = refit_of(tmp_path / "none")
    assert none.members == ()


def test_steps_of_one_member_of_a_population_are_not_members_beside_each_other(
    tmp_path: Path,
) -> None:
    search = {"algorithm": "PBT", "populationSize": 4, "seed": 7}
    item, state = refit_of(tmp_path, search=search, ensemble={"size": 3})
    places = [state.trials[member.trial].member for member in item.members]
    assert len(set(places)) == 3
    best = [trial.number for trial in state.top_trials(len(state.trials))]
    firsts = [next(n for n in best if state.trials[n].member == place) for place in places]
    assert [member.trial for member in item.members] == firsts


# Whole studies.


@pytest.fixture(scope="module")
def data(make_spec: MakeSpec) -> PreparedData:
    return small(prepare(make_spec(), Path("/")), 32, 16)


EPOCHS = 3
TOP_LAYER = {"freeze": "Layers", "frozenLayers": 5}


def study(make_spec: MakeSpec, rates: list[float], **changes: Any) -> StudySpec:
    """Two poolings by learning rates so high that each trial is sure of its mistakes, and the best three
    together, if they are better."""
    return make_spec(
        objective={"metric": "loss", "additionalMetrics": ["accuracy"], "bestOf": "Last"},
        hyperparameters={"epochs": EPOCHS, "maxLength": 16, "batchSize": 8, **TOP_LAYER},
        searchSpaces=[{"pooling": {"values": ["Mean", "Cls"]}, "learningRate": {"values": rates}}],
        ensemble={"size": 3, "method": "Weighted"},
        **changes,
    )


def told(spec: StudySpec, events: list[ev.Event], folder: Path) -> Findings:
    """What the status says of a study at its end."""
    state = StudyState.replayed(Problem.of(spec), events)
    return findings(state, spec.budget, Storage.open(str(folder)), 0.0)


def only(events: list[ev.Event], kind: type[Any]) -> Any:
    (event,) = (event for event in events if isinstance(event, kind))
    return event


class Asked:
    """Counts how often it is asked, once before each batch, and says yes at some of the times."""

    def __init__(self, *pauses: int) -> None:
        self.times = 0
        self._pauses = pauses

    def __call__(self) -> bool:
        self.times += 1
        return self.times in self._pauses


Ran = tuple[StudySpec, Path, list[ev.Event], Asked]


@pytest.fixture(scope="module")
def kept(make_spec: MakeSpec, data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A study whose trials are about as good as each other, so that they are better together."""
    spec, folder, asked = study(make_spec, [4e-3, 6e-3]), tmp_path_factory.mktemp("kept"), Asked()
    return spec, folder, run_study(spec, data, folder, asked), asked


def test_a_better_ensemble_is_the_final_model(kept: Ran) -> None:
    spec, folder, events, _ = kept
    judged, final = only(events, ev.EnsembleJudged), told(spec, events, folder).final
    assert final is not None
    assert final.ensemble is not None
    assert final.ensemble.kept
    assert final.ensemble.message.startswith("kept: loss ")
    assert final.ensemble.trials == judged.trials
    assert len(set(judged.trials)) == 3
    assert judged.trials[0] == only(events, ev.RefitDone).trial
    assert final.ensemble.value == judged.value < judged.best_single == final.ensemble.best_single
    models = {path.name for path in (folder / "model" / MEMBERS).iterdir()}
    assert models == {str(trial) for trial in judged.trials}
    assert not (folder / "checkpoints").exists()


def test_members_are_trained_as_their_trials_were(kept: Ran) -> None:
    _, folder, events, _ = kept
    found = {event.trial: event.value for event in events if isinstance(event, ev.EpochDone)}
    assert len(found) == 4  # the last value of each
    about = EnsembleAbout.model_validate_json((folder / "model" / ABOUT).read_bytes())
    assert {member.trial: member.value for member in about.members} == {
        member.trial: found[member.trial] for member in about.members
    }
    leads = [max(found.values()) - found[member.trial] for member in about.members]
    assert [member.weight for member in about.members] == pytest.approx(
        np.array(leads) / sum(leads)
    )


@pytest.mark.parametrize("tuning", ["PerLabel", "None"])
def test_members_are_judged_as_the_search_judged_their_trials(
    tuning: str, make_spec: MakeSpec, examples: Path, tmp_path: Path
) -> None:
    tasks = {
        "task": "MultiLabel",
        "dataset": {"files": {"train": "data/parameters.jsonl"}, "labelColumn": "parameters"},
        "objective": {"metric": "f1_macro"},
    }
    spec = make_spec(
        **tasks,
        hyperparameters={"epochs": 1, "maxLength": 16, "thresholdTuning": tuning, **TOP_LAYER},
        searchSpaces=[{"learningRate": {"values": [1e-3, 2e-3]}}],
        ensemble={"size": 2},
    )
    events = run_study(spec, small(prepare(spec, examples), 48, 40), tmp_path)
    judged = only(events, ev.EnsembleJudged)
    values = [event.value for event in events if isinstance(event, ev.EpochDone)]
    assert judged.best_single == pytest.approx(max(values))


def test_the_loaded_ensemble_says_of_the_test_rows_what_was_measured(
    kept: Ran, data: PreparedData
) -> None:
    _, folder, events, _ = kept
    ensemble = load_ensemble(folder / "model")
    assert tuple(ensemble.labels) == data.label_names
    shares = ensemble.predict(texts_of(data, "test"))
    assert shares.sum(axis=1) == pytest.approx(np.ones(len(data.test)))
    labels = data.labels[data.test]
    tested = only(events, ev.RefitDone).test_metrics
    assert tested["loss"] == pytest.approx(-np.log(shares[np.arange(16), labels]).mean(), rel=1e-4)
    assert tested["accuracy"] == (shares.argmax(axis=1) == labels).mean()
    report = json.loads((folder / "results" / "test_report.json").read_text())
    assert sum(map(sum, report["confusion"])) == 16


def test_the_card_of_an_ensemble_tells_how_to_ask_it(kept: Ran, data: PreparedData) -> None:
    _, folder, events, _ = kept
    card = (folder / "model" / "README.md").read_text()
    for trial in only(events, ev.EnsembleJudged).trials:
        (row,) = re.findall(rf"\n\| {trial} \| .* \|", card)
        assert row.endswith(" | 48 |")  # 32 for training and 16 for validation
    code = card.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"."', repr(str(folder / "model"))), names)
    assert names["label"] in data.label_names


def test_an_ensemble_that_is_not_better_leaves_the_winner_alone(
    make_spec: MakeSpec, data: PreparedData, tmp_path: Path
) -> None:
    # Of two trials the worse has no lead: together they are what the winner is alone.
    spec, folder = study(make_spec, [4e-3]), tmp_path / "together"
    events = run_study(spec, data, folder)
    final = told(spec, events, folder).final
    assert final is not None
    assert final.ensemble is not None
    assert not final.ensemble.kept
    assert final.ensemble.message.startswith("not kept: loss ")
    with pytest.raises(FileNotFoundError):
        load_ensemble(folder / "model")

    alone = spec.model_copy(update={"ensemble": None})
    expected = run_study(alone, data, tmp_path / "alone")
    metrics = only(events, ev.RefitDone).test_metrics
    assert metrics == only(expected, ev.RefitDone).test_metrics
    final = told(alone, expected, tmp_path / "alone").final
    assert final is not None
    assert final.ensemble is None
    files = [sorted(p.name for p in (f / "model").iterdir()) for f in (folder, tmp_path / "alone")]
    assert files[0] == files[1]


SEARCH = 7 + 4 * EPOCHS * (4 + 1)
"""Batches of the search: seven of the rows whose frozen part is computed, and each epoch of each trial has four to
train on and one of validation rows."""


@pytest.mark.parametrize(
    "pauses",
    [
        (SEARCH + 3, SEARCH + 17, SEARCH + 32),
        pytest.param((SEARCH + 46, SEARCH + 50, SEARCH + 66), marks=pytest.mark.slow),
    ],
    ids=["before-the-comparison", "after-it"],
)
def test_a_paused_refit_goes_on_without_a_batch_more(
    pauses: tuple[int, ...], kept: Ran, data: PreparedData, tmp_path: Path
) -> None:
    spec, folder, expected, unbroken = kept
    asked = Asked(*pauses)
    events = run_study(spec, data, tmp_path, asked)
    requeued = [event for event in events if isinstance(event, ev.RefitRequeued)]
    assert [event.message for event in requeued] == [""] * len(pauses)
    # Each pause is before a batch, which is asked for once more.
    assert asked.times == unbroken.times + len(pauses)
    assert only(events, ev.RefitDone).test_metrics == only(expected, ev.RefitDone).test_metrics
    names = ("model/" + ABOUT, "results/test_report.json")
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


# Labels by ranks, from the folder.


MULTI: dict[str, Any] = {
    "task": "MultiLabel",
    "dataset": {"files": {"train": "data/parameters.jsonl"}, "labelColumn": "parameters"},
    "objective": {"metric": "f1_macro"},
}


@pytest.fixture(scope="module")
def labelled(make_spec: MakeSpec, examples: Path) -> PreparedData:
    return small(prepare(make_spec(**MULTI), examples), 32, 24)


def trained(pretrained: Pretrained, data: PreparedData, rate: float) -> TrialRun:
    config = Hyperparameters(
        epochs=1,
        batch_size=8,
        max_length=16,
        learning_rate=rate,
        threshold_tuning="PerLabel",
        freeze="Layers",
        frozen_layers=5,
    )
    run = TrialRun(pretrained, data, config, 5, Objective(metric="f1_macro"))
    run.train_to(1)
    return run


def test_an_ensemble_by_ranks_is_loaded_with_what_its_ranks_refer_to(
    labelled: PreparedData, tmp_path: Path
) -> None:
    data = labelled
    pretrained = Pretrained.load(data.model, data.task, data.label_names)
    runs = [trained(pretrained, data, rate) for rate in (2e-3, 4e-3)]
    known = [Answers(run.predict(data.validation), run.thresholds) for run in runs]
    logits = [answers.logits for answers in known]
    combination = Combination.of("MultiLabel", "RankMean", [0.0, 0.0], logits)
    expected = combination([Answers(run.predict(data.test), run.thresholds) for run in runs])
    assert expected.thresholds is not None
    members = [
        EnsembleMember(trial=n, weight=0.5, value=0.5, pooling="Architecture") for n in range(2)
    ]
    about = EnsembleAbout(
        task="MultiLabel",
        method="RankMean",
        labels=list(data.label_names),
        members=members,
        metric="f1_macro",
        value=0.6,
        thresholds=expected.thresholds.tolist(),
    )
    for number, run in enumerate(runs):
        (tmp_path / MEMBERS / str(number)).mkdir(parents=True)
        run.export(tmp_path / MEMBERS / str(number))
    for name, content in ensemble_files(about, combination).items():
        (tmp_path / name).write_bytes(content)

    ensemble, texts = load_ensemble(tmp_path), texts_of(data, "test")
    shares = ensemble.predict(texts)
    np.testing.assert_allclose(shares, task_of("MultiLabel").shares(expected.logits), atol=0.05)
    alone = np.concatenate([ensemble.predict([text]) for text in texts])
    np.testing.assert_allclose(shares, alone, atol=0.05)
    assert ensemble.thresholds is not None
    chosen = shares >= ensemble.thresholds
    found = compute_metrics(
        "MultiLabel", expected.logits, data.labels[data.test], ["accuracy"], expected.thresholds
    )
    assert (chosen == data.labels[data.test]).all(axis=1).mean() == pytest.approx(found["accuracy"])
    assert 0 < chosen.mean() < 1


def test_members_that_tag_words_answer_together_word_by_word(
    make_spec: MakeSpec, shallow: Path, examples: Path, tmp_path: Path
) -> None:
    lines = (examples / "data" / "names.jsonl").read_text().splitlines(keepends=True)
    for part, rows in (
        ("train", lines[:60]),
        ("validation", lines[60:90]),
        ("test", lines[90:120]),
    ):
        (tmp_path / f"{part}.jsonl").write_text("".join(rows))
    spec = make_spec(
        task="TokenClassification",
        model={"name": str(shallow)},
        dataset={
            "files": {part: f"{part}.jsonl" for part in ("train", "validation", "test")},
            "labelColumn": None,
            "spansColumn": "names",
        },
        objective={"metric": "loss", "additionalMetrics": ["f1_micro"]},
        hyperparameters={"epochs": 3, "maxLength": 24, "batchSize": 8},
        searchSpaces=[{"learningRate": {"values": [2e-3, 3e-3]}}],
        search={"algorithm": "Grid", "defaults": False},
        ensemble={"size": 2},
    )
    data = prepare(spec, tmp_path)
    folder = tmp_path / "study"
    events = run_study(spec, data, folder)
    judged = only(events, ev.EnsembleJudged)
    assert judged.kept, "with these rows two are better than one"
    tested = only(events, ev.RefitDone).test_metrics
    assert tested["f1_micro"] > 0.1

    ensemble = load_ensemble(folder / "model")
    asked = [json.loads(line) for line in lines[90:120]]
    found = ensemble.entities([row["text"] for row in asked])
    right, chosen, there = 0, 0, 0
    for row, entities in zip(asked, found, strict=True):
        known = {(one["start"], one["end"], one["label"]) for one in row["names"]}
        said = {(one.start, one.end, one.label) for one in entities}
        right, chosen, there = right + len(known & said), chosen + len(said), there + len(known)
        assert all(row["text"][one.start : one.end] == one.text for one in entities)
    assert 2 * right / (chosen + there) == pytest.approx(tested["f1_micro"])
    assert ensemble.entities(["", "  ", "no"])[:2] == [[], []]
    with pytest.raises(TypeError, match="entities"):
        ensemble.predict(["no"])

    card = (folder / "model" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace('"."', repr(str(folder / "model"))), names)
    assert isinstance(names["entities"][0], list)
