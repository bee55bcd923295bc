"""The driver of a pod, `main` and all: its exit codes, what it tells the progress ConfigMap, and when it refuses to begin.

Real are the driver, the broker, the slots, the records and the ConfigMap's two kinds of patch; Ray and the data are not.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config

from finetune_api.manifest import ManifestError
from finetune_api.pods import DRAIN_FILE, STUDY_FILE
from finetune_trainer import driver
from finetune_trainer.errors import DataError, StorageUnavailable
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.records.log import RecordLog
from finetune_trainer.runtime.preparation import Preparation
from finetune_trainer.runtime.progress import Fenced
from finetune_trainer.runtime.slot import Work
from finetune_trainer.search.items import RefitItem
from finetune_trainer.storage import retries
from finetune_trainer.storage.folder import Storage
from finetune_trainer.tracking.tracker import DRAIN_SECONDS, FINISH_SECONDS
from finetune_trainer.worker.item import Item, requeued
from tests.records import events_of
from tests.trainer.near_ray import NearRay, near_ray
from tests.trainer.progress_server import ProgressServer, logged_in
from tests.trainer.search_studies import CONTINUOUS, epoch_done, study_spec

UID = "0c9a2c5e-0000-4000-8000-000000000001"
ONE_EPOCH = {"hyperparameters": {"epochs": 1}, "budget": {"maxTrials": 2}}


class Worker:
    """Trains nothing; what it does with an item its test says."""

    def __init__(self, act: Callable[[Item, Work], list[ev.Event] | None]) -> None:
        self._act = act

    def work(self, item: Item, work: Work) -> list[ev.Event]:
        told = self._act(item, work)
        if told is not None:
            return told
        now = time.time()
        if isinstance(item, RefitItem):
            return [
                ev.RefitDone(now, trial=item.trial, path="model", test_metrics={"accuracy": 0.5})
            ]
        done = epoch_done(item.trial, 1, (item.trial + 1) / 10, now)
        return [done, ev.Reached(now, trial=item.trial, finished=True)]


class Pod:
    """Pod 0 of a study: its environment, its ConfigMap, and the parts that are not real."""

    def __init__(self, folder: Path, server: ProgressServer, near: NearRay, patch: Any) -> None:
        self.folder = folder
        self.server = server
        self.ray = near
        self.prepare: Callable[[], Preparation] = lambda: Preparation((), b"{}", "rows")
        self.act: Callable[[Item, Work], list[ev.Event] | None] = lambda *_: None
        self.finished: list[float] = []
        """How long the trackers were given."""

        patch.setattr(driver, "prepare_here", lambda *_: (self.prepare(), None))
        patch.setattr(driver, "make_trainer", lambda _: Worker(lambda *given: self.act(*given)))
        patch.setattr(driver, "finish_tracker", lambda _, seconds: self.finished.append(seconds))
        self.study(**ONE_EPOCH)

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    def study(self, **changes: Any) -> None:
        """Mount the study with these changes."""
        spec = study_spec(**changes)
        self.spec = spec
        document = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneStudy",
            "metadata": {"name": "study", "namespace": "nlp", "uid": UID},
            "spec": spec.to_json(),
        }
        partial = self.folder / "partial.json"
        partial.write_text(json.dumps(document))
        partial.replace(self.folder / "study.json")

    def records(self) -> list[ev.Event]:
        return events_of(self.storage)

    def until(self, true: Callable[[], bool]) -> None:
        """Wait until it is so, from a slot."""
        deadline = time.monotonic() + 240
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def until_told(self, **says: str) -> None:
        """Wait until the last document says that."""

        def told() -> bool:
            last = self.server.last
            return last is not None and all(getattr(last, key) == says[key] for key in says)

        self.until(told)


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    environment = {
        STUDY_FILE: str(tmp_path / "study.json"),
        DRAIN_FILE: str(tmp_path / "drain"),
        "FINETUNE_STORAGE": str(tmp_path / "storage"),
        "FINETUNE_BASE": str(tmp_path),
        "FINETUNE_PROGRESS": "study-progress",
        "FINETUNE_NAMESPACE": "nlp",
        "FINETUNE_JOB_UID": "job-uid",
        "FINETUNE_STUDY_UID": UID,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(driver, "PUBLISH_SECONDS", 0.01)
    monkeypatch.setattr(retries, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.05)
    server = ProgressServer()
    with (
        server.serving() as url,
        logged_in(url) as login,
        near_ray(monkeypatch) as near,
    ):
        monkeypatch.setattr(config, "load_incluster_config", login)
        yield Pod(tmp_path, server, near, monkeypatch)


def sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)  # here and now


# It ends.


def test_a_finished_study_ends_with_0_and_each_phase_was_told(pod: Pod) -> None:
    def act(item: Item, work: Work) -> None:
        if isinstance(item, RefitItem):
            work.waits("the disk is full; waiting")  # something to tell
            pod.until_told(phase="Refitting", reason="StorageUnavailable")
            work.waits("")
        pod.until_told(phase="Refitting" if isinstance(item, RefitItem) else "Searching")
        pod.until_told(reason="Running")

    pod.act = act
    assert driver.main() == 0
    assert pod.server.phases() == ["Preparing", "Searching", "Refitting", "Finished"]
    first, last = pod.server.told[0], pod.server.told[-1]
    assert (first.reason, first.message) == ("CreatingPods", "preparing the data")
    assert (last.reason, last.message) == ("SearchFinished", "all 2 trials ended")
    assert (last.study_uid, last.job_uid, last.term) == (UID, "job-uid", 1)
    assert (last.findings.trials.completed, last.findings.trials.running) == (2, 0)
    assert last.findings.best is not None
    assert (last.findings.best.trial, last.findings.best.value) == (1, 0.2)
    assert (pod.storage / "results" / "trials.csv").exists()
    assert (pod.storage / "results" / "data.json").read_text() == "{}"
    assert pod.ray.addresses == ["auto"]
    assert pod.ray.ends == 1
    assert pod.finished == [FINISH_SECONDS]


def test_a_study_without_a_result_ends_with_42(pod: Pod) -> None:
    def act(item: Item, work: Work) -> list[ev.Event]:
        return [
            ev.Failed(
                time.time(),
                trial=item.trial,
                failure_class="Diverged",
                message="the training loss became nan",
            )
        ]

    pod.act = act
    assert driver.main() == 42
    last = pod.server.told[-1]
    assert (last.phase, last.reason) == ("Failed", "NoSuccessfulTrial")
    said = "trial 0: Diverged: the training loss became nan"
    assert last.message == f"none of 2 trials has a value (Diverged); {said}"
    assert last.findings.trials.diverged == 2


@pytest.mark.parametrize("where", ["TooManyFailedTrials", "RefitFailed"])
def test_a_study_that_failed_on_its_way_ends_with_42(where: str, pod: Pod) -> None:
    pod.study(**{**ONE_EPOCH, "budget": {"maxTrials": 2, "maxFailedTrials": 0}})

    def act(item: Item, work: Work) -> list[ev.Event] | None:
        if isinstance(item, RefitItem):
            return [ev.RefitRequeued(time.time(), message="OutOfMemory: too large")]
        if where == "TooManyFailedTrials":
            return [
                ev.Failed(time.time(), trial=item.trial, failure_class="UserError", message="why")
            ]
        return None

    pod.act = act
    assert driver.main() == 42
    assert (pod.server.told[-1].phase, pod.server.told[-1].reason) == ("Failed", where)


def test_warnings_of_the_data_are_in_the_findings(pod: Pod) -> None:
    pod.prepare = lambda: Preparation(("3 rows are empty",), b"{}", "rows")
    assert driver.main() == 0
    assert pod.server.told[-1].findings.warnings == ["3 rows are empty"]


# It refuses.

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "precision": (
        {"compute": {"precision": "FP16"}},
        "spec.compute.precision: must be FP32 or BF16 where slots have no GPU (got FP16)",
    ),
    "constraint": (
        {"search": {"algorithm": "Random", "constraints": ["learningRate > 1.0"]}},
        "spec.search.constraints: ",
    ),
    "point": (
        {"search": {"algorithm": "Random", "points": [{"learningRate": 0.7}]}},
        "spec.search.points[0]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_spec_that_cannot_be_run_ends_with_42_before_anything_is_written(
    name: str, pod: Pod
) -> None:
    changes, message = REFUSED[name]
    pod.study(**ONE_EPOCH, **changes)
    pod.prepare = lambda: pytest.fail("no data must be prepared")
    assert driver.main() == 42
    assert pod.server.phases() == ["Preparing", "Failed"]
    last = pod.server.told[-1]
    assert last.reason == "InvalidSpec"
    assert last.message.startswith(message)
    assert not pod.storage.exists()


def test_a_location_that_nobody_knows_ends_with_42(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_STORAGE", "ftp://somewhere/else")
    assert driver.main() == 42
    last = pod.server.told[-1]
    assert last.reason == "InvalidSpec"
    assert last.message.startswith("spec.storage.uri: must be a location that pyarrow can open (")


def test_the_folder_of_another_study_ends_with_42_and_is_left_alone(pod: Pod) -> None:
    claim(Storage.open(str(pod.storage)), parts_of(study_spec(hyperparameters={"epochs": 5})))
    before = sorted(path.name for path in pod.storage.rglob("*"))
    assert driver.main() == 42
    last = pod.server.told[-1]
    assert last.reason == "InvalidSpec"
    assert last.message.startswith("spec.hyperparameters.epochs: must be 5, as when the records")
    assert sorted(path.name for path in pod.storage.rglob("*")) == before


def test_data_that_cannot_be_used_end_with_42_and_their_reason(pod: Pod) -> None:
    def prepare() -> Preparation:
        raise DataError("spec.dataset.labelColumn", "must be a column (got author)")

    pod.prepare = prepare
    assert driver.main() == 42
    last = pod.server.told[-1]
    assert last.reason == "DataError"
    assert last.message == "spec.dataset.labelColumn: must be a column (got author)"
    assert pod.records() == []


def test_rows_other_than_those_of_the_records_end_with_42(pod: Pod) -> None:
    def act(item: Item, work: Work) -> None:
        work.say(ev.SlotReady(time.time(), slot=work.slot, data="rows", setting={}))

    pod.act = act
    assert driver.main() == 0
    pod.prepare = lambda: Preparation((), b"{}", "others")
    assert driver.main() == 42
    assert pod.server.told[-1].message.startswith("spec.dataset: must give the rows that")


def test_a_source_that_is_no_study_ends_with_42(pod: Pod) -> None:
    search = {"algorithm": "TPE", "warmStart": [{"uri": "nowhere"}]}
    pod.study(**ONE_EPOCH, search=search, searchSpaces=[CONTINUOUS])
    assert driver.main() == 42
    assert pod.server.told[-1].reason == "InvalidSpec"
    assert "spec.search.warmStart" in pod.server.told[-1].message


def test_what_a_source_teaches_is_asked_for_once(pod: Pod) -> None:
    source = pod.folder / "source"
    claim(Storage.open(str(source)), parts_of(pod.spec))
    search = {"algorithm": "TPE", "warmStart": [{"uri": "source"}]}
    log, _ = RecordLog.start(Storage.open(str(source)), 1, 0.0)
    log.append(
        [
            ev.Proposed(0.0, trial=0, params={"learningRate": 1e-3}),
            ev.Started(0.0, trial=0, slot="a/b", to_epoch=1),
            epoch_done(0, 1, 0.5),
            ev.Reached(0.0, trial=0, finished=True),
            ev.SearchEnded(0.0, reason="SearchFinished"),
        ]
    )
    pod.study(**ONE_EPOCH, search=search, searchSpaces=[CONTINUOUS])
    assert driver.main() == 0
    assert driver.main() == 0
    (inherited,) = [event for event in pod.records() if isinstance(event, ev.Inherited)]
    (taught,) = inherited.trials
    assert tuple(taught) == ({"learningRate": 1e-3}, 0.5)


# It is told to end.


def test_told_to_end_while_it_searches_it_saves_and_ends_with_143(pod: Pod) -> None:
    def act(item: Item, work: Work) -> list[ev.Event]:
        work.say(epoch_done(item.trial, 0.5, 0.4, time.time()))
        work.settle()
        pod.until_told(phase="Searching")
        sigterm()
        pod.until(work.should_pause)
        return [requeued(item)]

    pod.act = act
    assert driver.main() == 143
    last = pod.server.told[-1]
    assert (last.phase, last.reason) == ("Drained", "SuspendRequested")
    assert last.message == "saved and stopped as requested"
    assert last.findings.best is not None
    assert last.findings.best.value == 0.4
    assert isinstance(pod.records()[-1], ev.Requeued)
    assert pod.finished == [DRAIN_SECONDS]

    pod.act = lambda *_: None
    assert driver.main() == 0
    assert (pod.server.told[-1].phase, pod.server.told[-1].term) == ("Finished", 2)


@pytest.mark.parametrize("how", ["signal", "file"])
def test_told_to_end_before_there_is_a_broker_it_trains_nothing(how: str, pod: Pod) -> None:
    """By a signal, or as KubeRay tells a pod: by a file."""
    pod.act = lambda *_: pytest.fail("nothing must be trained")
    pod.ray.starting = sigterm if how == "signal" else (pod.folder / "drain").touch
    assert driver.main() == 143
    assert pod.server.phases()[-1] == "Drained"
    assert not any(isinstance(event, ev.Proposed) for event in pod.records())


def test_a_file_that_tells_it_to_end_is_seen_while_it_searches(pod: Pod) -> None:
    def act(item: Item, work: Work) -> list[ev.Event]:
        (pod.folder / "drain").touch()
        work._broker.recalled().get()
        (pod.folder / "drain").unlink()  # or the slot would hold still, until its pod is gone
        return [requeued(item)]

    pod.act = act
    assert driver.main() == 143
    assert pod.server.phases()[-1] == "Drained"


def test_told_to_end_while_it_waits_for_its_data_it_says_so(pod: Pod) -> None:
    def prepare() -> Preparation:
        if pod.server.told[-1].reason == "StorageUnavailable":
            threading.Thread(target=sigterm).start()
        raise StorageUnavailable("the disk is gone")

    pod.prepare = prepare
    assert driver.main() == 143
    trouble = "the data cannot be read: the disk is gone"
    waited = [told for told in pod.server.told if told.reason == "StorageUnavailable"]
    assert [(told.phase, told.message) for told in waited] == [("Preparing", f"{trouble}; waiting")]
    last = pod.server.told[-1]
    assert (last.phase, last.reason) == ("Drained", "SuspendRequested")
    assert last.message == f"told to end while {trouble}"


# It waits, and goes on.


def test_data_that_come_back_are_prepared_after_all(pod: Pod) -> None:
    """What looks wrong while the study's folder is away is not believed."""
    before = pod.storage / "records" / "study.json"
    away = pod.folder / "away.json"
    tries: list[int] = []

    def prepare() -> Preparation:
        tries.append(0)
        if len(tries) == 1:
            before.rename(away)
            raise DataError("spec.dataset.files.train", "must have rows (got none)")
        away.rename(before)
        return Preparation((), b"{}", "rows")

    pod.prepare = prepare
    assert driver.main() == 0
    told = [(document.phase, document.reason) for document in pod.server.told]
    assert told[:3] == [
        ("Preparing", "CreatingPods"),
        ("Preparing", "StorageUnavailable"),
        ("Preparing", "CreatingPods"),
    ]
    message = pod.server.told[1].message
    assert message == "the data cannot be read: records/study.json is not there; waiting"


def test_a_slot_that_waits_for_storage_is_told(pod: Pod) -> None:
    def act(item: Item, work: Work) -> None:
        if isinstance(item, RefitItem):
            return
        work.waits("the disk is full; waiting")
        pod.until_told(reason="StorageUnavailable", message="the disk is full; waiting")
        work.waits("")
        pod.until_told(reason="Running", message="")

    pod.act = act
    assert driver.main() == 0
    assert pod.server.told[-1].message == "all 2 trials ended"


def test_progress_that_cannot_be_published_for_a_moment_ends_nothing(pod: Pod) -> None:
    def act(item: Item, work: Work) -> None:
        if item.trial == 0 and not isinstance(item, RefitItem):
            pod.until_told(phase="Searching")
            pod.server.failures = 3
            work.say(epoch_done(0, 0.5, 0.05, time.time()))
            pod.until(lambda: not pod.server.failures)

    pod.act = act
    assert driver.main() == 0
    assert pod.server.told[-1].phase == "Finished"


# It crashes, or another one takes over.


@pytest.mark.parametrize("where", ["data", "slot"])
def test_what_is_nobodys_fault_is_told_and_raised(where: str, pod: Pod) -> None:
    """Python ends with 1: the supervisor starts the driver again."""

    def broken(*_: Any) -> Any:
        if where == "slot":
            pod.until(lambda: pod.server.told[-1].findings.trials.running == 1)
        raise RuntimeError("a bug\nand where it is")

    if where == "data":
        pod.prepare = broken
    else:
        pod.act = broken
    with pytest.raises(RuntimeError, match="a bug"):
        driver.main()
    last = pod.server.told[-1]
    assert (last.phase, last.reason) == ("Preparing", "AttemptFailed")
    assert last.message == "the driver starts again: RuntimeError: a bug"
    assert last.findings.trials.running == (where == "slot"), "what was told is told again"
    assert pod.ray.ends == 1


def test_slots_that_end_before_the_study_are_no_end(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "run_slots", lambda *_: None)
    with pytest.raises(RuntimeError, match="the slots ended before the study did"):
        driver.main()
    assert pod.server.told[-1].reason == "AttemptFailed"


def test_a_driver_that_another_has_followed_tells_nothing_more(pod: Pod) -> None:
    pod.ray.starting = pod.server.another_driver
    pod.act = lambda *_: pytest.fail("nothing must be trained")

    def prepare() -> Preparation:
        raise DataError("spec.dataset", "must be there")

    pod.prepare = prepare
    with pytest.raises(Fenced, match="term 1 is over"):
        driver.main()
    assert len(pod.server.told) == 1


def test_a_driver_that_another_has_followed_ends_at_once(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    def act(item: Item, work: Work) -> list[ev.Event]:
        pod.until_told(phase="Searching")
        pod.server.another_driver()
        work.say(epoch_done(item.trial, 0.5, 0.4, time.time()))
        pod.until(lambda: bool(ended))
        sigterm()
        return [requeued(item)]

    monkeypatch.setattr(os, "_exit", ended.append)
    pod.act = act
    with pytest.raises(Fenced):
        driver.main()
    assert set(ended) == {1}
    assert pod.server.phases() == ["Preparing", "Searching"]


# Terms.


def test_each_start_has_a_term_of_its_own_whoever_comes_first(pod: Pod) -> None:
    rivals = 2

    def rival() -> None:
        nonlocal rivals
        if rivals:
            rivals -= 1
            pod.server.another_driver()

    pod.server.before_patch = rival
    assert driver.main() == 0
    assert {document.term for document in pod.server.told} == {3}
    assert [e.term for e in pod.records() if isinstance(e, ev.TermStarted)] == [3]


@pytest.mark.parametrize("last", [1, 7])
def test_a_term_is_above_those_of_the_records(last: int, pod: Pod) -> None:
    """Somebody has deleted the ConfigMap, or the study adopts what another has left."""
    storage = Storage.open(str(pod.storage))
    claim(storage, parts_of(pod.spec))
    RecordLog.start(storage, last, 0.0)
    assert driver.main() == 0
    assert pod.server.data["term"] == str(last + 1)
    assert pod.server.told[-1].term == last + 1
    assert [e.term for e in pod.records() if isinstance(e, ev.TermStarted)] == [last, last + 1]


# The study is edited.


def test_edits_of_the_mounted_study_count_and_half_an_edit_does_not(pod: Pod) -> None:
    def act(item: Item, work: Work) -> list[ev.Event] | None:
        if isinstance(item, RefitItem):
            return None
        work.say(epoch_done(item.trial, 0.5, 0.4, time.time()))
        work.settle()
        (pod.folder / "study.json").write_text('{"apiVersion": "finetune')
        count = len(pod.server.told)
        work.say(epoch_done(item.trial, 0.75, 0.41, time.time()))
        pod.until(lambda: len(pod.server.told) > count)
        pod.study(**ONE_EPOCH, objective={"metric": "accuracy", "target": 0.41})
        pod.until(work.should_pause)
        return [requeued(item)]

    pod.act = act
    assert driver.main() == 0
    last = pod.server.told[-1]
    assert (last.phase, last.reason) == ("Finished", "TargetReached")
    assert last.message == "accuracy reached 0.41"


def test_a_study_that_cannot_be_read_at_the_start_is_no_user_error(pod: Pod) -> None:
    """The operator has taken it: what is mounted is torn, and read again by the next start."""
    (pod.folder / "study.json").write_text('{"kind": "FineTuneStudy"}')
    with pytest.raises(ManifestError):
        driver.main()
    assert pod.server.told == []
