"""The record log: whole or ignored, whatever happens to the process or the store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.records import events as ev
from finetune_trainer.records.log import RecordLog, read_history
from finetune_trainer.storage.folder import Storage
from tests.trainer.crashes import Crash, Failing, crash_after, crash_before, crash_torn
from tests.trainer.object_store import object_store

pytestmark = pytest.mark.in_memory


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path))


def stopped(count: int, first: int = 0) -> list[ev.Event]:
    """Events that can be told apart."""
    return [ev.Stopped(float(n), trial=n) for n in range(first, first + count)]


def found(storage: Storage) -> list[ev.Event]:
    return read_history(storage).events


def segments(storage: Storage) -> list[str]:
    return [path for path in storage.files("records") if path.endswith(".jsonl")]


def test_every_kind_of_event_comes_back_as_it_was(storage: Storage) -> None:
    events: list[ev.Event] = [
        ev.Waited(1.2, seconds=61.5),
        ev.Proposed(
            1.5, trial=0, params={"learningRate": 4.1e-5, "optimizer": "SGD", "batchSize": 16}
        ),
        ev.SlotReady(1.8, slot="slot/1", data="0f3a", setting={"torch": "2.15.0", "threads": "2"}),
        ev.Started(2.0, trial=0, slot="slot/1", to_epoch=3, seed=4294967295),
        ev.EpochDone(
            3.0,
            trial=0,
            epoch=1,
            value=0.1 + 0.2,
            metrics={"f1_macro": 1 / 3},
            train_loss=0.7,
            seconds=12.5,
            gpu_seconds=25.0,
        ),
        ev.Saved(4.0, trial=0, epoch=1, path="checkpoints/0/1"),
        ev.Reached(5.0, trial=0, finished=True, run=3),
        ev.Requeued(6.0, trial=0, lost=True),
        ev.Failed(
            7.0, trial=0, failure_class="UserError", message='quotes " and\nlines\u2028 and ü'
        ),
        ev.Stopped(8.0, trial=0),
        ev.SearchEnded(9.0, reason="TargetReached", message="so"),
        ev.RefitStarted(10.0, trial=0, slot="slot/2"),
        ev.RefitRequeued(11.0, message="again", lost=True),
        ev.EnsembleJudged(
            11.5, trials=[3, 0], method="Mean", value=0.8, best_single=0.7, kept=True
        ),
        ev.RefitDone(
            12.0,
            trial=0,
            path="model",
            test_metrics={"accuracy": 0.5},
            baseline={"accuracy": 0.1},
            gpu_seconds=3.0,
        ),
    ]
    log, _ = RecordLog.start(storage, 1, 0.0)
    log.append(events)
    assert found(storage) == [ev.TermStarted(0.0, term=1), *events]


@pytest.mark.parametrize("appends", [1, 7, 8, 9, 64, 200])
def test_many_appends_stay_few_files(storage: Storage, appends: int) -> None:
    log, _ = RecordLog.start(storage, 1, 0.0)
    for number in range(appends):
        log.append(stopped(1 + number % 3, 10 * number))
    expected = [
        event for number in range(appends) for event in stopped(1 + number % 3, 10 * number)
    ]
    assert found(storage)[1:] == expected
    assert len(segments(storage)) <= 24


def test_terms_follow_each_other_and_leave_one_file_behind(storage: Storage) -> None:
    for term in (1, 2, 5):
        log, history = RecordLog.start(storage, term, float(term))
        assert history.last_term == term
        log.append(stopped(3, 10 * term))
    _, history = RecordLog.start(storage, 6, 6.0)
    assert history.events == found(storage)
    assert [event.term for event in history.events if isinstance(event, ev.TermStarted)] == [
        1,
        2,
        5,
        6,
    ]
    assert [event.trial for event in history.events if isinstance(event, ev.Stopped)] == [
        10, 11, 12, 20, 21, 22, 50, 51, 52,
    ]  # fmt: skip
    assert len(segments(storage)) == 1


def test_a_term_must_be_new(storage: Storage) -> None:
    RecordLog.start(storage, 4, 0.0)
    for term in (3, 4):
        with pytest.raises(ValueError, match=rf"term must be above 4 \(got {term}\)"):
            RecordLog.start(storage, term, 0.0)


def test_what_an_older_driver_writes_is_not_read(storage: Storage) -> None:
    older, _ = RecordLog.start(storage, 1, 0.0)
    older.append(stopped(3))
    newer, history = RecordLog.start(storage, 2, 1.0)
    for number in range(40):  # with merges on both sides
        older.append(stopped(2, 1000 + number))
        newer.append(stopped(1, 10 + number))
    expected = [*history.events, *stopped(40, 10)]
    assert found(storage) == expected
    _, history = RecordLog.start(storage, 3, 2.0)
    assert history.events[:-1] == expected


def test_a_driver_that_starts_late_with_an_older_term_is_not_read(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = RecordLog.start(storage, 1, 0.0)
    first.append(stopped(3))

    @dataclass(frozen=True)
    class Overtaken(Storage):
        """While this driver writes its first segment, the next one starts."""

        def write(self, path: str, data: bytes) -> None:
            RecordLog.start(storage, 3, 2.0)[0].append(stopped(1, 70))
            super().write(path, data)

    older, _ = RecordLog.start(Overtaken(storage.filesystem, storage.root), 2, 1.0)
    older.storage = storage
    older.append(stopped(1, 80))
    assert found(storage) == [
        ev.TermStarted(0.0, term=1),
        *stopped(3),
        ev.TermStarted(2.0, term=3),
        *stopped(1, 70),
    ]


def test_a_last_segment_torn_at_any_byte_is_skipped_and_named(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    log, _ = RecordLog.start(storage, 1, 0.0)
    log.append(stopped(2))
    log.append(stopped(2, 2))
    path = segments(storage)[-1]
    whole = storage.read(path)
    for size in range(len(whole)):
        (tmp_path / path).write_bytes(whole[:size])
        history = read_history(storage)
        assert history.events == [ev.TermStarted(0.0, term=1), *stopped(2)]
        assert history.torn == [path]


def test_what_follows_a_gap_is_not_read_but_named(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    log, _ = RecordLog.start(storage, 1, 0.0)
    for number in range(3):
        log.append(stopped(1, number))
    _, second, third, _ = paths = segments(storage)
    storage.delete(second)
    assert read_history(storage).events == [ev.TermStarted(0.0, term=1)]
    assert read_history(storage).torn == paths[2:]
    assert third in paths


@pytest.mark.parametrize("damage", [b"", b"{", b"null\n", b"[]\n{}", b"\xff\xfe\n\xff"])
def test_a_damaged_first_segment_means_the_term_has_not_begun(
    tmp_path: Path, damage: bytes
) -> None:
    storage = Storage.open(str(tmp_path))
    log, _ = RecordLog.start(storage, 1, 0.0)
    log.append(stopped(2))
    (tmp_path / "records/000002").mkdir()
    (tmp_path / "records/000002/000000000-000000003.jsonl").write_bytes(damage)
    history = read_history(storage)
    assert history.last_term == 1
    assert history.events[1:] == stopped(2)
    assert len(history.torn) == 1


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    log, _ = RecordLog.start(storage, 1, 0.0)
    log.append(stopped(1))
    for name in (
        "note.txt",
        "000001/.000000002-000000002.jsonl.77",
        "000001/2-2.jsonl",
        "x/1-1.jsonl",
    ):
        (tmp_path / "records" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "records" / name).write_text("hello")
    assert found(storage)[1:] == stopped(1)
    assert read_history(storage).torn == []


def test_events_of_another_version_stop_the_driver_and_nothing_is_lost(tmp_path: Path) -> None:
    @dataclass(frozen=True, slots=True)
    class Novel(ev.Event):
        kind = "novel"

    storage = Storage.open(str(tmp_path))
    log, _ = RecordLog.start(storage, 1, 0.0)
    log.append([Novel(1.0)])
    before = {path: storage.read(path) for path in segments(storage)}
    with pytest.raises(ValueError, match="event 1 of term 1 in records kind must be one of"):
        RecordLog.start(storage, 2, 2.0)
    assert {path: storage.read(path) for path in segments(storage)} == before


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 260),
    st.sampled_from([crash_before, crash_torn, crash_after]),
    st.lists(st.integers(1, 3), min_size=70, max_size=75),
    st.integers(0, 75),
)
def test_a_crash_in_any_write_loses_nothing_that_was_acknowledged(
    tmp_path_factory: pytest.TempPathFactory,
    at: int,
    fail: Any,
    sizes: list[int],
    second_term_at: int,
) -> None:
    root = tmp_path_factory.mktemp("records")
    storage = Failing.of(root, fail, at)
    acknowledged: list[ev.Event] = []
    begun: list[ev.Event] = []
    try:
        log, history = RecordLog.start(storage, 1, 0.0)
        acknowledged = history.events
        for number, size in enumerate(sizes):
            if number == second_term_at:
                log, history = RecordLog.start(storage, 2, 1.0)
                acknowledged = history.events
            begun = [*acknowledged, *stopped(size, 10 * number)]
            log.append(stopped(size, 10 * number))
            acknowledged = begun
    except Crash:
        pass
    # What was being written when the crash came may be there or not, but whole.
    survived = [e for e in found(Storage.open(str(root))) if not isinstance(e, ev.TermStarted)]
    told = [e for e in acknowledged if not isinstance(e, ev.TermStarted)]
    pending = [e for e in begun if not isinstance(e, ev.TermStarted)]
    assert survived in (told, pending)
    _, history = RecordLog.start(Storage.open(str(root)), 3, 2.0)
    assert [e for e in history.events if not isinstance(e, ev.TermStarted)] == survived


def test_after_a_refused_write_nothing_more_is_written(tmp_path: Path) -> None:
    def refuse(storage: Storage, path: str, data: bytes | None) -> None:
        assert data is not None
        Storage.write(storage, path, data)  # it may have arrived all the same
        raise OSError("timed out")

    storage = Failing.of(tmp_path, refuse, 3)
    log, _ = RecordLog.start(storage, 1, 0.0)
    log.append(stopped(1))
    with pytest.raises(OSError, match="timed out"):
        log.append(stopped(3, 10))
    with pytest.raises(OSError, match="the records of term 1 ended: timed out"):
        log.append(stopped(1, 20))
    _, history = RecordLog.start(Storage.open(str(tmp_path)), 2, 1.0)
    assert history.events[1:-1] == [*stopped(1), *stopped(3, 10)]


def test_reading_while_a_driver_merges_sees_a_prefix(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    log, _ = RecordLog.start(storage, 1, 0.0)
    written = 0

    @dataclass(frozen=True)
    class Busy(Storage):
        """Whenever a file is about to be read, the driver has written a little more."""

        def read(self, path: str) -> bytes:
            nonlocal written
            if written < 100:
                log.append(stopped(1, written))
                written += 1
            return super().read(path)

    for _ in range(60):
        seen = found(Busy(storage.filesystem, storage.root))[1:]
        assert seen == stopped(len(seen))


def test_records_in_an_object_store() -> None:
    with object_store() as store:
        storage = Storage.open(store.uri)
        log, _ = RecordLog.start(storage, 1, 0.0)
        for number in range(100):
            log.append(stopped(2, 2 * number))
        _, history = RecordLog.start(Storage.open(store.uri), 2, 1.0)
        assert [event for event in history.events if isinstance(event, ev.Stopped)] == stopped(200)
        store.requests.clear()
        assert found(storage) == history.events
        assert dict(store.requests) == {"LIST": 1, "HEAD": 1, "GET": 1}
