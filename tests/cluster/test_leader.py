"""Two operators and one Lease: one acts, the other takes over, and never both."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster import lives
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.cluster.proxy import Proxy

TAKEOVER_SECONDS = 60


class Replica:
    """One of the operators, with a proxy that knows what it asks for."""

    def __init__(self, server: ApiServer, folder: Path, name: str, namespace: str) -> None:
        folder.mkdir()
        self.name = name
        self.proxy = Proxy(server, folder)
        self._make: Callable[[], OperatorProcess] = lambda: OperatorProcess(
            server,
            folder / "operator.log",
            self.proxy.kubeconfig,
            FINETUNE_NAMESPACES=namespace,
            FINETUNE_LEASE=f"{namespace}/finetune",
            FINETUNE_IDENTITY=name,
        )

    def __enter__(self) -> "Replica":
        self.proxy.__enter__()
        self.process = self._make()
        self.process.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.proxy.__exit__(*error)

    def written(self, since: int = 0) -> list[str]:
        """What it has written, its Lease aside, since so many requests."""
        answers = self.proxy.answers[since:]
        return [str(call) for call, _ in answers if call.write and "/leases" not in call.path]


@pytest.fixture
def replicas(server: ApiServer, studies: Studies, tmp_path: Path) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(Replica(server, tmp_path / name, name, studies.namespace))
            for name in ("one", "two")
        ]


def _leader(studies: Studies, replicas: list[Replica]) -> tuple[Replica, Replica]:
    """Who holds the lease, and the other."""

    def holder() -> str:
        return str(studies.get("lease", "finetune").get("spec", {}).get("holderIdentity", ""))

    name = until("a leader", holder)
    leader, other = sorted(replicas, key=lambda each: each.name != name)
    return leader, other


def test_one_acts_and_the_other_takes_over_when_it_is_killed(
    studies: Studies, replicas: list[Replica]
) -> None:
    leader, other = _leader(studies, replicas)
    studies.create("tickets")
    lives.run(studies, "tickets")
    assert leader.written()
    assert not other.written()
    leader.process.kill()
    killed = time.monotonic()
    studies.create("later")
    until("a Job by the other", lambda: studies.get("job", "later-1"), TAKEOVER_SECONDS)
    print(f"took over after {time.monotonic() - killed:.1f} s")
    lives.complete(studies, "tickets")
    assert {job["metadata"]["name"] for job in studies.all("jobs")} == {"tickets-1", "later-1"}


def test_one_that_ends_as_told_hands_over_at_once(
    studies: Studies, replicas: list[Replica]
) -> None:
    leader, _ = _leader(studies, replicas)
    leader.process.stop()
    stopped = time.monotonic()
    studies.create("tickets")
    until("a Job by the other", lambda: studies.get("job", "tickets-1"), 5)
    print(f"took over after {time.monotonic() - stopped:.1f} s")


def test_one_that_was_frozen_does_not_act_when_it_thaws(
    studies: Studies, replicas: list[Replica]
) -> None:
    leader, other = _leader(studies, replicas)
    studies.create("tickets")
    lives.run(studies, "tickets")
    assert leader.process.process is not None
    os.kill(leader.process.process.pid, signal.SIGSTOP)
    until("the other to lead", lambda: _leader(studies, replicas)[0] is other, TAKEOVER_SECONDS)
    lives.suspend(studies, "tickets")
    lives.resume(studies, "tickets")
    lives.run(studies, "tickets", 2)
    before = len(leader.proxy.answers)
    os.kill(leader.process.process.pid, signal.SIGCONT)
    lives.give_up(studies, "tickets", 2)
    lives.run(studies, "tickets", 3)
    lives.complete(studies, "tickets", 3)
    assert leader.written(before) == []
    assert leader.process.process.poll() is None
    other.process.stop()
    studies.create("later")
    until("a Job by the first again", lambda: studies.get("job", "later-1"), TAKEOVER_SECONDS)
    assert [job["metadata"]["name"] for job in studies.all("jobs")] == ["later-1", "tickets-3"]
