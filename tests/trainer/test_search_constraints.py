"""Constraints: CEL over hyperparameters, refused with their field where they cannot be evaluated."""

from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from finetune_api.constraints import Constraints
from finetune_api.expressions import ExpressionError
from finetune_api.plan import make_plan
from finetune_trainer.errors import SpecError
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.proposals import Proposer
from finetune_trainer.storage.folder import Storage
from tests.trainer.search_studies import CONTINUOUS, Driver, study_spec

pytestmark = pytest.mark.in_memory

GRID = {"batchSize": {"values": [8, 16, 32]}, "gradientAccumulation": {"values": [1, 2, 4]}}


def proposer(*constraints: str, algorithm: str = "Grid", **changes: Any) -> Proposer:
    search = {"algorithm": algorithm, "constraints": list(constraints)}
    return Proposer(Problem.of(study_spec(**{"searchSpaces": [GRID], "search": search, **changes})))


def proposed(source: Proposer) -> list[tuple[Any, Any]]:
    found = []
    while (proposal := source.propose()) is not None:
        found.append((proposal.params["batchSize"], proposal.params["gradientAccumulation"]))
        source.record(proposal.params)
    return found


def test_grid_leaves_out_what_a_constraint_excludes_and_the_plan_counts_the_rest() -> None:
    constraint = "batchSize * gradientAccumulation <= 32"
    expected = [(8, 1), (8, 2), (8, 4), (16, 1), (16, 2), (32, 1)]
    assert proposed(proposer(constraint)) == expected
    search = {"algorithm": "Grid", "constraints": [constraint]}
    spec = study_spec(searchSpaces=[GRID], search=search, budget={})
    assert make_plan(spec).trials == len(expected)


def test_constraints_go_from_process_to_process() -> None:
    """The driver checks them, the broker in another process proposes by them."""
    problem = Problem.of(
        study_spec(
            searchSpaces=[GRID],
            search={"algorithm": "Grid", "constraints": ["batchSize * gradientAccumulation <= 16"]},
        )
    )
    Proposer(problem).check()
    after = Proposer(cloudpickle.loads(cloudpickle.dumps(problem)))
    assert proposed(after) == [(8, 1), (8, 2), (16, 1)]


def test_all_constraints_must_hold() -> None:
    assert proposed(proposer("batchSize > 8", "gradientAccumulation == 4")) == [(16, 4), (32, 4)]


def test_fixed_values_and_defaults_count() -> None:
    fixed: dict[str, Any] = {"hyperparameters": {"epochs": 9, "maxLength": 64}}
    assert len(proposed(proposer("maxLength * batchSize <= 1024", **fixed))) == 6
    assert len(proposed(proposer("optimizer == 'AdamW'"))) == 9


def test_a_hyperparameter_that_is_not_active_has_its_default() -> None:
    space = {
        "optimizer": {"values": ["AdamW", "SGD"]},
        "momentum": {"values": [0.5, 0.9], "when": {"optimizer": ["SGD"]}},
    }
    default = Problem.of(study_spec()).defaults["momentum"]
    source = proposer(f"momentum in [0.9, {default!r}]", searchSpaces=[space])
    found = []
    while (proposal := source.propose()) is not None:
        found.append(proposal.params)
        source.record(proposal.params)
    assert found == [{"optimizer": "AdamW"}, {"optimizer": "SGD", "momentum": 0.9}]


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ("batchSize <", "must be a CEL expression"),
        ("batch <= 8", "must name only hyperparameters (got batch in 'batch <= 8')"),
        ("batchSize * 2", "must be true or false (got 16 of 'batchSize * 2')"),
        ("batchSize / 0 > 1", "must be defined for {'batchSize': 8}"),
        ("optimizer > 3", "must be defined for {'optimizer': 'AdamW'}"),
    ],
)
def test_what_has_no_answer_is_refused_with_its_field(constraint: str, reason: str) -> None:
    with pytest.raises(SpecError) as error:
        proposer("batchSize > 0", constraint).check()
    assert str(error.value).startswith("spec.search.constraints[1]: ")
    assert reason in str(error.value)


@pytest.mark.parametrize("algorithm", ["Grid", "Random", "TPE", "Evolution", "PBT"])
def test_a_constraint_that_nothing_fulfils_is_refused(algorithm: str) -> None:
    source = proposer("batchSize > 1000", algorithm=algorithm)
    with pytest.raises(SpecError, match="of all combinations none fulfils them"):
        source.check()
    endless = proposer("learningRate > 1.0", algorithm="Random", searchSpaces=[CONTINUOUS])
    with pytest.raises(SpecError, match="of 10000 none fulfils them"):
        endless.check()


def test_a_point_that_breaks_a_constraint_is_refused() -> None:
    search = {
        "algorithm": "Random",
        "constraints": ["batchSize <= 16"],
        "points": [{"batchSize": 8}, {"batchSize": 32}],
    }
    with pytest.raises(SpecError, match=r"spec.search.points\[1\]: must fulfil"):
        Proposer(Problem.of(study_spec(searchSpaces=[GRID], search=search)))


def test_a_constraint_that_has_no_answer_later_on_ends_the_search_with_it(tmp_path: Path) -> None:
    space = {**CONTINUOUS, "batchSize": {"values": [8, 16]}}
    search = {"algorithm": "Random", "seed": 6, "constraints": ["8 / (batchSize - 16) < 100"]}
    spec = study_spec(searchSpaces=[space], search=search)
    driver = Driver(spec, Storage.open(str(tmp_path)), 1)
    ending = driver.run()
    assert ending.reason == "InvalidSpec"
    assert "must be defined for {'batchSize': 16}" in ending.message
    assert {trial.params["batchSize"] for trial in driver.state.trials} == {8}


@pytest.mark.parametrize("loop", ["[1, 2].all(x, x > 0)", "[1] . exists (x, x == batchSize)"])
def test_loops_are_refused(loop: str) -> None:
    with pytest.raises(ExpressionError, match="must not use all, exists"):
        Constraints([loop], {"batchSize": 16})
