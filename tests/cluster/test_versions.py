"""The API server's tests on the oldest Kubernetes that the chart admits, and on the newest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.onenode.build import ASKED, KUBERNETES, VERSIONS

pytestmark = pytest.mark.extended

_ROOT = Path(__file__).resolve().parents[2]
_OTHERS = ("test_object_stores.py", "test_prometheus.py", "onenode")
"""Tests of `tests/cluster` that no API server is part of, or that are of the node itself."""


@pytest.mark.parametrize("tier", ["quick", "slow"])
@pytest.mark.parametrize("version", [each for each in VERSIONS if each != KUBERNETES])
def test_the_tests_of_the_api_server_pass_on(version: str, tier: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", f"--tier={tier}", "-n2", "--dist=loadfile"]
    command += ["--timeout=1800", *(f"--ignore=tests/cluster/{each}" for each in _OTHERS)]
    command += ["tests/cluster", "tests/chart"]
    done = subprocess.run(command, cwd=_ROOT, env={**os.environ, ASKED: version}, check=False)
    assert done.returncode == 0
