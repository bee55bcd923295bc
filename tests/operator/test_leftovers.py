"""A run of tests leaves no process: it is found by its environment, whoever its parent is by now."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from tests.leftovers import RUN, end_leftovers

_ORPHAN = """
import subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(sleep, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(child.pid, flush=True)
"""


def orphan(run: Path) -> psutil.Process:
    """A process whose parent is gone, in a session of its own, as servers are."""
    env = {**os.environ, RUN: str(run)}
    command = [sys.executable, "-c", _ORPHAN]
    said = subprocess.run(command, env=env, check=True, text=True, capture_output=True)
    return psutil.Process(int(said.stdout))


def test_the_processes_of_a_run_end_with_it_and_no_others(tmp_path: Path) -> None:
    ours, other = orphan(tmp_path / "ours"), orphan(tmp_path / "other")
    try:
        name = ours.name()
        assert end_leftovers(str(tmp_path / "ours")) == [name]
        assert not ours.is_running() or ours.status() == psutil.STATUS_ZOMBIE
        assert other.is_running()
        assert end_leftovers(str(tmp_path / "ours")) == []
    finally:
        other.kill()
