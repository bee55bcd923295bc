"""What a study's folder must do, wherever it is: on a disk or in a store of whoever made it."""

from pathlib import Path

import pytest

from finetune_trainer.storage.folder import Storage


def check_files(storage: Storage) -> None:
    """What is written is read, listed and deleted."""
    for path in ("records/000001/b", "records/000001/a", "results/t.csv"):
        storage.write(path, path.encode())
    assert storage.read("records/000001/a") == b"records/000001/a"
    assert storage.files("records") == ["records/000001/a", "records/000001/b"]
    storage.write("records/000001/a", b"")
    assert storage.read("records/000001/a") == b""
    storage.delete("records/000001/a")
    assert storage.files("records") == ["records/000001/b"]
    storage.delete("records")
    assert storage.files("records") == []
    assert storage.files("") == ["results/t.csv"]


def check_absence(storage: Storage) -> None:
    """What is not there is said or ignored."""
    with pytest.raises(FileNotFoundError):
        storage.read("nothing")
    storage.delete("nothing")
    assert storage.files("nothing") == []


def check_folders(storage: Storage, scratch: Path, times: int = 1) -> None:
    """A folder comes back whole and replaces the one before; its file has `times` times three letters."""
    for version in ("one", "two"):
        folder = scratch / version / "inner"
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(version.encode() * times)
        storage.upload(folder.parent, "checkpoints/3/1")
    found = storage.download("checkpoints/3/1", scratch / "fetched")
    assert (found / "inner" / "model").read_bytes() == b"two" * times
    storage.delete("checkpoints/3")
    assert storage.files("checkpoints") == []
