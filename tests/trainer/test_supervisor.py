"""What pod 0 and the other pods run, in what order, and with which exit code they end; Ray and the driver are scripts."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_api.cluster import ClusterSpec
from finetune_api.pods import DRAIN_FILE
from finetune_trainer import supervisor
from finetune_trainer.environment import PodEnvironment
from finetune_trainer.supervisor import Supervisor

POD = PodEnvironment(
    study_file=Path("/study.json"),
    storage="/storage",
    base=Path("/"),
    head="127.0.0.1",
    progress="progress",
    namespace="nlp",
    job_uid="job",
    study_uid="study",
    index=0,
)

PYTHON = """#!/bin/sh
# Plays python: `python -m <module> <arguments>`.
folder=$(dirname "$0")
echo "$@" >> "$folder/calls"
case "$2" in
    ray.scripts.scripts) script="$folder/ray" ;;
    finetune_trainer.driver) script="$folder/driver" ;;
    *) exit 99 ;;
esac
. "$script"
"""

WAITS = "for _ in $(seq 6000); do sleep 0.02; done; exit 9"
"""Two minutes, which nothing here takes: a script whose supervisor is broken ends too."""

STAYS = f"trap 'exit 0' TERM; {WAITS}"


class Hasty(threading.Event):
    """An event for which nobody waits long; it says for how long they would have."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        return super().wait(min(timeout, 0.02))


class Place:
    """A folder of scripts that are started in the place of Ray and the driver."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.python = folder / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        self.play("ray", STAYS)
        self.play("driver", STAYS)

    def play(self, who: str, script: str) -> None:
        (self._folder / who).write_text(f"{script}\n")

    def until_called(self, module: str) -> str:
        """A script that ends well once that module was started."""
        return (
            f"until grep -qs -- '-m {module}' {self._folder / 'calls'}; do sleep 0.02; done; exit 0"
        )

    def calls(self, module: str = "") -> list[str]:
        """The arguments of what was started, in order."""
        path = self._folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.removeprefix("-m ") for line in lines if module in line]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Scripts instead of Ray and the driver, a port of its own, and afterwards the signal handler from before."""
    place = Place(tmp_path)
    monkeypatch.setattr(sys, "executable", str(place.python))
    monkeypatch.setattr(supervisor, "_RAY", (str(place.python), *supervisor._RAY[1:]))
    monkeypatch.setenv(DRAIN_FILE, "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handler = signal.signal(signal.SIGTERM, unheard)
    yield place
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Ray's head answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        monkeypatch.setattr(supervisor, "RAY_PORT", server.getsockname()[1])
        yield server


@pytest.fixture
def no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers on the port of Ray's head."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(supervisor, "RAY_PORT", server.getsockname()[1])


def of(index: int = 0, resources: dict[str, str] | None = None) -> tuple[Supervisor, Hasty]:
    """A supervisor that does not wait, of a pod with these resources."""
    made = Supervisor(replace(POD, index=index), ClusterSpec(resources_per_worker=resources or {}))
    made.told_to_end = hasty = Hasty()
    return made, hasty


def soon(true: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Do it as soon as that is true."""

    def wait() -> None:
        deadline = time.monotonic() + 240
        while not true() and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def unheard(*_: object) -> None:
    raise AssertionError("nobody hears SIGTERM")


# Pod 0.


@pytest.mark.parametrize("code", [0, 42])
def test_the_pod_ends_as_its_driver_says_it_is_over(
    code: int, place: Place, head: socket.socket
) -> None:
    """0: the study is finished. 42: its user must mend it; the Job's policy for failed pods has that number."""
    place.play("driver", f"exit {code}")
    made, hasty = of()
    assert made.run() == code
    assert place.calls("driver") == ["finetune_trainer.driver"]
    assert hasty.waits == []


def test_a_driver_that_crashes_is_started_again_ever_later_and_then_the_pod_is_given_up(
    place: Place, head: socket.socket
) -> None:
    place.play("driver", "exit 3")
    made, hasty = of()
    assert made.run() == 1
    assert len(place.calls("driver")) == 5
    assert hasty.waits == [2, 4, 8, 16]


@pytest.mark.parametrize("crash", ["exit 1", "exit 2", "exit 41", "exit 43", "kill -KILL $$"])
def test_whatever_else_a_driver_ends_with_is_a_crash(
    crash: str, place: Place, head: socket.socket, tmp_path: Path
) -> None:
    """As a driver that was told to end by nobody this pod knows of."""
    place.play("driver", f'test -e "{tmp_path}/again" && exit 0; touch "{tmp_path}/again"; {crash}')
    made, _ = of()
    assert made.run() == 0
    assert len(place.calls("driver")) == 2


def test_told_to_end_it_tells_slots_and_driver_and_waits_for_the_driver(
    place: Place, head: socket.socket, tmp_path: Path
) -> None:
    saves = f'trap \'test -e "{tmp_path}/finetune-drain" && sleep 0.2; touch "{tmp_path}/saved"; exit 143\' TERM'
    place.play("driver", f'{saves}; touch "{tmp_path}/there"; {WAITS}')
    made, _ = of()
    assert os.environ[DRAIN_FILE] == str(tmp_path / "finetune-drain")
    thread = soon((tmp_path / "there").exists, sigterm)
    assert made.run() == 143
    thread.join()
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "finetune-drain").exists()
    assert len(place.calls("driver")) == 1


@pytest.mark.parametrize("code", [0, 42])
def test_a_driver_that_is_over_when_it_is_told_to_end_has_the_last_word(
    code: int, place: Place, head: socket.socket, tmp_path: Path
) -> None:
    place.play(
        "driver",
        f'trap "exit {code}" TERM; touch "{tmp_path}/there"; {WAITS}',
    )
    made, _ = of()
    thread = soon((tmp_path / "there").exists, sigterm)
    assert made.run() == code
    thread.join()


def test_a_signal_that_comes_before_the_driver_reaches_it(
    place: Place, head: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.play("driver", f"trap 'exit 143' TERM; {WAITS}")
    made, _ = of()
    start = subprocess.Popen

    def late(command: list[str]) -> "subprocess.Popen[bytes]":
        if "finetune_trainer.driver" in command:
            made.on_sigterm(signal.SIGTERM, None)  # there is no driver to tell yet
        return start(command)

    monkeypatch.setattr(subprocess, "Popen", late)
    assert made.run() == 143
    assert made.driver is not None
    assert made.driver.poll() in (143, -signal.SIGTERM), "told, before it could listen or after"


def test_without_its_head_ray_the_driver_is_ended_and_the_pod_fails(
    place: Place, head: socket.socket, tmp_path: Path
) -> None:
    place.play(
        "ray", f'for _ in $(seq 500); do test -e "{tmp_path}/there" && exit 0; sleep 0.02; done'
    )
    place.play("driver", f'touch "{tmp_path}/there"; {STAYS}')
    made, _ = of()
    assert made.run() == 1
    assert made.driver is not None
    assert made.driver.poll() is not None


def test_the_driver_waits_for_ray(place: Place, no_head: None) -> None:
    place.play("ray", "exit 7")
    made, _ = of()
    assert made.run() == 1
    assert place.calls("driver") == []


def test_told_to_end_before_ray_is_there(place: Place, no_head: None) -> None:
    made, _ = of()
    thread = soon(lambda: bool(place.calls("ray")), sigterm)
    assert made.run() == 143
    thread.join()
    assert place.calls("driver") == []


def test_ray_ends_with_the_pod(place: Place, head: socket.socket, tmp_path: Path) -> None:
    place.play("ray", f"trap 'touch \"{tmp_path}/ended\"; exit 0' TERM; {WAITS}")
    place.play("driver", "sleep 0.2; exit 0")
    made, _ = of()
    assert made.run() == 0
    assert (tmp_path / "ended").exists()


def test_a_drain_file_of_the_container_before_counts_no_more(place: Place, tmp_path: Path) -> None:
    """The pod may have restarted its container, with the same folder."""
    (tmp_path / "finetune-drain").touch()
    made, _ = of()
    assert not made.drain_file.exists()


@pytest.mark.parametrize(
    ("resources", "options"),
    [
        ({}, "--num-cpus=1 --num-gpus=0 --disable-usage-stats"),
        ({"cpu": "2500m"}, "--num-cpus=3 --num-gpus=0 --disable-usage-stats"),
        (
            {"cpu": "4", "nvidia.com/gpu": "2", "memory": "1Gi"},
            "--num-cpus=4 --num-gpus=2 --disable-usage-stats --object-store-memory=214748364",
        ),
        (
            {"memory": "64Gi"},
            "--num-cpus=1 --num-gpus=0 --disable-usage-stats --object-store-memory=2000000000",
        ),
        (
            {"memory": "100Mi"},
            "--num-cpus=1 --num-gpus=0 --disable-usage-stats --object-store-memory=100000000",
        ),
    ],
)
def test_ray_is_told_what_the_pod_has(
    resources: dict[str, str], options: str, place: Place, head: socket.socket
) -> None:
    place.play("driver", place.until_called("ray"))
    made, _ = of(resources=resources)
    assert made.run() == 0
    (call,) = place.calls("ray")
    where = f"--head --port={supervisor.RAY_PORT} --include-dashboard=false"
    assert call == f"ray.scripts.scripts start {where} --block {options}"


# Other pods.


def test_a_worker_joins_the_head_and_the_next_one(place: Place, head: socket.socket) -> None:
    place.play("ray", "exit 0")
    made, _ = of(index=1)
    thread = soon(lambda: len(place.calls()) >= 3, sigterm)
    assert made.run() == 143
    thread.join()
    assert {call.split(" --block")[0] for call in place.calls()} == {
        f"ray.scripts.scripts start --address=127.0.0.1:{supervisor.RAY_PORT}"
    }


def test_a_worker_without_a_head_waits_until_it_is_told_to_end(place: Place, no_head: None) -> None:
    made, hasty = of(index=1)
    thread = soon(lambda: len(hasty.waits) > 2, sigterm)
    assert made.run() == 143
    thread.join()
    assert place.calls() == []


@pytest.mark.parametrize("who", ["ray", "head"])
def test_a_worker_lets_its_slots_save_while_ray_and_its_head_are_there(
    who: str, place: Place, head: socket.socket, tmp_path: Path
) -> None:
    """Ray must not end before the slots have saved; without a head there is nobody to save for."""
    told, left = tmp_path / "told", tmp_path / "left"
    place.play(
        "ray",
        f'trap \'touch "{told}"; exit 0\' TERM; for _ in $(seq 500); do test -e "{left}" && exit 0; sleep 0.02; done',
    )
    made, _ = of(index=1)
    early: list[bool] = []

    def end() -> None:
        sigterm()
        time.sleep(0.7)
        early.append(told.exists())
        head.close() if who == "head" else left.touch()

    thread = soon(lambda: bool(place.calls()), end)
    assert made.run() == 143
    thread.join()
    assert made.drain_file.exists()
    assert early == [False]
    assert told.exists() is (who == "head")


def test_slots_have_only_so_long_to_save(
    place: Place, head: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = of(index=1)
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 0.0)
    thread = soon(lambda: bool(place.calls()), sigterm)
    began = time.monotonic()
    assert made.run() == 143
    thread.join()
    assert time.monotonic() - began < 5
