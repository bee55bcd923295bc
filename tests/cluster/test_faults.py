"""What may happen to an operator: a capricious API server, one that is away, jumping clocks, meddling people.

After each case there are exactly the children that an undisturbed life leaves, and the operator is alive.
`FINETUNE_FAULT_SEEDS=0,1,2` runs more of the random ones.
"""

import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import lives
from tests.cluster.loopback import free_port, page
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.cluster.proxy import Answer, Break, Call, Fault, Proxy, Stall, Watch, expired
from tests.cluster.shared import CRD

SEEDS = [int(seed) for seed in os.environ.get("FINETUNE_FAULT_SEEDS", "7").split(",")]
LIVES = 12
"""Studies that live at the same time under one seed."""

AWAY_SECONDS = 60
"""How long the API server is gone."""


@pytest.fixture
def operator(server: ApiServer, tmp_path: Path) -> Iterator[OperatorProcess]:
    process = OperatorProcess(server, tmp_path / "operator.log")
    process.start()
    yield process
    assert process.process is not None
    assert process.process.poll() is None, "the operator has ended by itself"
    process.stop()


# -- a capricious API server


class Caprice:
    """Every second watch goes wrong, and while it is `on` one request in 20, by a seed."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.on = False

    def __call__(self, call: Call) -> Fault | None:
        with self._lock:
            if self._rng.random() > (1 / 2 if call.watch else self.on / 20):
                return None
            name, fault = self._watch() if call.watch else self._request(call)
            self.counts[name] += 1
            return fault

    def _watch(self) -> tuple[str, Fault]:
        rng = random.Random(self._rng.random())
        events = rng.randint(1, 6)
        seen = iter(range(1_000_000))
        faults: dict[str, Fault] = {
            "watch dropped": Watch(events=events),
            "watch expired (410)": Watch(
                lambda line: expired() if next(seen) >= events else [line], events=events + 1
            ),
            "events twice": Watch(lambda line: [line, line]),
            "events late": Watch(delay=lambda: rng.uniform(0, 0.5)),
        }
        return self._rarest(faults)

    def _request(self, call: Call) -> tuple[str, Fault]:
        faults: dict[str, Fault] = {
            "429": Answer(429, "TooManyRequests", {"Retry-After": "1"}),
            "500": Answer(500, "InternalError"),
            "503": Answer(503, "ServiceUnavailable"),
            "reset before": Break(),
            "reset after": Break(after=True),
            "stall": Stall(5),
        }
        if call.write:
            # As a quota answers that is counted at the same moment, and as one that is used up.
            faults |= {"409": Answer(409, "Conflict"), "403": Answer(403, "Forbidden")}
        if call.path.endswith(("/status", "/events")):
            faults["422"] = Answer(422, "Invalid")
        return self._rarest(faults)

    def _rarest(self, faults: dict[str, Fault]) -> tuple[str, Fault]:
        """That of the possible ones which has come least often."""
        name = min(faults, key=lambda name: (self.counts[name], self._rng.random()))
        return name, faults[name]


_ALL = {
    *("409", "403", "422", "429", "500", "503", "reset before", "reset after", "stall"),
    *("watch dropped", "watch expired (410)", "events twice", "events late"),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_studies_live_through_a_capricious_api_server(
    seed: int, server: ApiServer, tmp_path: Path
) -> None:
    studies = Studies(server, f"caprice-{seed}")
    caprice = Caprice(seed)
    names = [f"study-{number}" for number in range(LIVES)]
    with Proxy(server, tmp_path, caprice) as proxy:
        log = tmp_path / "operator.log"
        environment = {"FINETUNE_NAMESPACES": studies.namespace}
        operator = OperatorProcess(server, log, proxy.kubeconfig, **environment)
        operator.start()
        try:
            lives.whole(studies, "undisturbed")
            undisturbed = lives.remains(studies, "undisturbed")
            caprice.on = True
            with ThreadPoolExecutor(LIVES) as pool:
                for life in [pool.submit(lives.whole, studies, name) for name in names]:
                    life.result()
            caprice.on = False
            for name in names:
                until("the winner", partial(studies.get, "configmap", f"{name}-winner-2"))
            left = [lives.remains(studies, name) for name in names]
            assert operator.process is not None
            assert operator.process.poll() is None
        finally:
            operator.stop()
    print(f"seed {seed}, {LIVES} lives, {sum(caprice.counts.values())} faults: {caprice.counts}")
    for name, one in zip(names, left, strict=True):
        assert one == undisturbed, name
    assert set(caprice.counts) == _ALL, caprice.counts
    studies.kubectl("delete", "fts", "--all")
    studies.close()


# -- an API server that is away, and what it forgets


@pytest.mark.parametrize("what", ["API server", "etcd"])
def test_study_goes_on_after_the_control_plane_was_away(
    what: str, server: ApiServer, operator: OperatorProcess, studies: Studies
) -> None:
    studies.create("tickets")
    lives.run(studies, "tickets")
    if what == "etcd":
        server.etcd.kill()
        server.etcd.start()
    else:
        server.apiserver.kill()
        time.sleep(AWAY_SECONDS)
        server.apiserver.start()
    server.wait_ready()
    assert server.controller_manager is not None
    server.controller_manager.stop()  # its own patience is not the question
    server.controller_manager.start()
    lives.complete(studies, "tickets")
    assert [job["metadata"]["name"] for job in studies.all("jobs")] == ["tickets-1"]
    studies.create("later")
    lives.run(studies, "later")


def test_crd_is_deleted_and_made_again(
    server: ApiServer, operator: OperatorProcess, studies: Studies
) -> None:
    studies.create("first")
    until("a Job", lambda: studies.get("job", "first-1"))
    studies.kubectl("delete", "fts", "first")
    # The garbage collector needs half a minute to know a new kind.
    until("the Job to go", lambda: not studies.all("jobs"), meanwhile=studies.remove_pods)
    studies.create("tickets")
    lives.run(studies, "tickets")
    server.kubectl("delete", "crd", "finetunestudies.finetune.dev")
    until("the Job to go", lambda: not studies.all("jobs"), 120)
    server.serve(CRD, "finetune.dev/v1alpha1/finetunestudies")
    until("the new kind", lambda: studies.request("GET", "fts")[0] == 200)
    studies.create("tickets")
    until("its own Job", lambda: studies.get("job", "tickets-1"), meanwhile=studies.remove_pods)
    lives.run(studies, "tickets")
    lives.complete(studies, "tickets")
    uid = studies.get("fts", "tickets")["metadata"]["uid"]
    assert studies.get("job", "tickets-1")["metadata"]["ownerReferences"][0]["uid"] == uid


def test_operator_without_the_crd_is_healthy_and_begins_when_it_comes(
    server: ApiServer, studies: Studies, tmp_path: Path
) -> None:
    server.kubectl("delete", "crd", "finetunestudies.finetune.dev")
    port = free_port()
    operator = OperatorProcess(server, tmp_path / "log", FINETUNE_HEALTH_PORT=str(port))
    operator.start()
    try:
        until("its probe", lambda: _is_healthy(port))
        server.serve(CRD, "finetune.dev/v1alpha1/finetunestudies")
        until("the new kind", lambda: studies.request("GET", "fts")[0] == 200)
        studies.create("tickets")
        until("its Job", lambda: studies.get("job", "tickets-1"))
        until("its probe again", lambda: _is_healthy(port))
    finally:
        operator.stop()


def _is_healthy(port: int) -> bool:
    try:
        return bool(page(port, "healthz"))
    except OSError:
        return False


def test_namespace_ends_under_a_study(
    server: ApiServer, operator: OperatorProcess, studies: Studies
) -> None:
    doomed = Studies(server, "doomed")
    doomed.create("tickets")
    lives.run(doomed, "tickets")
    server.kubectl("delete", "namespace", "doomed", "--wait=false")

    def gone() -> bool:
        doomed.remove_pods()
        return not server.kubectl("get", "namespace", "doomed", "--ignore-not-found")

    until("the namespace to go", gone)
    doomed.close()
    studies.create("tickets")
    lives.run(studies, "tickets")


# -- clocks


@pytest.mark.parametrize("shift", [3600, -3600], ids=["forward", "back"])
def test_clock_jumps_an_hour(
    shift: int, server: ApiServer, studies: Studies, tmp_path: Path
) -> None:
    clock = tmp_path / "shift"
    clock.write_text("0")
    log = tmp_path / "operator.log"
    process = OperatorProcess(server, log, module="tests.cluster.shifted_clock", SHIFT=str(clock))
    process.start()
    try:
        studies.create("tickets")
        lives.run(studies, "tickets")
        clock.write_text(str(shift))
        lives.suspend(studies, "tickets")
        lives.resume(studies, "tickets")
        lives.run(studies, "tickets", 2)
        clock.write_text("0")
        lives.complete(studies, "tickets", 2)
    finally:
        process.stop()
    assert [job["metadata"]["name"] for job in studies.all("jobs")] == ["tickets-2"]
    assert studies.get("fts", "tickets")["status"]["attempts"] == 2


# -- meddling people

_CHILDREN = (
    "serviceaccount/{}-trainer",
    "role/{}-trainer",
    "rolebinding/{}-trainer",
    "networkpolicy/{}-trainer",
    "service/{}-trainer",
    "configmap/{}-spec",
    "configmap/{}-progress",
)


@pytest.mark.parametrize("child", _CHILDREN)
def test_child_that_somebody_deletes_comes_back(
    child: str, operator: OperatorProcess, studies: Studies
) -> None:
    studies.create("tickets")
    lives.run(studies, "tickets")
    kind, name = child.format("tickets").split("/")
    before = studies.get(kind, name)
    studies.done("DELETE", kind, name)
    until("the child", lambda: studies.get(kind, name).get("metadata"))
    after = studies.get(kind, name)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    for part in ("rules", "roleRef", "subjects", "spec", "labels", "ownerReferences"):
        assert _of(after, part) == _of(before, part)
    lives.complete(studies, "tickets")


def _of(body: dict[str, Any], part: str) -> Any:
    found = body.get(part, body["metadata"].get(part))
    if isinstance(found, dict):  # addresses are given out anew
        return {k: v for k, v in found.items() if not re.match("clusterIP|ipFamil", k)}
    return found


@pytest.mark.parametrize(
    ("child", "patch"),
    [
        ("role/tickets-trainer", {"rules": []}),
        ("rolebinding/tickets-trainer", {"subjects": []}),
        ("networkpolicy/tickets-trainer", {"spec": {"ingress": [{}]}}),
        ("service/tickets-trainer", {"spec": {"selector": {"finetune.dev/study": "other"}}}),
        ("configmap/tickets-spec", {"data": {"study.json": "{}"}}),
        ("serviceaccount/tickets-trainer", {"metadata": {"labels": {"finetune.dev/study": None}}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_child_that_somebody_edits_is_put_right(
    child: str, patch: dict[str, Any], operator: OperatorProcess, studies: Studies
) -> None:
    studies.create("tickets")
    lives.run(studies, "tickets")
    kind, name = child.split("/")
    before = studies.get(kind, name)
    edited = studies.done("PATCH", kind, name, patch)
    assert _content(edited) != _content(before)
    until("the child as it was", lambda: _content(studies.get(kind, name)) == _content(before))
    lives.complete(studies, "tickets")


def _content(body: dict[str, Any]) -> dict[str, Any]:
    parts = ("rules", "roleRef", "subjects", "spec", "data")
    return {
        "labels": body["metadata"].get("labels"),
        **{part: body[part] for part in parts if part in body},
    }


def test_deleted_job_is_followed_by_the_next_attempt(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.create("tickets")
    lives.run(studies, "tickets")
    studies.done("DELETE", "job", "tickets-1", {"propagationPolicy": "Background"})
    until("the next Job", lambda: studies.get("job", "tickets-2"), meanwhile=studies.remove_pods)
    lives.run(studies, "tickets", 2)
    lives.complete(studies, "tickets", 2)
    assert [job["metadata"]["name"] for job in studies.all("jobs")] == ["tickets-2"]
    assert [len(studies.all(kind)) for kind in ("secrets", "services")] == [2, 1]


def test_deleted_pod_is_followed_by_another(operator: OperatorProcess, studies: Studies) -> None:
    studies.create("tickets")
    lives.run(studies, "tickets")
    (pod,) = studies.all("pods")
    studies.done("DELETE", "pod", pod["metadata"]["name"])
    studies.remove_pods()
    until(
        "another pod",
        lambda: [p for p in studies.all("pods") if p["metadata"]["uid"] != pod["metadata"]["uid"]],
    )
    lives.run(studies, "tickets")
    lives.complete(studies, "tickets")
    assert studies.get("fts", "tickets")["status"]["attempts"] == 1


def test_running_study_costs_no_write_after_a_restart(
    server: ApiServer, studies: Studies, tmp_path: Path
) -> None:
    with Proxy(server, tmp_path) as proxy:
        environment = {"FINETUNE_NAMESPACES": studies.namespace}
        operator = OperatorProcess(
            server, tmp_path / "operator.log", proxy.kubeconfig, **environment
        )
        operator.start()
        studies.create("tickets")
        lives.run(studies, "tickets")
        operator.kill()
        before = len(proxy.answers)
        operator.start()
        studies.create("second")
        lives.run(studies, "second")  # by then it has looked at the first as well
        operator.stop()
        written = [call.path for call, _ in proxy.answers[before:] if call.write]
    assert written, "it has worked"
    assert [path for path in written if "tickets" in path.replace("ns/tickets", "")] == []
