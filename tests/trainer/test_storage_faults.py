"""Storage that is full, read-only or gone in the middle of a study: it waits, says why, goes on, loses nothing.

The faults are real: a small disk that is filled, made read-only or unmounted, and a process of an object
store that is killed and started again. All but Ray is real too: the last test has that as well.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from finetune_trainer.data.load import load
from finetune_trainer.data.steps import Account
from finetune_trainer.errors import DataError, StorageUnavailable, ToldToStop
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.runtime.broker import Broker
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState
from finetune_trainer.storage import retries as waiting
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.retries import Retries
from tests.trainer.disks import Disk, disk_of
from tests.trainer.object_store import StoreProcess
from tests.trainer.search_studies import study_spec
from tests.trainer.storage_studies import (
    STUDY,
    Fault,
    check_same,
    decisions,
    history,
    one_term,
    until_said,
)

DATASET = {"textColumns": ["t"], "labelColumn": "l"}
NEARLY = 80_000
"""Bytes that suffice for records, and not for a checkpoint."""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests here wait; the times are shorter, but not the order of things."""
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(waiting, "SILENT_SECONDS", 0.3)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with disk_of(tmp_path, 4) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreProcess]:
    made = StoreProcess(tmp_path / "store")
    yield made
    made.kill()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[ev.Event]:
    location = str(tmp_path_factory.mktemp("undisturbed"))
    asyncio.run(one_term(STUDY, location))
    return history(location)


FULL = "cannot be written: No space left on device; waiting"
READ_ONLY = "cannot be written: Read-only file system; waiting"
GONE = "records/study.json is not there; waiting"


@pytest.mark.slow  # a disk is mounted, by root
@pytest.mark.parametrize(
    ("kind", "at"),
    [("full", 7), ("nearly full", 7), ("read-only", 7), ("gone", 7), ("full", 0)],
    ids=lambda value: {7: "in the search", 0: "in the refit"}.get(value, value),
)
def test_a_disk_that_fails_is_waited_for(
    kind: str, at: int, disk: Disk, undisturbed: list[ev.Event]
) -> None:
    fault = {
        "full": Fault(disk.fill, disk.free, FULL),
        "nearly full": Fault(partial(disk.fill, NEARLY), disk.free, FULL),
        "read-only": Fault(partial(disk.make, "ro"), partial(disk.make, "rw"), READ_ONLY),
        "gone": Fault(disk.go_away, disk.come_back, GONE),
    }[kind]
    fault.at = at
    asyncio.run(one_term(STUDY, str(disk.place), fault=fault))
    check_same(str(disk.place), undisturbed)
    if at:
        check_that_time_stood_still(history(str(disk.place)))


def check_that_time_stood_still(events: list[ev.Event]) -> None:
    """Where records could be written, too: the only slot waited."""
    state = StudyState.replayed(Problem.of(STUDY), events)
    waited = sum(event.seconds for event in events if isinstance(event, ev.Waited))
    assert state.ended is not None
    assert waited > 1
    assert state.elapsed(0.0) == pytest.approx(state.ended.time - events[0].time - waited)


FORBIDDEN = "cannot be written: AWS Error ACCESS_DENIED during PutObject"
NO_ROOM = "cannot be written: AWS Error UNKNOWN (HTTP status 507)"


@pytest.mark.parametrize("kind", ["killed", "frozen", "forbidden", "nearly full"])
def test_an_object_store_that_fails_is_waited_for(
    kind: str,
    store: StoreProcess,
    undisturbed: list[ev.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "frozen":
        monkeypatch.setattr("finetune_trainer.runtime.broker.SLOW_SECONDS", 0.5)
    refuse, accept = partial(partial, store.refuse), partial(store.refuse, "")
    fault = {
        "killed": Fault(store.kill, store.start, "cannot be written: AWS Error NETWORK_CONNECTION"),
        "frozen": Fault(store.freeze, store.thaw, "one does not answer; waiting"),
        "forbidden": Fault(refuse("403 AccessDenied"), accept, FORBIDDEN),
        "nearly full": Fault(refuse(f"507 Full {NEARLY}"), accept, NO_ROOM),
    }[kind]
    fault.at = 7
    store.start()
    asyncio.run(one_term(STUDY, store.uri, fault=fault))
    check_same(store.uri, undisturbed)


@pytest.mark.slow  # a disk is mounted, by root
@pytest.mark.parametrize("free", [0, NEARLY], ids=["full", "nearly full"])
def test_told_to_end_while_it_waits_it_ends_at_once_and_goes_on_later(
    free: int, disk: Disk, undisturbed: list[ev.Event]
) -> None:
    fault = Fault(partial(disk.fill, free), disk.free, FULL, at=7)

    async def drained() -> None:
        began = time.monotonic()
        await one_term(STUDY, str(disk.place), 1, fault, drain=True)
        assert time.monotonic() - began < 10

    asyncio.run(drained())
    fault.mend()
    asyncio.run(one_term(STUDY, str(disk.place), 2))
    events = history(str(disk.place))
    trials, started, *end = decisions(STUDY, events)
    expected, first, *expected_end = decisions(STUDY, undisturbed)
    assert (trials, end) == (expected, expected_end)
    again = [n for n in range(1, len(started)) if started[n] == started[n - 1]]
    assert len(again) == 1, "what was cut off was begun once more"
    assert [item for n, item in enumerate(started) if n not in again] == first


def test_a_study_begins_when_its_storage_is_there(store: StoreProcess) -> None:
    """The server may come later than the study, and refuse at first."""
    store.refuse("403 AccessDenied")
    said: list[str] = []
    retries = Retries(said.append)
    begun = threading.Thread(
        target=lambda: claim(Storage.open(store.uri, retries), parts_of(STUDY)), daemon=True
    )
    begun.start()

    def until(words: str) -> None:
        deadline = time.monotonic() + 240
        while not any(words in message for message in said):
            assert time.monotonic() < deadline, said
            assert begun.is_alive()
            time.sleep(0.05)

    until("storage s3://bucket/studies/one cannot be read: ")
    store.start()
    until("storage s3://bucket/studies/one cannot be written: ")
    assert "ACCESS_DENIED" in said[-1]
    store.refuse("")
    begun.join(240)
    assert said[-1] == ""
    claim(Storage.open(store.uri), parts_of(STUDY))


@pytest.mark.slow  # a disk is mounted, by root
@pytest.mark.parametrize("drain", [False, True], ids=["until it is mended", "until it is drained"])
def test_a_driver_that_starts_waits_to_read_and_to_begin(disk: Disk, drain: bool) -> None:
    asyncio.run(one_term(STUDY, str(disk.place)))
    before = history(str(disk.place))
    disk.make("ro")

    async def begin() -> bool:
        broker = Broker(Problem.of(STUDY), STUDY.budget, str(disk.place), 2)
        begun = asyncio.create_task(broker.begin())
        await until_said(broker, STUDY, READ_ONLY)
        if drain:
            await broker.drain()
        else:
            disk.make("rw")
        return await begun

    assert asyncio.run(begin()) is not drain
    after = history(str(disk.place))
    assert after[: len(before)] == before
    assert len(after) == len(before) + (not drain)


def test_data_whose_server_is_gone_are_not_wrong(
    store: StoreProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server and its credentials are told as a study's Secret does."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    files = {"train": "s3://bucket/rows.csv"}
    dataset = study_spec(dataset={**DATASET, "files": files}).dataset
    with pytest.raises(StorageUnavailable, match="NETWORK_CONNECTION"):
        load(dataset, tmp_path, Account())
    store.start()
    with pytest.raises(DataError, match="must be a file that exists"):
        load(dataset, tmp_path, Account())


def test_waiting_ends_when_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    retries = Retries(should_stop=lambda: True)
    storage = Storage.open(str(tmp_path / "file" / "study"), retries)
    with pytest.raises(ToldToStop, match="cannot be written: Not a directory"):
        storage.write("records/study.json", b"{}")


def test_a_checkpoint_that_is_not_there_is_no_reason_to_wait(tmp_path: Path) -> None:
    retries = Retries(should_stop=lambda: True)
    storage = Storage.open(str(tmp_path), retries)
    claim(storage, parts_of(STUDY))
    with pytest.raises(FileNotFoundError):
        storage.read("checkpoints/1")
    (tmp_path / "records" / "study.json").unlink()
    with pytest.raises(ToldToStop, match=r"records/study\.json is not there"):
        storage.read("checkpoints/1")


@pytest.mark.slow  # a disk is mounted, by root
def test_a_checkpoint_that_does_not_fit_says_so(disk: Disk) -> None:
    """Neither safetensors nor torch raises an error of the operating system."""
    import torch  # slow

    from finetune_trainer.training.checkpoint import Checkpoint

    model = torch.nn.Linear(256, 256)  # 263 KB, its optimizer has twice that
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 256)).sum().backward()
    optimizer.step()

    def save(folder: Path) -> None:
        Checkpoint(folder).write(dict(model.named_parameters()), optimizer, {}, {})

    storage = Storage.open(str(disk.place), Retries(should_stop=lambda: True))
    claim(storage, parts_of(STUDY))
    for free in (0, 100_000, 300_000, 500_000):
        disk.fill(free)
        with pytest.raises(ToldToStop, match="cannot be written: No space left on device"):
            storage.store("checkpoints/1", save)
        assert not storage.files("checkpoints"), "what was written of it gives its space back"
        disk.free()
    storage.store("checkpoints/1", save)
    assert len(storage.files("checkpoints/1")) == 3
