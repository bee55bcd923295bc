"""The study's folder behaves the same on a disk and in an object store."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune_trainer.errors import SpecError
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.storage.folder import Storage
from tests.trainer.object_store import object_store
from tests.trainer.search_studies import ASHA, study_spec
from tests.trainer.storage_contract import check_absence, check_files, check_folders


@pytest.fixture(params=["disk", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "disk":
        yield Storage.open(str(tmp_path / "study"))
    else:
        with object_store() as store:
            yield Storage.open(store.uri)


def test_what_is_written_is_read_listed_and_deleted(storage: Storage) -> None:
    check_files(storage)


def test_what_is_not_there_is_said_or_ignored(storage: Storage) -> None:
    check_absence(storage)


def test_a_folder_comes_back_whole_and_replaces_the_one_before(
    storage: Storage, tmp_path: Path
) -> None:
    check_folders(storage, tmp_path)


def test_a_thousand_files_are_listed_page_by_page() -> None:
    with object_store() as store:
        storage = Storage.open(store.uri)
        bucket = store.uri.split("//")[1].split("?")[0].split("@")[1]
        store.objects.update({f"{bucket}/many/{n:05d}": b"" for n in range(2500)})
        store.requests.clear()
        assert len(storage.files("many")) == 2500
        assert dict(store.requests) == {"LIST": 3}


def test_locations_are_told_as_people_write_them(tmp_path: Path) -> None:
    assert Storage.open(str(tmp_path)).uri("results") == f"{tmp_path}/results"
    assert Storage.open(f"file://{tmp_path}").uri() == str(tmp_path)
    with object_store() as store:
        assert Storage.open(store.uri).uri("results") == "s3://bucket/studies/one/results"
    azure = "abfss://studies@account.dfs.core.windows.net/one"
    assert Storage.open(f"{azure}/?enable_tls=true").uri("results") == f"{azure}/results"


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="ftp"):
        Storage.open("ftp://somewhere/else")


def test_a_folder_belongs_to_one_study(storage: Storage) -> None:
    claim(storage, parts_of(study_spec()))
    claim(storage, parts_of(study_spec(budget={"maxTrials": 99}, refit=False, suspend=True)))
    claim(storage, parts_of(study_spec(objective={"metric": "accuracy", "target": 0.9})))
    with pytest.raises(
        SpecError, match=r"^spec\.search\.scheduler\.type: must be .*as when the records in"
    ):
        claim(storage, parts_of(study_spec(search=ASHA)))
    with pytest.raises(SpecError, match=r"^spec\.hyperparameters\.epochs: must be 9.*\(got 2\)"):
        claim(storage, parts_of(study_spec(hyperparameters={"epochs": 2})))


def test_folder_goes_while_what_is_in_it_is_removed_as_well(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    for _ in range(20):
        for name in range(60):
            storage.write(f"checkpoints/{name}/weights", b"x")
        with ThreadPoolExecutor(4) as pool:
            inner = [pool.submit(storage.delete, f"checkpoints/{name}") for name in range(60)]
            storage.delete("checkpoints")
        assert all(done.exception() is None for done in inner)
        assert storage.files("checkpoints") == []
