"""What is kept in memory for speed stays within what the machine and the container have left."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.training import features, memory
from finetune_trainer.training.features import FeatureStore

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 GiB free, in whose folder a container's files can be."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {64 * GIB // 1024} kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


def test_the_least_of_machine_and_container_is_what_is_left(machine: Path) -> None:
    assert memory.available() == 64 * GIB
    write(machine, memory_max="max", memory_current=GIB)
    assert memory.available() == 64 * GIB
    write(machine, memory_max=8 * GIB, memory_current=3 * GIB)
    assert memory.available() == 5 * GIB
    write(machine, memory_stat=f"anon 5\ninactive_file {GIB}\nactive_file 7")
    assert memory.available() == 6 * GIB, "cached files are given back"
    write(machine, memory_current=9 * GIB, memory_stat="anon 5")
    assert memory.available() == 0


def test_the_older_kind_of_container_has_a_limit_too(machine: Path) -> None:
    (machine / "memory").mkdir()
    write(machine / "memory", memory_limit_in_bytes=4 * GIB, memory_usage_in_bytes=GIB)
    (machine / "memory" / "memory.stat").write_text(f"total_inactive_file {GIB // 2}\n")
    assert memory.available() == 3.5 * GIB


def test_features_that_the_container_has_no_room_for_are_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, made = FeatureStore(), []

    def make() -> Any:
        made.append(1)

        class Made:
            nbytes = GIB

        return Made()

    monkeypatch.setattr(features, "available", lambda: 3 * GIB)
    assert store.get("a", GIB, make) is None
    monkeypatch.setattr(features, "available", lambda: 4 * GIB)
    assert store.get("a", GIB, make) is not None
    monkeypatch.setattr(features, "available", lambda: 0)
    assert store.get("a", GIB, make) is not None, "what is there takes no more"
    assert store.get("b", GIB, make) is not None
    assert list(store.entries) == ["b"], "in the place of what was there"
    assert len(made) == 2
