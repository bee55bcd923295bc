"""Settings for all tests: what they draw, which tier they are of, what was not run, and that nothing stays behind."""

import os
import shutil
import signal
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

from tests.cluster.onenode.access import cluster_is_ours
from tests.cluster.onenode.cluster import Cluster
from tests.cluster.onenode.mounts import unmount_below
from tests.cluster.shared import stop_shared_server
from tests.leftovers import RUN, end_leftovers
from tests.needs import MARK

# Two busy cores are slow at times, which says nothing about the code; examples are the same in every run.
settings.register_profile(
    "project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")

KEEP_CLUSTER = "FINETUNE_KEEP_CLUSTER"
"""Set, the one-node cluster that a run started goes on after it, for the next one."""

TIERS = {
    "quick": "what `make test` runs, and `make test-node` on a node",
    "slow": "what `make test-all` runs beside them",
    "extended": "what `make test-extended` runs",
}

_FOLDERS = {"cluster": "slow", "chart": "slow", "e2e": "slow"}
"""The tier of tests that do not say theirs, by folder; `quick` elsewhere."""

_NODE = "e2e"
"""The folder whose tests run on a real node, by root."""

_TESTS = Path(__file__).parent
_LEFT = pytest.StashKey[list[str]]()


def _is_worker(config: pytest.Config) -> bool:
    """Whether this is one of pytest-xdist's processes, and not the one that started them."""
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    for tier, what in TIERS.items():
        config.addinivalue_line("markers", f"{tier}: {what}")
    config.addinivalue_line("markers", "node: runs on a real node, by root")
    config.addinivalue_line("markers", "gpu: runs on a GPU")
    config.addinivalue_line("markers", "in_memory: its `tmp_path` is in memory, if there is room")
    if _is_worker(config):
        return
    # All processes that tests start carry this variable: by it they are found at the end.
    os.environ[RUN] = tempfile.mkdtemp(prefix="finetune-tests-")
    # A run that is told to end ends what it has started.
    signal.signal(signal.SIGTERM, _interrupt)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=[*TIERS], help="run only the tests of this tier")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the tier that is asked for: a test's own marker says it, else its module's, else its folder."""
    wanted = config.getoption("--tier")
    others = []
    for item in items:
        folder = item.path.relative_to(_TESTS).parts[0]
        if folder == _NODE:
            item.add_marker("node")
        marked = (marker.name for marker in item.iter_markers() if marker.name in TIERS)
        if wanted and next(marked, _FOLDERS.get(folder, "quick")) != wanted:
            others.append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        gone = set(others)
        items[:] = [item for item in items if item not in gone]


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a group is told more than once
    raise KeyboardInterrupt


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End what the run has started: after the fixtures' own ends, and whatever comes."""
    config = session.config
    if _is_worker(config):
        return
    for told in (signal.SIGINT, signal.SIGTERM):  # it ends already
        signal.signal(told, signal.SIG_IGN)
    with ExitStack() as stack:
        if cluster_is_ours() and not os.environ.get(KEEP_CLUSTER):
            stack.callback(Cluster().down)
        stack.callback(_end_rest, config)
        stack.callback(stop_shared_server)


def _end_rest(config: pytest.Config) -> None:
    """End processes, and take off the disks of tests that were cut off."""
    config.stash[_LEFT] = end_leftovers(os.environ[RUN])
    if os.geteuid() == 0:
        unmount_below(config._tmp_path_factory.getbasetemp())  # type: ignore[attr-defined]  # pytest has no other way


def pytest_unconfigure(config: pytest.Config) -> None:
    if not _is_worker(config) and RUN in os.environ:
        shutil.rmtree(Path(os.environ.pop(RUN)), ignore_errors=True)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """`NOT RUN: 3 (Node.js), 1 (a C++ compiler)`, and the processes that tests should have ended."""
    missing: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith(MARK):
            missing[reason.removeprefix(MARK).partition(":")[0]] += 1
    if missing:
        counts = ", ".join(f"{count} ({what})" for what, count in missing.most_common())
        terminalreporter.write_line(f"NOT RUN: {counts}", yellow=True)
    if left := config.stash.get(_LEFT, []):
        terminalreporter.write_line(f"ENDED: {', '.join(left)} (left running by tests)")
