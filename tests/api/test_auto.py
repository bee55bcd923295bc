"""`search: {}`: what Auto stands for is a valid search without Auto, and trains something whole."""

import math
from typing import Any

import pytest

from finetune_api.auto import described, restored, settled
from finetune_api.expressions import ExpressionError
from finetune_api.manifest import ManifestError, parse_study
from finetune_api.plan import make_plan
from finetune_api.rungs import rung_resources
from finetune_api.search import Search
from finetune_api.study import StudySpec
from tests.cluster.random_manifests import random_manifest

SPACE: dict[str, Any] = {"learningRate": {"min": 1e-5, "max": 1e-3, "scale": "Log"}}
FINITE: dict[str, Any] = {
    "learningRate": {"values": [1e-5, 1e-4, 1e-3]},
    "batchSize": {"values": [8, 16]},
}


def study(**changes: Any) -> StudySpec:
    """A study that leaves its search to be chosen."""
    return StudySpec.model_validate(
        {
            "task": "SingleLabel",
            "model": {"name": "bert-base-uncased"},
            "dataset": {"files": {"train": "a.csv"}, "textColumns": ["t"], "labelColumn": "l"},
            "objective": {"metric": "accuracy"},
            "hyperparameters": {"epochs": 27},
            "searchSpaces": [SPACE],
            "search": {},
            "budget": {"maxTrials": 20},
            **changes,
        }
    )


def choice(**changes: Any) -> tuple[str, str, float | None]:
    """Algorithm, scheduler and first rung that are chosen."""
    found = described(settled(study(**changes)).search)
    return found.algorithm, found.scheduler, found.min_resource


@pytest.mark.parametrize(
    ("trials", "epochs", "scheduler", "first"),
    [
        (5, 27, "None", None),  # a rung would leave one
        (6, 27, "ASHA", 9),
        (17, 27, "ASHA", 9),
        (18, 27, "ASHA", 3),
        (20, 52, "ASHA", 6),
        (54, 27, "ASHA", 1),
        (200, 27, "ASHA", 1),
        (20, 3, "ASHA", 1),
        (20, 2, "ASHA", 1),
        (20, 1, "None", None),
        (6, 10, "ASHA", 4),
    ],
)
def test_the_first_rung_follows_from_trials_and_epochs(
    trials: int, epochs: int, scheduler: str, first: float | None
) -> None:
    found = choice(budget={"maxTrials": trials}, hyperparameters={"epochs": epochs})
    assert found == ("GP", scheduler, first)


@pytest.mark.parametrize("factor", [2, 3, 4, 9])
def test_at_least_two_trials_are_trained_whole_whatever_the_budget(factor: int) -> None:
    search = {"scheduler": {"reductionFactor": factor}}
    for trials in (*range(1, 20), 32, 54, 100, 200):  # with more, the lowest rung is minResource
        for epochs in (1, 2, 3, 4, 5, 7, 9, 10, 20, 23, 27, 52, 54, 100):
            fixed = {"hyperparameters": {"epochs": epochs}, "budget": {"maxTrials": trials}}
            plan = make_plan(study(search=search, **fixed))
            assert plan.whole_trials is not None
            assert plan.whole_trials >= min(trials, 2), (trials, epochs, plan)


def test_the_model_learns_at_a_rung_that_many_trials_reach() -> None:
    for trials in (18, 20, 60, 100, 200):
        for epochs in range(9, 101):
            spec = study(hyperparameters={"epochs": epochs}, budget={"maxTrials": trials})
            chosen = settled(spec).search.scheduler
            rungs = rung_resources(chosen, epochs)
            deep = [rung for rung in rungs if rung >= epochs / 9]
            assert len(rungs) - len(deep) <= max(0, math.floor(math.log(trials / 2, 3)) - 2)


def test_dropouts_may_be_constrained() -> None:
    space = {**SPACE, "hiddenDropout": {"min": 0.0, "max": 0.3}}
    assert choice(searchSpaces=[space], search={"constraints": ["hiddenDropout < 0.2"]})[0] == "GP"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"budget": {"maxTrials": 201}}, ("TPE", "Hyperband", 1)),
        ({"budget": {"maxDurationSeconds": 60}}, ("GP", "ASHA", 1)),
        ({"budget": {"maxDurationSeconds": 60}, "searchSpaces": [FINITE]}, ("GP", "ASHA", 9)),
        ({"searchSpaces": [SPACE, FINITE]}, ("TPE", "Hyperband", 3)),
        (
            {"searchSpaces": [{**SPACE, "optimizer": {"values": ["AdamW", "SGD"]},
                               "momentum": {"min": 0.5, "max": 0.9, "when": {"optimizer": ["SGD"]}}}]},
            ("TPE", "Hyperband", 3),
        ),
        ({"searchSpaces": [FINITE], "search": {"constraints": ["batchSize < 16"]}}, ("GP", "None", None)),
        ({"hyperparameters": None, "searchSpaces": [{**SPACE, "epochs": {"values": [2, 3]}}]}, ("GP", "None", None)),
        ({"objective": {"metric": "accuracy", "secondary": [{"metric": "loss"}]}}, ("TPE", "None", None)),
        ({"search": {"scheduler": {"type": "ASHA"}}}, ("GP", "ASHA", 1)),
        ({"search": {"scheduler": {"type": "None"}}}, ("GP", "None", None)),
        ({"search": {"scheduler": {"minResource": 4}}}, ("GP", "ASHA", 4)),
        ({"search": {"scheduler": {"resource": "Samples", "minResource": 100}}}, ("GP", "ASHA", 100)),
        ({"search": {"scheduler": {"resource": "Seconds", "minResource": 60}}}, ("GP", "ASHA", 60)),
        (
            {"validation": {"crossValidation": {"folds": 5}}, "search": {"scheduler": {"resource": "Folds"}}},
            ("GP", "ASHA", 1),
        ),
        ({"search": {"algorithm": "Random"}}, ("Random", "None", None)),
        ({"search": {"algorithm": "GP", "scheduler": {"type": "Auto"}}}, ("GP", "None", None)),
    ],
)  # fmt: skip
def test_what_is_said_is_kept_and_the_rest_is_chosen(
    changes: dict[str, Any], expected: tuple[str, str, float | None]
) -> None:
    assert choice(**changes) == expected


def test_what_is_chosen_is_valid_and_comes_back_from_the_record() -> None:
    tried = 0
    for seed in range(500):
        manifest = random_manifest(seed)
        if seed % 3 == 2:
            continue
        search = manifest["spec"]["search"]
        search["algorithm"] = "Auto"
        manifest["spec"]["budget"] = {
            **manifest["spec"].get("budget", {}),
            "maxTrials": 1 + seed % 90,
        }
        try:
            spec = parse_study(manifest).spec
            chosen = settled(spec)
        except (ManifestError, ExpressionError):
            continue
        again = StudySpec.model_validate(chosen.to_json())
        assert again.search == chosen.search
        assert "Auto" not in (chosen.search.algorithm, chosen.search.scheduler.type)
        assert restored(spec.search, described(chosen.search)) == chosen.search
        tried += 1
    assert tried > 60


def test_a_record_decides_whatever_the_budget_is_now() -> None:
    begun = described(settled(study(budget={"maxTrials": 6})).search)
    now = study(budget={"maxTrials": 1000})
    assert settled(now, begun).search == settled(study(budget={"maxTrials": 6})).search
    plan = make_plan(now, choice=begun)
    assert plan.search == begun
    assert [rung.resource for rung in plan.rungs] == [9, 27]


def test_a_search_with_an_algorithm_of_its_own_is_as_before() -> None:
    assert Search.model_validate({"algorithm": "TPE"}).scheduler.type == "None"
    named = study(search={"algorithm": "TPE"})
    assert settled(named) is named
    assert math.isclose(named.search.scheduler.min_resource, 1)


def test_a_search_that_is_left_out_is_chosen_too() -> None:
    document = study().to_json()
    del document["search"]
    assert StudySpec.model_validate(document) == study()
