"""MLflow: what a real server has after a study, after a restart, and after a time in which it was down."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from finetune_api.outputs import MlflowTracking
from finetune_trainer.records import events as ev
from finetune_trainer.storage.folder import Storage
from finetune_trainer.tracking.mlflow_runs import MlflowRuns
from finetune_trainer.tracking.runs import TrackedRun, TrackingError
from finetune_trainer.tracking.tracker import StudyTracker
from tests.needs import ToolMissing, not_run
from tests.records import events_of
from tests.trainer.mlflow_server import MlflowServer
from tests.trainer.search_studies import Driver
from tests.trainer.tracked_studies import finished, runs_of, study

pytestmark = pytest.mark.slow

STATUS = {"Finished": "FINISHED", "Failed": "FAILED", "Killed": "KILLED"}


SMALL: dict[str, Any] = {"budget": {"maxTrials": 3}}
"""Two trials of one epoch, one of three."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server that may not have been started yet."""
    try:
        server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    except ToolMissing as missing:
        not_run(missing)
    yield server
    server.stop()


@pytest.fixture
def server(address: MlflowServer) -> MlflowServer:
    """The server, running."""
    address.start()
    return address


def tracking(server: MlflowServer, experiment: str) -> MlflowTracking:
    return MlflowTracking(tracking_uri=server.uri, experiment=experiment)


def shown(server: MlflowServer, experiment: str) -> tuple[MlflowClient, dict[str, Run]]:
    """A client, and label → run of all runs in the experiment."""
    client = MlflowClient(server.uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = list(client.search_runs([found.experiment_id], max_results=1000))
    by_label = {run.data.tags["finetune.trial"]: run for run in runs}
    assert len(by_label) == len(runs), "a run is there twice"
    return client, by_label


def check(server: MlflowServer, experiment: str, runs: Iterable[TrackedRun]) -> None:
    """What the server has is what the runs are, once."""
    client, found = shown(server, experiment)
    expected = {run.label: run for run in runs}
    assert set(found) == set(expected)
    for label, run in expected.items():
        there = found[label]
        assert there.data.tags["finetune.run"] == run.key
        assert there.info.run_name == run.name
        assert there.data.params == {name: str(value) for name, value in run.params.items()}
        for name in ("accuracy", "train_loss", "seconds") if run.points else ():
            history = client.get_metric_history(there.info.run_id, name)
            points: list[Any] = [(m.step, pytest.approx(m.value)) for m in history]
            assert points == [(p.step, p.values[name]) for p in run.points], (label, name)
        if run.ending is not None:
            assert there.info.status == STATUS[run.ending.outcome]
            assert there.info.end_time == round(run.ending.time * 1000)
            for name, value in run.ending.facts.items():
                assert there.data.tags[f"finetune.{name}"] == value
            assert there.data.metrics["best_value"] == run.ending.results["best_value"]
        else:
            assert there.info.status == "RUNNING"


def test_nothing_is_lost_while_the_server_is_down(address: MlflowServer, tmp_path: Path) -> None:
    of = study(**SMALL, tracking={"mlflow": tracking(address, "down").to_json()})
    Driver(of.spec, Storage.open(str(tmp_path)), 1).run()
    said: list[tuple[str, str]] = []
    address.stop()
    tracker = StudyTracker(
        of, Storage.open(str(tmp_path)), 1, lambda field, message: said.append((field, message))
    )
    tracker.start()
    deadline = time.monotonic() + 120
    while not said:
        assert time.monotonic() < deadline, "nobody was told that the server is down"
        time.sleep(0.1)
    address.start()
    assert tracker.finish(60) == 0
    assert [field for field, _ in said] == ["mlflow", "mlflow"]
    assert "refused" in said[0][1]
    assert said[1][1] == "", "taken back"
    check(address, "down", runs_of(of, events_of(tmp_path)).values())


def test_the_server_has_params_metrics_by_epoch_and_ends(
    server: MlflowServer, tmp_path: Path
) -> None:
    of = study(**SMALL)
    runs = runs_of(of, finished(of, tmp_path))
    tracker = MlflowRuns(tracking(server, "whole"))
    for run in runs.values():
        tracker.write(run)
    check(server, "whole", runs.values())
    tags = shown(server, "whole")[1]["0"].data.tags
    assert (tags["finetune.study"], tags["finetune.namespace"]) == ("tickets", "nlp")
    assert {run.ending.outcome for run in runs.values() if run.ending} == {"Finished", "Killed"}


def test_a_failed_trial_has_its_class_and_undefined_metrics_are_no_obstacle(
    server: MlflowServer,
) -> None:
    metrics = {"accuracy": 0.5, "roc_auc": float("nan")}
    events = [
        ev.TermStarted(0.5, term=1),
        ev.Proposed(1.0, trial=0, params={"learningRate": 1e-3}),
        ev.Started(1.0, trial=0, slot="slot/1", to_epoch=9),
        ev.EpochDone(
            2.0,
            trial=0,
            epoch=1,
            value=0.5,
            metrics=metrics,
            train_loss=0.1,
            seconds=1.0,
            gpu_seconds=0.0,
        ),
        ev.Failed(3.0, trial=0, failure_class="UserError", message="maxLength must be at most 512"),
    ]
    MlflowRuns(tracking(server, "failed")).write(runs_of(study(), events)["0"])
    run = shown(server, "failed")[1]["0"]
    assert run.info.status == "FAILED"
    assert run.data.tags["finetune.failure"] == "UserError"
    assert run.data.tags["finetune.message"] == "maxLength must be at most 512"
    assert run.data.metrics["accuracy"] == 0.5


def test_a_restart_goes_on_in_the_same_runs(server: MlflowServer, tmp_path: Path) -> None:
    of = study(**SMALL)
    events = finished(of, tmp_path)
    for share in (3, 2, 1):
        runs = runs_of(of, events[: len(events) // share])
        tracker = MlflowRuns(tracking(server, "restarted"))  # as a new process would
        for run in [*runs.values(), *runs.values()]:
            tracker.write(run)
        if share == 2:
            check(server, "restarted", runs.values())
    check(server, "restarted", runs.values())


def test_what_the_server_refuses_is_said_in_its_words(server: MlflowServer, tmp_path: Path) -> None:
    run = runs_of(study(), finished(study(), tmp_path))["0"]
    client = MlflowClient(server.uri)
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(TrackingError, match="must be in the 'active' state"):
        MlflowRuns(tracking(server, "deleted")).write(run)
