"""Runs for the trackers follow from the records, and from nothing else."""

import sys
from pathlib import Path

import pytest

from finetune_trainer.errors import SpecError
from finetune_trainer.records import events as ev
from finetune_trainer.records.log import Follower, RecordLog
from finetune_trainer.storage.folder import Storage
from finetune_trainer.tracking.tracker import check_clients
from tests.trainer.search_studies import CONTINUOUS, Driver, epoch_done
from tests.trainer.tracked_studies import finished, runs_of, study


def test_runs_are_the_same_however_their_events_come(tmp_path: Path) -> None:
    events = finished(study(), tmp_path)
    at_once = runs_of(study(), events)
    assert runs_of(study(), *([event] for event in events)) == at_once
    assert list(at_once) == [*map(str, range(6)), "study"]


def test_a_run_has_its_params_and_its_metrics_by_epoch(tmp_path: Path) -> None:
    events = finished(study(), tmp_path)
    runs = runs_of(study(), events)
    for number in range(6):
        run = runs[str(number)]
        done = [e for e in events if isinstance(e, ev.EpochDone) and e.trial == number]
        assert [point.step for point in run.points] == [event.epoch for event in done]
        assert [point.time for point in run.points] == [event.time for event in done]
        for point, event in zip(run.points, done, strict=True):
            expected = {"epoch": event.epoch, "train_loss": 0.1, "seconds": 1.0}
            assert point.values == {**event.metrics, **expected}
        proposed = next(e for e in events if isinstance(e, ev.Proposed) and e.trial == number)
        assert run.params["learningRate"] == proposed.params["learningRate"]
        assert run.params["epochs"] == 9
        assert run.facts["study"] == "tickets"


def test_a_killed_driver_goes_on_with_the_same_runs(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    killed = Driver(study().spec, storage, 1)
    for _ in range(5):
        for report in killed.work(killed.decide()):  # type: ignore[arg-type]  # the search is not over
            killed.write(*report)
    killed.decide()  # in flight when it is killed
    before = runs_of(study(), Follower(storage, 1).more())
    after = runs_of(study(), finished(study(), tmp_path, term=2))
    assert len(before) > 2
    for label, run in before.items():
        later = after[label]
        assert (later.key, later.started, later.facts) == (run.key, run.started, run.facts)
        assert later.points[: len(run.points)] == run.points
    assert {run.facts["term"] for run in after.values()} == {"1", "2"}


def test_every_end_of_a_trial_is_told_with_its_reason() -> None:
    events: list[ev.Event] = [ev.TermStarted(0.5, term=1)]
    for trial in range(4):
        events += [
            ev.Proposed(1.0, trial=trial, params={"learningRate": 1e-3 * (trial + 1)}),
            ev.Started(1.0, trial=trial, slot="slot/1", to_epoch=9),
            epoch_done(trial, 1, 0.5 + trial / 10, 2.0),
        ]
    events += [
        ev.Reached(3.0, trial=0, finished=True),
        ev.Failed(3.0, trial=1, failure_class="Diverged", message="the loss became NaN"),
        ev.Failed(3.0, trial=2, failure_class="UserError", message="maxLength must be at most 512"),
        ev.Requeued(3.0, trial=3),
    ]
    one = study(search={"algorithm": "Random"})
    runs = runs_of(one, events)
    assert runs["3"].ending is None
    assert not runs["3"].active
    endings = {label: run.ending for label, run in runs.items() if run.ending}
    assert {label: ending.outcome for label, ending in endings.items()} == {
        "0": "Finished",
        "1": "Failed",
        "2": "Failed",
    }
    assert endings["1"].facts == {
        "state": "Diverged",
        "failure": "Diverged",
        "message": "the loss became NaN",
    }
    assert endings["2"].facts["failure"] == "UserError"
    assert endings["0"].results == {"best_value": 0.5, "best_epoch": 1.0}
    events.append(ev.SearchEnded(4.0, reason="TargetReached"))
    stopped = runs_of(one, events)["3"].ending
    assert stopped is not None
    assert (stopped.outcome, stopped.facts["state"]) == ("Killed", "Stopped")


def test_the_studys_run_has_the_best_trial_and_its_test(tmp_path: Path) -> None:
    events = finished(study(), tmp_path)
    runs = runs_of(study(), events)
    best = max(range(6), key=lambda n: max(p.values["accuracy"] for p in runs[str(n)].points))
    ending = runs["study"].ending
    assert ending is not None
    assert ending.outcome == "Finished"
    assert ending.facts["reason"] == "SearchFinished"
    assert (ending.results["best_trial"], ending.results["test_accuracy"]) == (best, 0.5)
    assert runs["study"].params == runs[str(best)].params
    assert "study" not in runs_of(study(), events[:-1]), "not before the refit"


def test_a_study_that_went_on_has_a_run_for_each_of_its_ends(tmp_path: Path) -> None:
    few = study(budget={"maxTrials": 4})
    finished(few, tmp_path)
    events = finished(study(), tmp_path, term=2)
    runs = runs_of(study(), events)
    first, second = runs["study"].ending, runs["study-2"].ending
    assert first is not None
    assert second is not None
    assert (first.results["trials"], second.results["trials"]) == (4, 6)
    assert runs_of(study(), *([event] for event in events)) == runs


def test_under_cross_validation_a_point_is_the_mean_of_all_folds(tmp_path: Path) -> None:
    folds = study(
        search={"algorithm": "Random"},
        hyperparameters={"epochs": 2},
        validation={"crossValidation": {"folds": 3}},
        budget={"maxTrials": 2},
    )
    events = finished(folds, tmp_path)
    runs = runs_of(folds, events)
    for number in range(2):
        for epoch, point in enumerate(runs[str(number)].points, start=1):
            values = [
                e.value
                for e in events
                if isinstance(e, ev.EpochDone) and (e.trial, e.epoch) == (number, epoch)
            ]
            assert len(values) == 3
            assert point.step == epoch
            assert point.values["accuracy"] == pytest.approx(sum(values) / 3)
            assert point.values["deviation"] > 0
            assert point.values["seconds"] == 3.0
        assert len(runs[str(number)].points) == 2


def test_where_rungs_begin_anew_the_steps_go_on(tmp_path: Path) -> None:
    scheduler = {"type": "ASHA", "resource": "Samples", "minResource": 30}
    samples = study(
        search={"algorithm": "Random", "scheduler": scheduler},
        hyperparameters={"epochs": 2},
        searchSpaces=[CONTINUOUS],
    )
    events = finished(samples, tmp_path)
    runs = runs_of(samples, events)
    promoted = [run for run in runs.values() if len(run.points) > 2]
    assert promoted
    for run in promoted:
        assert [point.step for point in run.points] == list(range(1, len(run.points) + 1))
        assert [point.values["epoch"] for point in run.points[:4]] == [1, 2, 1, 2]


def test_no_two_studies_share_a_key(tmp_path: Path) -> None:
    events = finished(study(), tmp_path)
    later = [ev.TermStarted(events[0].time + 1e-3, term=1), *events[1:]]
    keys = [
        {run.key for run in runs_of(of, given).values()}
        for of, given in (
            (study(), events),
            (study("0c9a2c5e-0000-4000-8000-000000000008"), events),
            (study(None), events),
            (study(None), later),
        )
    ]
    assert len(set.union(*keys)) == sum(map(len, keys)) == 4 * 7


def test_a_follower_hears_every_event_once_while_the_driver_writes(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    RecordLog.start(storage, 1, 0.0)[0].append(ev.Stopped(1.0, trial=n) for n in range(20))
    log, history = RecordLog.start(storage, 2, 2.0)
    follower, heard = Follower(storage, 2), list[ev.Event]()
    written = list(history.events)
    for number in range(200):  # merged every eight, sixty-four … appends
        event = ev.Stopped(3.0, trial=number)
        log.append([event])
        written.append(event)
        if number % 7 == 0:
            heard += follower.more()
            assert heard == written
    assert [*heard, *follower.more()] == written
    assert follower.more() == []


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"wandb": {"project": "tickets"}, "tensorboard": True}
    spec = study(tracking=both).spec
    check_clients(spec)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not there
    with pytest.raises(SpecError, match=r"^spec\.tracking\.wandb: needs its client"):
        check_clients(spec)
    check_clients(study(tracking={"tensorboard": True}).spec)
    check_clients(study().spec)
