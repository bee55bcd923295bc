"""The operator is killed (SIGKILL) before and after every write of a study's life, and started again.

A life has four attempts: one that is suspended, one whose driver ends without a result, one that completes, and one
after that, because the limit that had ended the study is loosened.
Its writes are counted as they come: the n-th write of one life is cut off before the API server hears of it,
of the next life after it has; so on until a life ends before its n-th write. What is left afterwards must be
what an undisturbed life leaves.
"""

import itertools
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import lives
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.cluster.proxy import Break, Call, Proxy

pytestmark = pytest.mark.extended

LANES = 3
"""Operators that live at the same time, each with a namespace of its own."""


@dataclass
class Lane:
    """One operator behind a proxy that kills it at one write."""

    server: ApiServer
    folder: Path
    number: int
    written: int = 0
    fatal: int = 0
    after: bool = False
    cut: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    again: threading.Event = field(default_factory=threading.Event)
    """The operator that was killed has been started again."""

    def __enter__(self) -> "Lane":
        namespace = f"kills-{self.number}"
        self.studies = Studies(self.server, namespace)
        self.proxy = Proxy(self.server, self.folder, self._rule)
        self.proxy.__enter__()
        self.operator = OperatorProcess(
            self.server,
            self.folder / "operator.log",
            self.proxy.kubeconfig,
            FINETUNE_NAMESPACES=namespace,
        )
        self.operator.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.operator.stop()
        self.proxy.__exit__(*error)
        self.studies.close()

    def _rule(self, call: Call) -> Break | None:
        if not call.write:
            return None
        with self.lock:
            self.written += 1
            if self.written != self.fatal:
                return None
            self.cut = re.sub(r"study-[0-9]+(-after|-before)", "study", str(call))
        return Break(self.after, self._kill)

    def _kill(self) -> None:
        self.operator.kill()
        self.operator.start()
        self.again.set()

    def case(self, fatal: int, after: bool) -> tuple[str, dict[str, Any], int]:
        """Live with a kill at the write of that number.

        Returns what was cut off (empty if the life had fewer writes), what remains, and how many Jobs were made.
        """
        name = f"study-{fatal}-{'after' if after else 'before'}"
        before = len(self.proxy.answers)
        self.again.clear()
        with self.lock:
            self.written, self.fatal, self.after, self.cut = 0, fatal, after, ""
        lives.whole(self.studies, name)
        with self.lock:
            self.fatal = 0  # from here on no write is cut off any more
        if self.cut:  # perhaps just now, by a write after the last one that the life waits for
            assert self.again.wait(60), f"the operator was not started again, {self.cut}"
        until(f"the rest of {name}", lambda: f"{name}-winner-2" in _names(self.studies))
        left = lives.remains(self.studies, name)
        made = [
            call
            for call, code in self.proxy.answers[before:]
            if call.write and call.method == "POST" and call.path.endswith("/jobs") and code == 201
        ]
        self.studies.done("DELETE", "fts", name)
        return self.cut, left, len(made)


def _names(studies: Studies) -> set[str]:
    return {one["metadata"]["name"] for one in studies.all("configmaps")}


@pytest.fixture
def lanes(server: ApiServer, tmp_path: Path) -> Iterator[list[Lane]]:
    with ExitStack() as stack:
        yield [stack.enter_context(_lane(server, tmp_path, number)) for number in range(LANES)]


def _lane(server: ApiServer, folder: Path, number: int) -> Lane:
    own = folder / f"lane-{number}"
    own.mkdir()
    return Lane(server, own, number)


def test_operator_killed_before_and_after_each_write_of_a_life(lanes: list[Lane]) -> None:
    _, undisturbed, jobs = lanes[0].case(0, after=False)
    assert jobs == 4
    cases = ((fatal, after) for fatal in itertools.count(1) for after in (False, True))
    cut: Counter[str] = Counter()
    lock = threading.Lock()

    def serve(lane: Lane) -> None:
        while True:
            with lock:
                fatal, after = next(cases)
            what, left, made = lane.case(fatal, after)
            if not what:
                return
            case = f"{'after' if after else 'before'} write {fatal}, {what}"
            with lock:
                cut[case] += 1
            assert left == undisturbed, case
            assert made == 4, f"{made} Jobs for 4 attempts, {case}"
            assert lane.operator.process is not None
            assert lane.operator.process.poll() is None, f"the operator has ended, {case}"

    with ThreadPoolExecutor(LANES) as pool:
        for done in [pool.submit(serve, lane) for lane in lanes]:
            done.result()
    print(f"{len(cut)} kills:", *sorted(cut), sep="\n")
    assert len(cut) > 60
