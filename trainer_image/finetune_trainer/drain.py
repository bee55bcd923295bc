"""Lets a pod's processes save before the pod ends: the preStop hook where KubeRay runs the cluster.

Under a Job the supervisor does the same on SIGTERM; KubeRay's own command would end Ray at once.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from finetune_api.pods import DRAIN_FILE, DRIVER
from finetune_trainer.supervisor import GRACE_SECONDS, listens


def main() -> int:
    """Tell this pod's slots and driver to save; return when they have, or when time is up."""
    Path(os.environ[DRAIN_FILE]).touch()
    head = os.environ.get("FQ_RAY_IP", "")  # KubeRay sets it on workers
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and (listens(head) if head else _driver_runs()):
        time.sleep(0.5)
    return 0


def _driver_runs() -> bool:
    return any(DRIVER.encode() in command for command in _commands())


def _commands() -> Iterator[list[bytes]]:
    """The command of each process of this pod."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended by now


if __name__ == "__main__":
    sys.exit(main())
