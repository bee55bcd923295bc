"""What the API server may say to one request, and what becomes of the study.

`test_faults` has whole lives under faults at random; here each answer comes at the moment when it matters.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_operator.pace import PROGRESS_SECONDS
from tests.cluster import lives
from tests.cluster.kuberay import crd
from tests.cluster.loopback import free_port, page
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.cluster.proxy import Answer, Break, Call, Fault, Proxy, Rule, Watch, expired


@pytest.fixture
def proxy(server: ApiServer, tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(server, tmp_path) as proxy:
        yield proxy


class Operators:
    """Operators of the test's namespace behind its proxy, which it starts once the proxy has its rule."""

    def __init__(self, server: ApiServer, proxy: Proxy, namespace: str, folder: Path) -> None:
        self._server, self._proxy, self._namespace, self._folder = server, proxy, namespace, folder
        self.processes: list[OperatorProcess] = []

    def start(self, kubeconfig: Path | None = None, /, **env: str) -> OperatorProcess:
        """Start one; without another `kubeconfig` it asks the proxy."""
        log = self._folder / f"operator-{len(self.processes)}.log"
        env = {"FINETUNE_NAMESPACES": self._namespace, **env}
        way = kubeconfig or self._proxy.kubeconfig
        process = OperatorProcess(self._server, log, way, **env)
        process.start()
        self.processes.append(process)
        return process


@pytest.fixture
def operators(
    server: ApiServer, proxy: Proxy, studies: Studies, tmp_path: Path
) -> Iterator[Operators]:
    made = Operators(server, proxy, studies.namespace, tmp_path)
    yield made
    for process in made.processes:
        process.stop()


def on(method: str, part: str, fault: Fault, times: int = 1_000_000) -> Rule:
    """The fault for that many requests, watches aside, with `part` in their path; all others pass."""
    left = iter(range(times))

    def rule(call: Call) -> Fault | None:
        meant = call.method == method and part in call.path and not call.watch
        return fault if meant and next(left, None) is not None else None

    return rule


def silent(plural: str) -> Rule:
    """Watches of that kind never tell anything."""
    return lambda call: (
        Watch(delay=lambda: 600) if call.watch and call.path.endswith(f"/{plural}") else None
    )


def jobs(studies: Studies) -> list[str]:
    return [job["metadata"]["name"] for job in studies.all("jobs")]


def test_deletion_that_was_not_taken_is_asked_for_again(
    operators: Operators, proxy: Proxy, studies: Studies
) -> None:
    operators.start()
    studies.create("tickets")
    lives.run(studies, "tickets")
    proxy.rule = on("DELETE", "/jobs/", Answer(409, "Conflict"), times=2)
    lives.suspend(studies, "tickets")
    assert jobs(studies) == []
    deletions = [code for call, code in proxy.answers if call.method == "DELETE"]
    assert deletions[:3] == [409, 409, 200]


def test_driver_in_a_hurry_does_not_hurry_the_operator(
    operators: Operators, proxy: Proxy, studies: Studies
) -> None:
    operators.start()
    studies.create("tickets")
    lives.run(studies, "tickets")

    def completed() -> int:
        return int(studies.get("fts", "tickets")["status"]["trials"]["completed"])

    before, begun = len(proxy.answers), time.monotonic()
    for count in range(5, 105):
        found = {"trials": {"planned": 104, "completed": count, "summary": f"{count}/104"}}
        studies.report("tickets", "tickets-1", "Searching", findings=found)
    until("the last of its reports", lambda: completed() == 104)
    took = time.monotonic() - begun
    written = [call for call, _ in proxy.answers[before:] if call.path.endswith("/status")]
    assert 1 <= len(written) <= took / PROGRESS_SECONDS + 2


def test_job_whose_answer_was_lost_stays_the_only_one(
    operators: Operators, proxy: Proxy, studies: Studies
) -> None:
    lost, deaf = on("POST", "/jobs", Break(after=True), times=1), silent("jobs")
    proxy.rule = lambda call: lost(call) or deaf(call)
    operators.start()
    studies.create("tickets")
    lives.run(studies, "tickets")
    assert jobs(studies) == ["tickets-1"]
    assert studies.get("fts", "tickets")["status"]["attempts"] == 1


def test_who_takes_over_without_news_of_the_jobs_begins_no_second_attempt(
    server: ApiServer, operators: Operators, proxy: Proxy, studies: Studies
) -> None:
    proxy.rule = silent("jobs")
    lease = {"FINETUNE_LEASE": f"{studies.namespace}/finetune"}
    leader = operators.start(server.kubeconfig, FINETUNE_IDENTITY="one", **lease)
    until("a leader", lambda: studies.get("lease", "finetune"))
    operators.start(FINETUNE_IDENTITY="two", **lease)
    until("the other to watch", lambda: [c for c, _ in proxy.answers if c.path.endswith("/jobs")])
    studies.create("tickets")
    lives.run(studies, "tickets")
    leader.stop()
    lives.edit(studies, "tickets", budget={"maxTrials": 77})

    def handed_on() -> bool:
        return '"maxTrials": 77' in studies.get("configmap", "tickets-spec")["data"]["study.json"]

    until("the other to act", handed_on)
    assert jobs(studies) == ["tickets-1"]
    assert studies.state("tickets") == "Running"


def test_child_that_is_not_taken_now_stops_no_study(
    operators: Operators, proxy: Proxy, studies: Studies
) -> None:
    operators.start()
    studies.create("tickets")
    lives.run(studies, "tickets")
    proxy.rule = on("POST", "/networkpolicies", Answer(403, "Forbidden"))
    studies.done("DELETE", "networkpolicy", "tickets-trainer")
    until("it to be told", lambda: _told(studies, "injected: Forbidden"))
    assert studies.state("tickets") == "Running"
    assert studies.condition("tickets", "Reconciling")["status"] == "False"
    until("a warning", lambda: "Forbidden" in {one["reason"] for one in studies.all("events")})
    proxy.rule = lambda _: None
    until("the child", lambda: studies.get("networkpolicy", "tickets-trainer"))
    until("nothing to tell", lambda: not _told(studies, "injected: Forbidden"))
    lives.complete(studies, "tickets")


def _told(studies: Studies, message: str) -> bool:
    condition = studies.condition("tickets", "Reconciling")
    return condition.get("reason") == "Forbidden" and message in condition["message"]


def test_winner_that_is_refused_fails_no_study(
    operators: Operators, proxy: Proxy, studies: Studies
) -> None:
    operators.start()
    studies.create("tickets")
    lives.run(studies, "tickets")
    proxy.rule = on("POST", "/configmaps", Answer(422, "Invalid"))
    lives.finish(studies, "tickets", "tickets-1", findings=lives.FOUND)
    until("it to be told", lambda: _told(studies, "injected: Invalid"))
    assert studies.state("tickets") == "Running"
    proxy.rule = lambda _: None
    until("Complete", lambda: studies.state("tickets") == "Complete")
    assert studies.get("configmap", "tickets-winner")["data"]["trial"] == "2"


def test_winner_of_a_stranger_is_not_taken_for_the_studys(
    operators: Operators, studies: Studies
) -> None:
    operators.start()
    stranger = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tickets-winner"}}
    studies.done("POST", "configmap", body=stranger)
    studies.create("tickets")
    lives.run(studies, "tickets")
    lives.finish(studies, "tickets", "tickets-1", findings=lives.FOUND)
    advice = "ConfigMap tickets-winner exists and does not belong to this study: delete it"
    until("it to be told", lambda: _told(studies, advice))
    studies.done("DELETE", "configmap", "tickets-winner")
    until("Complete", lambda: studies.state("tickets") == "Complete")
    assert studies.get("configmap", "tickets-winner")["data"]["trial"] == "2"


def test_kuberay_that_is_not_there_is_told(operators: Operators, studies: Studies) -> None:
    operators.start(FINETUNE_ENGINE="RayJob")
    studies.create("tickets")
    until("it to be told", lambda: _told(studies, "RayJob is not served by this cluster"))
    assert studies.state("tickets") == "Pending"


def test_kuberay_that_went_is_noticed_when_an_attempt_begins(
    server: ApiServer, operators: Operators, studies: Studies
) -> None:
    server.serve(crd("rayjobs"), "ray.io/v1/rayjobs")
    operators.start(FINETUNE_ENGINE="Auto")
    studies.create("tickets")
    until("a RayJob", lambda: studies.get("rayjob", "tickets-1"))
    server.kubectl("delete", "crd", "rayjobs.ray.io")
    kinds = ("api-resources", "--api-group=ray.io", "-o=name")
    until("the kind to go", lambda: "rayjobs" not in server.kubectl(*kinds))
    studies.create("later")  # with rights in its namespaces only, it hears of no CRD
    until("a Job", lambda: studies.get("job", "later-1"))
    until("a Job", lambda: studies.get("job", "tickets-2"))


def test_study_that_went_while_nobody_watched_is_forgotten(
    operators: Operators, proxy: Proxy, studies: Studies
) -> None:
    def lines(line: bytes) -> list[bytes]:
        return expired() if json.loads(line)["type"] == "DELETED" else [line]

    proxy.rule = lambda call: (
        Watch(lines) if call.watch and call.path.endswith("/finetunestudies") else None
    )
    port = free_port()
    operators.start(FINETUNE_METRICS_PORT=str(port))
    for name in ("tickets", "other"):
        studies.create(name)
        lives.run(studies, name)
    lives.complete(studies, "tickets")
    until("its metric", lambda: _complete_studies(port) == 1)
    studies.kubectl("delete", "fts", "tickets")
    until("it to be forgotten", lambda: _complete_studies(port) == 0)
    lives.complete(studies, "other")


def _complete_studies(port: int) -> float:
    lines = page(port, "metrics").splitlines()
    series = 'finetune_studies{state="Complete"} '
    return next((float(line.removeprefix(series)) for line in lines if line.startswith(series)), 0)
