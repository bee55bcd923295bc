"""What a study begins with: a search chosen once, and the trials that are tried first."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.auto import settled
from finetune_api.study import StudySpec
from finetune_trainer.data import prepare
from finetune_trainer.errors import SpecError
from finetune_trainer.records.claim import has_begun, parts_of, tries_defaults
from finetune_trainer.runtime.first_trial import first_trial
from finetune_trainer.search.problem import Problem, Recommended, begin, problem_of
from finetune_trainer.search.proposals import Proposer
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import STUDY
from tests.trainer.conftest import MakeSpec
from tests.trainer.search_studies import CONTINUOUS, study_spec

pytestmark = pytest.mark.in_memory

RATE: dict[str, Any] = {"learningRate": 1e-4}
SPACE: dict[str, Any] = {**CONTINUOUS, "batchSize": {"values": [8, 16]}}


def auto(trials: int, **changes: Any) -> StudySpec:
    """A study that leaves its search to be chosen."""
    return study_spec(search={"seed": 7}, budget={"maxTrials": trials}, **changes)


def test_a_choice_is_recorded_and_outlives_the_budget(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    begin(storage, auto(6))
    chosen = problem_of(auto(6), storage)
    assert (chosen.search.algorithm, chosen.resources) == ("GP", (3, 9))
    begin(storage, auto(1000))
    assert problem_of(auto(1000), storage) == chosen
    assert Problem.of(auto(1000)).resources == (1, 3, 9)  # what it would have chosen


def test_a_named_search_is_not_recorded_as_a_choice_and_cannot_become_one(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    begin(storage, study_spec())
    assert "chosen" not in json.loads(storage.read(STUDY))
    with pytest.raises(SpecError, match=r'spec\.search\.algorithm: must be "Random".*got "Auto"'):
        begin(storage, auto(6))


def test_a_wrong_constraint_is_told_before_anything_is_chosen(tmp_path: Path) -> None:
    spec = auto(6).model_copy(
        update={"search": auto(6).search.model_copy(update={"constraints": ["batchsize < 3"]})}
    )
    with pytest.raises(SpecError, match=r"spec\.search\.constraints\[0\]: must name only"):
        begin(Storage.open(str(tmp_path)), spec)
    assert not list(tmp_path.iterdir())


def test_a_study_of_the_version_before_goes_on_without_recommendations(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    begin(storage, study_spec())
    assert tries_defaults(storage)
    document = json.loads(storage.read(STUDY))
    del document["rules"]["defaults"]
    storage.write(STUDY, json.dumps(document).encode())
    assert has_begun(storage, parts_of(study_spec()))
    assert not tries_defaults(storage)


def proposed(problem: Problem, count: int, inherited: Any = ()) -> list[dict[str, Any]]:
    """What is tried, in order."""
    proposer, found = Proposer(problem), []
    proposer.inherit(inherited)
    for _ in range(count):
        proposal = proposer.propose()
        assert proposal is not None
        found.append(dict(proposal.params))
        proposer.record(proposal.params)
    return found


def with_recommended(params: dict[str, Any], **changes: Any) -> Problem:
    """A problem for which these values of the first space are recommended."""
    spec = study_spec(**{"searchSpaces": [SPACE], **changes})
    return replace(Problem.of(spec), recommended=Recommended(0, params))


def test_points_come_first_then_what_is_recommended_then_what_was_inherited() -> None:
    search = {"algorithm": "Random", "points": [{"learningRate": 0.01, "batchSize": 8}]}
    problem = with_recommended(RATE, search=search)
    before = [({"learningRate": 0.05, "batchSize": 16}, 0.9)]
    first, second, third, *others = proposed(problem, 6, before)
    assert first == {"learningRate": 0.01, "batchSize": 8}
    assert second["learningRate"] == 1e-4
    assert second["batchSize"] in (8, 16)  # drawn
    assert third == before[0][0]
    assert [trial["learningRate"] for trial in others].count(1e-4) == 0


def test_what_is_recommended_has_its_turn_once() -> None:
    problem = with_recommended(RATE)
    proposer = Proposer(problem)
    proposer.record({"learningRate": 3e-4, "batchSize": 8})  # by another version
    assert proposer.propose() != Proposer(problem).propose()
    assert proposed(problem, 3) == proposed(problem, 3)


def test_what_the_constraints_refuse_is_not_tried() -> None:
    search = {"algorithm": "Random", "constraints": ["learningRate > 0.0002"]}
    plain = Problem.of(study_spec(searchSpaces=[SPACE], search=search))
    assert proposed(with_recommended(RATE, search=search), 3) == proposed(plain, 3)
    partly = {"algorithm": "Random", "constraints": ["batchSize == 16"]}
    (first,) = proposed(with_recommended(RATE, search=partly), 1)
    assert first == {"learningRate": 1e-4, "batchSize": 16}


@pytest.mark.parametrize(
    "changes",
    [
        {"search": {"algorithm": "Random", "defaults": False}},
        {"search": {"algorithm": "Grid"}, "searchSpaces": [{"learningRate": {"values": [1e-4]}}]},
        {
            "search": {"algorithm": "Random"},
            "searchSpaces": [{"labelSmoothing": {"min": 0.0, "max": 0.2}}],
        },
    ],
    ids=["switched off", "grid", "nothing recommended is searched"],
)
def test_nothing_is_recommended(
    make_spec: MakeSpec, examples: Path, changes: dict[str, Any]
) -> None:
    spec = make_spec(budget={"maxTrials": 4}, **changes)
    assert first_trial(spec, prepare(spec, examples)) is None


def test_a_model_and_its_rows_have_a_recommendation_in_the_space_that_has_most_of_it(
    make_spec: MakeSpec, examples: Path
) -> None:
    spaces = [
        {"labelSmoothing": {"min": 0.0, "max": 0.2}},
        {"weightDecay": {"min": 0.0, "max": 0.1}},
        {"learningRate": {"min": 1e-6, "max": 1e-3, "scale": "Log"}, "batchSize": {"values": [8, 16]}},
    ]  # fmt: skip
    budget = {"maxTrials": 4}
    spec = make_spec(searchSpaces=spaces, search={"algorithm": "Random"}, budget=budget)
    found = first_trial(spec, prepare(spec, examples))
    assert found is not None
    assert (found.space, found.params) == (2, {"learningRate": 5e-5, "batchSize": 16})  # MiniLM
    assert proposed(replace(Problem.of(settled(spec)), recommended=found), 1) == [found.params]
