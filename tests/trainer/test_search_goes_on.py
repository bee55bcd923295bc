"""A study that has ended goes on when the limit that ended it is loosened, from its records, and at no other time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.study import StudySpec
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import read_history
from finetune_trainer.search.decisions import has_failed, may_go_on, reopening
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage.folder import Storage
from tests.trainer.search_studies import (
    ASHA,
    CONTINUOUS,
    REFIT,
    Clock,
    Driver,
    epoch_done,
    study_spec,
)

pytestmark = pytest.mark.in_memory

SEARCHES: dict[str, dict[str, Any]] = {
    "Random": {"algorithm": "Random", "seed": 7},
    **{
        scheduler: {**ASHA, "scheduler": {"type": scheduler}}
        for scheduler in ("ASHA", "SuccessiveHalving", "Hyperband", "MedianStop", "PASHA")
    },
    **{
        f"{algorithm} and ASHA": {**ASHA, "algorithm": algorithm}
        for algorithm in ("QuasiRandom", "TPE", "GP", "Evolution")
    },
    "CMAES": {"algorithm": "CMAES", "seed": 7, "populationSize": 4},
}
SPACE = [{**CONTINUOUS, "weightDecay": {"min": 0.0, "max": 0.1}}]


class Study:
    """A study in a folder whose limits are edited from one run to the next."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        self._storage, self._spec = Storage.open(str(folder)), {"searchSpaces": SPACE, **spec}
        self._clock, self._term = Clock(), 0

    def run(self, retry: str = "", fails: Iterable[int] = (), **limits: Any) -> Driver:
        """Run it to its end as a new driver would, with these parts of its spec."""
        self._term += 1
        spec: StudySpec = study_spec(**{**self._spec, **limits})
        failing = frozenset(fails)
        driver = Driver(spec, self._storage, self._term, self._clock, retry=retry, fails=failing)
        driver.run()
        return driver

    @property
    def events(self) -> list[ev.Event]:
        return list(read_history(self._storage).events)


def ends(driver: Driver) -> set[str]:
    return {trial.status for trial in driver.state.trials}


@pytest.mark.parametrize("search", SEARCHES)
def test_more_trials_are_tried_and_the_winner_is_trained_again(search: str, tmp_path: Path) -> None:
    study = Study(tmp_path, search=SEARCHES[search])
    first = study.run(budget={"maxTrials": 8})
    assert len(first.state.trials) == 8
    same = study.run(budget={"maxTrials": 8})
    assert same.items == []
    assert same.state.reopened == 0

    more = study.run(budget={"maxTrials": 14})
    assert len(more.state.trials) == 14
    assert (more.state.reopened, more.state.tests) == (1, 2)
    assert more.state.refit is not None
    assert ends(more) <= {"Completed", "Stopped"}
    before, after = first.state.best_trial(), more.state.best_trial()
    assert before is not None
    assert after is not None
    assert more.state.score(after.best) >= more.state.score(before.best)
    assert [t.params for t in more.state.trials[:8]] == [t.params for t in first.state.trials]
    again = StudyState.replayed(more.state.problem, study.events)
    assert [(t.status, t.best) for t in again.trials] == [
        (t.status, t.best) for t in more.state.trials
    ]
    assert study.run(budget={"maxTrials": 14}).items == []
    assert study.run(budget={"maxTrials": 5}).items == []


LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "seconds": (
        {"budget": {"maxTrials": 30, "maxDurationSeconds": 60}},
        {"budget": {"maxTrials": 30, "maxDurationSeconds": 600}},
        "BudgetSpent",
    ),
    "target": (
        {"objective": {"metric": "accuracy", "target": 0.3}},
        {"objective": {"metric": "accuracy", "target": 0.99}},
        "TargetReached",
    ),
    "without improvement": (
        {"budget": {"maxTrials": 30, "maxTrialsWithoutImprovement": 2}},
        {"budget": {"maxTrials": 30, "maxTrialsWithoutImprovement": 29}},
        "NoImprovement",
    ),
    "trials": ({"budget": {"maxTrials": 6}}, {"budget": {"maxTrials": 9}}, "SearchFinished"),
    "no limit any more": (
        {"budget": {"maxTrials": 30, "maxDurationSeconds": 60}},
        {"budget": {"maxTrials": 30}},
        "BudgetSpent",
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("search", ["Random", "ASHA", "Hyperband"])
def test_each_limit_that_is_loosened_lets_it_go_on(limit: str, search: str, tmp_path: Path) -> None:
    strict, loose, reason = LIMITS[limit]
    study = Study(tmp_path, search=SEARCHES[search])
    first = study.run(**strict)
    assert first.state.ended is not None
    assert first.state.ended.reason == reason
    assert study.run(**strict).items == []
    second = study.run(**loose)
    assert second.state.reopened == 1
    assert second.items
    assert len(second.state.trials) > len(first.state.trials)
    assert ends(second) <= {"Completed", "Stopped"}


def test_what_the_end_stopped_begins_anew_and_may_win(tmp_path: Path) -> None:
    """A study that is cut off while trials are paused: they go on from nothing, for their checkpoints are gone."""
    study = Study(tmp_path, search=SEARCHES["ASHA"])
    first = study.run(budget={"maxTrials": 12, "maxDurationSeconds": 40})
    stopped = {trial.number for trial in first.state.trials if trial.status == "Stopped"}
    assert stopped
    second = study.run(budget={"maxTrials": 12})
    promoted = [item for item in second.items if getattr(item, "trial", None) in stopped]
    assert promoted
    began = {item.trial: item for item in reversed(promoted) if hasattr(item, "checkpoint")}
    assert {item.checkpoint for item in began.values()} == {None}
    trained = sum(trial.trained for trial in second.state.trials)
    assert second.state.epochs_trained >= trained


def test_time_between_two_runs_does_not_count(tmp_path: Path) -> None:
    study = Study(tmp_path, search=SEARCHES["Random"])
    first = study.run(budget={"maxTrials": 4})
    before = first.state.elapsed(first.clock())
    first.clock.now += 10**6
    second = study.run(budget={"maxTrials": 6})
    assert before < second.state.elapsed(second.clock()) < before + 1000


@pytest.mark.parametrize("reason", ["InvalidSpec", "RefitFailed"])
def test_an_end_that_no_limit_has_made_stays(reason: str) -> None:
    spec = study_spec()
    events = [
        ev.TermStarted(0.0, term=1),
        ev.Proposed(0.0, trial=0, params={"learningRate": 1e-3}),
        ev.Started(0.0, trial=0, slot="slot/1", to_epoch=9),
        epoch_done(0, 1, 0.5),
        ev.Reached(1.0, trial=0, finished=True),
        ev.SearchEnded(2.0, reason=reason),
    ]
    for told in (events, events[:-1]):  # the latter have no end
        state = StudyState.replayed(Problem.of(spec), told)
        assert not may_go_on(state, told, spec.budget, 3.0)
        assert reopening(state, told, spec.budget, 3.0, "again") is None


@pytest.mark.parametrize("search", SEARCHES)
def test_what_failed_is_tried_again_when_somebody_asks_for_it_and_only_once(
    search: str, tmp_path: Path
) -> None:
    study = Study(tmp_path, search=SEARCHES[search], budget={"maxTrials": 12})
    fails = [3, 4, 6, 7]
    first = study.run(fails=fails)
    assert first.state.ended is not None
    assert first.state.ended.reason == "TooManyFailedTrials"
    before = [trial.params for trial in first.state.trials]
    assert study.run().items == []
    again = study.run(retry="1")
    assert [trial.params for trial in again.state.trials[: len(before)]] == before
    assert len(again.state.trials) == 12
    assert (again.state.failed, again.state.reopened, again.state.retries) == (0, 1, {"1"})
    assert ends(again) <= {"Completed", "Stopped"}
    assert {item.trial for item in again.items} >= {*fails}
    assert again.state.refit is not None
    same = StudyState.replayed(again.state.problem, study.events)
    assert [(t.status, t.best) for t in same.trials] == [
        (t.status, t.best) for t in again.state.trials
    ]
    for retry in ("1", "2", ""):
        assert study.run(retry=retry).items == []


@pytest.mark.parametrize("search", ["Random", "ASHA", "Hyperband"])
def test_what_fails_again_fails_the_study_again(search: str, tmp_path: Path) -> None:
    study = Study(tmp_path, search=SEARCHES[search], budget={"maxTrials": 12})
    fails = range(3, 12)
    for number in range(1, 4):
        driver = study.run(retry=str(number), fails=fails)
        assert driver.state.ended is not None
        assert driver.state.ended.reason == "TooManyFailedTrials"
        assert driver.state.reopened == number - 1
        assert driver.state.failed == 4
    assert ends(study.run(retry="4")) <= {"Completed", "Stopped"}


@pytest.mark.parametrize("search", ["Random", "ASHA"])
def test_study_whose_first_trials_failed_alike_is_tried_again_from_its_first_trial(
    search: str, tmp_path: Path
) -> None:
    study = Study(tmp_path, search=SEARCHES[search], budget={"maxTrials": 6})
    first = study.run(fails=range(12))
    assert first.state.failed_alike()
    assert len(first.state.trials) == 3
    assert study.run(budget={"maxTrials": 6, "maxFailedTrials": 100}).items == []
    again = study.run(retry="1")
    assert again.state.failed_alike() == ""
    assert len(again.state.trials) == 6
    assert ends(again) <= {"Completed", "Stopped"}


def test_population_goes_on_without_the_steps_that_failed(tmp_path: Path) -> None:
    search = {"algorithm": "PBT", "populationSize": 4, "perturbationInterval": 3, "seed": 7}
    study = Study(tmp_path, search=search, budget={"maxFailedTrials": 0})
    first = study.run(fails=[2])
    assert first.state.ended is not None
    assert first.state.ended.reason == "TooManyFailedTrials"
    again = study.run(retry="1")
    assert again.items
    assert again.state.refit is not None
    assert again.state.trials[2].status == "Failed"


@pytest.mark.parametrize("search", ["Random", "ASHA"])
@pytest.mark.parametrize("limit", LIMITS)
def test_failed_refit_is_tried_again_and_nothing_else(
    limit: str, search: str, tmp_path: Path
) -> None:
    strict, _, _ = LIMITS[limit]
    study = Study(tmp_path, search=SEARCHES[search])
    first = study.run(fails=[REFIT], **strict)
    assert len(first.state.refit_failures) == 3
    assert study.run(**strict).items == []
    again = study.run(retry="1", **strict)
    assert [item.trial for item in again.items if not hasattr(item, "checkpoint")]
    assert not [item for item in again.items if hasattr(item, "checkpoint")], "no trial trains"
    assert again.state.refit is not None
    assert again.state.ended is not None
    assert first.state.ended is not None
    assert again.state.ended.reason == first.state.ended.reason
    assert study.run(retry="2", **strict).items == []


def test_search_that_ended_well_has_nothing_to_try_again(tmp_path: Path) -> None:
    study = Study(tmp_path, search=SEARCHES["Random"], budget={"maxTrials": 6})
    first = study.run(fails=[2])
    assert not has_failed(first.state)
    assert study.run(retry="1").items == []
    more = study.run(retry="1", budget={"maxTrials": 7})
    assert (more.state.reopened, more.state.retries) == (1, set())
