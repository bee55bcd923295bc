"""Which cluster a test runs on: the one that E2E_KUBECONFIG names, else this machine's own."""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.onenode.cluster import Cluster
from tests.cluster.onenode.packages import NODE, require
from tests.leftovers import RUN
from tests.needs import ToolMissing, not_run


@dataclass(frozen=True)
class Access:
    """A cluster's kubeconfig; `cluster` is None if it is not this machine's own."""

    kubeconfig: Path
    cluster: Cluster | None


def access() -> Access:
    """The cluster to test on, started if it is this machine's own and does not run.

    A machine that cannot have one skips the test, or fails it where CI is set.
    """
    named = os.environ.get("E2E_KUBECONFIG")
    if named:
        return Access(Path(named), None)
    cluster = Cluster()
    try:
        require(NODE)
        if RUN in os.environ and not cluster.folder.exists():
            _ours().touch()
        return Access(cluster.up(), cluster)
    except ToolMissing as missing:
        not_run(missing)


def cluster_is_ours() -> bool:
    """Whether this run of tests has started this machine's cluster, and so has to end it."""
    return _ours().exists()


def _ours() -> Path:
    return Path(os.environ[RUN]) / "cluster"
