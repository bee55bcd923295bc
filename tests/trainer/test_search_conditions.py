"""Constraints over metrics: by how much they are broken, and that what fulfils them comes first everywhere."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.expressions import ExpressionError
from finetune_api.feasibility import UNDEFINED, MetricConstraints, metrics_in
from finetune_api.objective import Objective
from finetune_api.plan import make_plan
from finetune_trainer.errors import SpecError
from finetune_trainer.records import events as ev
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.results import findings, table
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from finetune_trainer.training.run import metric_names
from tests.trainer.search_studies import CONTINUOUS, Driver, epoch_done, replay, study_spec

pytestmark = pytest.mark.in_memory

METRICS = {"f1_macro@gap": 0.08, "loss": 1.5, "accuracy": 0.7}
CONDITION = "metrics.f1_macro >= 0.2"
"""Of the imaginary model: that its accuracy is between 0.276 and 0.724."""

OBJECTIVE = {"metric": "accuracy", "constraints": [CONDITION]}


@pytest.mark.parametrize(
    ("expression", "violation"),
    [
        ("metrics['f1_macro@gap'] <= 0.05", 0.03),
        ('metrics["f1_macro@gap"] <= 0.05', 0.03),
        ("0.5 >= metrics.loss", 1.0),
        ("metrics.loss < 1.0 && metrics['f1_macro@gap'] <= 0.05", 0.53),
        ("metrics.loss < 1.0 && metrics.accuracy > 0.5", 0.5),
        ("metrics.loss < 2.0 && metrics.accuracy > 0.5", 0.0),
        ("metrics.loss - metrics.accuracy * 2.0 <= -0.1", 0.2),
        ("metrics.loss <= (metrics.accuracy < 0.5 ? 2.0 : 1.0)", 0.5),
        ("metrics.loss < 1.0 || metrics.accuracy > 0.9", 1.0),
        ("metrics.loss < 1.0 || metrics.accuracy > 0.6 && metrics.loss < 2.0", 0.0),
        ("!(metrics.loss > 1.0)", 1.0),
        ("metrics.accuracy == 0.7", 0.0),
        ("metrics.accuracy < 0.7", 1e-12),
        ("metrics.f1_micro > 0.5", UNDEFINED),
    ],
)
def test_violation_is_the_difference_of_the_sides(expression: str, violation: float) -> None:
    assert MetricConstraints([expression]).violation(METRICS) == pytest.approx(violation)
    both = MetricConstraints([expression, "metrics.loss <= 1.0"])
    assert both.violation(METRICS) == pytest.approx(violation + 0.5)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("loss < 1.0", "must name only metrics, such as metrics['f1_macro'] (got loss in"),
        ("1.0 < 2.0", "must name a metric"),
        ("metrics.loss <", "must be a CEL expression"),
        ("metrics.loss", "must be true or false"),
        ("metrics.loss + 1.0", "must be true or false"),
        ("metrics.rmse < 1.0", "must name metrics of SingleLabel: accuracy, "),
        ("metrics['loss@best'] < 1.0", "(got loss@best)"),
        ("metrics.loss < 'a'", "must be defined for"),
    ],
)
def test_what_cannot_be_a_condition_is_named_before_anything_runs(
    expression: str, message: str
) -> None:
    spec = study_spec(
        objective={"metric": "accuracy", "constraints": ["metrics.loss < 9.0", expression]},
        validation={"slices": [{"column": "c"}]},
    )
    with pytest.raises(ExpressionError) as planned:
        make_plan(spec)
    with pytest.raises(SpecError) as begun:
        Problem.of(spec)
    for error in (planned.value, begun.value):
        assert error.field == "spec.objective.constraints[1]"
        assert message in error.message


def test_all_that_an_objective_names_is_measured() -> None:
    objective = Objective.model_validate(
        {
            "metric": "accuracy",
            "additionalMetrics": ["f1_micro", "accuracy"],
            "secondary": [{"metric": "f1_macro"}, {"metric": "jaccard@worst"}],
            "earlyStoppingMetric": "matthews",
            "constraints": ["metrics['recall_macro@gap'] < 0.1 && metrics.hamming_loss < 0.5"],
        }
    )
    assert metric_names(objective) == (
        "accuracy", "f1_micro", "f1_macro", "jaccard@worst", "matthews", "recall_macro@gap", "hamming_loss", "loss",
    )  # fmt: skip
    assert metrics_in(["metrics.loss < metrics [ 'loss@gap' ] + metrics . r2"]) == (
        "loss",
        "loss@gap",
        "r2",
    )


def test_the_best_epoch_of_a_trial_is_its_best_that_fulfils_them() -> None:
    events: list[ev.Event] = [
        ev.Proposed(0.0, trial=0, params={"learningRate": 1e-3}),
        ev.Started(0.0, trial=0, slot="slot", to_epoch=9),
        *(epoch_done(0, epoch, value) for epoch, value in enumerate((0.3, 0.6, 0.9, 0.5), 1)),
    ]
    for asked, best in (({"metric": "accuracy"}, 3), (OBJECTIVE, 2)):
        state = replay(study_spec(objective=asked), events)
        found = state.trials[0].best
        assert found is not None
        assert found.epoch == best
    hopeless = {"metric": "accuracy", "constraints": ["metrics.f1_macro >= 0.3"]}
    found = replay(study_spec(objective=hopeless), events).trials[0].best
    assert found is not None
    assert (found.epoch, found.value) == (4, 0.5)  # which comes nearest


STUDIES: dict[str, dict[str, Any]] = {
    "Grid": {"algorithm": "Grid"},
    "QuasiRandom": {"algorithm": "QuasiRandom"},
    "Random": {"algorithm": "Random"},
    "TPE": {"algorithm": "TPE"},
    "GP": {"algorithm": "GP"},
    "Evolution": {"algorithm": "Evolution", "populationSize": 6},
    "CMAES": {"algorithm": "CMAES", "populationSize": 6},
    "PBT": {"algorithm": "PBT", "populationSize": 6, "perturbationInterval": 3},
    "ASHA": {"algorithm": "Random", "scheduler": {"type": "ASHA"}},
    "SuccessiveHalving": {"algorithm": "Random", "scheduler": {"type": "SuccessiveHalving"}},
    "Hyperband": {"algorithm": "TPE", "scheduler": {"type": "Hyperband"}},
    "MedianStop": {"algorithm": "Random", "scheduler": {"type": "MedianStop"}},
    "PASHA": {"algorithm": "Random", "scheduler": {"type": "PASHA"}},
    "Auto": {},
}


@pytest.mark.parametrize("search", STUDIES.values(), ids=STUDIES)
def test_every_search_ends_with_the_best_that_fulfils_them(
    search: dict[str, Any], tmp_path: Path
) -> None:
    spaces = [CONTINUOUS]
    if search.get("algorithm") == "Grid":
        spaces = [{"learningRate": {"values": [1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1]}}]
    spec = study_spec(
        objective=OBJECTIVE,
        searchSpaces=spaces,
        search={**search, "seed": 3},
        budget={"maxTrials": 24},
    )
    driver = Driver(spec, Storage.open(str(tmp_path)), 1)
    driver.run()
    state = driver.state
    best = state.best_trial()
    assert best is not None
    assert best.best is not None
    values = [
        found.value
        for trial in state.trials
        if trial.is_candidate
        for found in trial.evaluations
        if found.metrics["f1_macro"] >= 0.2
    ]
    assert best.best.value == max(values) <= 0.7237
    assert max(found.value for trial in state.trials for found in trial.evaluations) > 0.7237
    assert state.refit_item(best).segments[-1][1] == best.best.epoch
    rows = table(state).to_pylist()
    assert [row["violation"] == 0 for row in rows if row["trial"] == best.number] == [True]
    assert not _warnings(state, spec, tmp_path)


def _warnings(state: StudyState, spec: Any, folder: Path) -> list[str]:
    found = findings(state, spec.budget, Storage.open(str(folder)), 0.0)
    return [text for text in found.warnings if "constraints" in text]


def test_a_target_is_reached_only_by_what_fulfils_them(tmp_path: Path) -> None:
    objective = {**OBJECTIVE, "target": 0.8}
    driver = Driver(study_spec(objective=objective), Storage.open(str(tmp_path / "a")), 1)
    assert driver.run().reason != "TargetReached"
    driver = Driver(
        study_spec(objective={**OBJECTIVE, "target": 0.6}), Storage.open(str(tmp_path / "b")), 1
    )
    assert driver.run().reason == "TargetReached"


def test_a_study_that_no_trial_fulfils_says_so(tmp_path: Path) -> None:
    spec = study_spec(objective={"metric": "accuracy", "constraints": ["metrics.f1_macro >= 0.26"]})
    driver = Driver(spec, Storage.open(str(tmp_path)), 1)
    driver.run()
    (warning,) = _warnings(driver.state, spec, tmp_path)
    best = driver.state.best_trial()
    assert best is not None
    assert warning.startswith(
        f"objective.constraints: no trial fulfils them; the best, trial {best.number}, breaks them by 0.01"
    )


@pytest.mark.parametrize("algorithm", ["TPE", "GP", "CMAES", "Evolution"])
def test_searchers_learn_where_they_are_fulfilled(algorithm: str, tmp_path: Path) -> None:
    """Only learning rates far from the best one fulfil them: a narrow band on either side."""

    def share(name: str) -> float:
        search = {"algorithm": name, "seed": 5, "populationSize": 6}
        conditions = ["metrics.accuracy <= 0.45 && metrics.accuracy >= 0.35"]
        spec = study_spec(
            objective={"metric": "accuracy", "bestOf": "Last", "constraints": conditions},
            search=search,
            budget={"maxTrials": 60},
        )
        driver = Driver(spec, Storage.open(str(tmp_path / name)), 1)
        driver.run()
        late = [trial.best for trial in driver.state.trials[20:] if trial.best is not None]
        return sum(0.35 <= best.value <= 0.45 for best in late) / len(late)

    assert share(algorithm) > share("Random") + 0.15


def test_an_ensemble_has_only_members_that_fulfil_them(tmp_path: Path) -> None:
    spec = study_spec(
        objective={**OBJECTIVE, "bestOf": "Last"},
        ensemble={"size": 10},
        search={"algorithm": "Random", "seed": 3},
    )
    driver = Driver(spec, Storage.open(str(tmp_path)), 1)
    driver.run()
    best = driver.state.best_trial()
    assert best is not None
    members = driver.state.refit_item(best).members
    assert 2 <= len(members) < 10
    problem = driver.state.problem
    for member in members:
        found = driver.state.trials[member.trial].best
        assert found is not None
        assert problem.violation(found.metrics) == 0
        assert 0 <= member.lead < 1
