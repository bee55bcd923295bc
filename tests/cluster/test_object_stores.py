"""A study's folder in the object stores of others: what is written is there, and a study goes on after a crash."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.storage import retries as waiting
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.locations import AZURE_KEY, open_filesystem
from finetune_trainer.storage.retries import Retries
from tests.cluster import azurite
from tests.cluster.object_servers import BUCKET, ObjectServer, object_server
from tests.cluster.operator_process import until
from tests.needs import ToolMissing, not_run
from tests.trainer.storage_contract import check_absence, check_files, check_folders
from tests.trainer.storage_studies import (
    STUDY,
    Fault,
    check_same,
    counted,
    decisions,
    history,
    one_term,
)

MORE_THAN_A_PAGE = 1_030
"""Objects; a listing has a thousand at a time."""

LARGE = 12_000_000
"""Times three bytes, which go up in more than one part."""


@pytest.fixture(params=["s3", "gs"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectServer]:
    with object_server(request.param, tmp_path / "server") as found:
        yield found


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """Azurite. It keeps in memory for seconds which blobs there are: killed, it has forgotten some."""
    monkeypatch.setenv(AZURE_KEY, azurite.ACCOUNT_KEY)
    try:
        with object_server("abfs", tmp_path / "server") as found:
            filesystem, _ = open_filesystem(found.uri())
            filesystem.create_dir(BUCKET)
            yield found
    except ToolMissing as missing:
        not_run(missing)


def test_study_in_azures_stand_in_is_as_one_on_a_disk(azure: ObjectServer, tmp_path: Path) -> None:
    storage = Storage.open(azure.uri("other"))
    check_absence(storage)
    check_files(storage)
    check_folders(storage, tmp_path, LARGE)
    budget = STUDY.budget.model_copy(update={"max_trials": 2})
    small = STUDY.model_copy(update={"budget": budget})  # a write takes Azurite a tenth of a second
    undisturbed = str(tmp_path / "undisturbed")
    asyncio.run(one_term(small, undisturbed))
    asyncio.run(one_term(small, azure.uri()))
    there, expected = history(azure.uri()), history(undisturbed)
    assert decisions(small, there) == decisions(small, expected)
    assert counted(there) == counted(expected)


def test_folder_in_a_store_is_as_one_on_a_disk(server: ObjectServer, tmp_path: Path) -> None:
    storage = Storage.open(server.uri())
    check_absence(storage)
    with pytest.raises(FileNotFoundError):
        storage.download("checkpoints/1", tmp_path / "nothing")
    check_files(storage)
    check_folders(storage, tmp_path, LARGE)


def test_more_files_than_a_listing_has_at_once_are_found(server: ObjectServer) -> None:
    storage = Storage.open(server.uri())
    names = [f"records/000001/{number:06}" for number in range(MORE_THAN_A_PAGE)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write(name, b"x"), names))
    assert storage.files("records") == names


def test_what_is_written_while_the_store_is_killed_again_and_again_is_there_and_whole(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.1)
    storage = Storage.open(server.uri(), Retries())
    claim(storage, parts_of(STUDY))
    rng, over = random.Random(7), threading.Event()

    def write(folder: int) -> list[str]:
        """Kills come at any moment, also in the middle of a file."""
        done: list[str] = []
        while not over.is_set():
            done.append(f"checkpoints/{folder}/{len(done):05}")
            storage.write(done[-1], done[-1].encode() * 30_000)
        return done

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, folder) for folder in range(3)]
        for _ in range(5):
            time.sleep(rng.uniform(0.3, 1.5))
            server.service.kill()
            server.start()
        over.set()
    written = [path for writer in writers for path in writer.result()]
    # Google's stand-in lists nothing while one of its objects lacks its attributes, as after a kill between the two.
    until("the whole list", lambda: storage.files("checkpoints"))
    assert storage.files("checkpoints") == written
    for path in written:
        assert storage.read(path) == path.encode() * 30_000


def test_study_whose_store_is_killed_waits_and_loses_nothing(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(waiting, "SILENT_SECONDS", 0.3)
    undisturbed = str(tmp_path / "undisturbed")
    asyncio.run(one_term(STUDY, undisturbed))
    # Google's client tries for ten seconds before it says what is wrong.
    says = f"storage {server.scheme}://"
    fault = Fault(server.service.kill, server.start, says, at=7)
    asyncio.run(one_term(STUDY, server.uri(), fault=fault))
    check_same(server.uri(), history(undisturbed))
