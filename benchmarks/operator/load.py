"""The operator under load: a real API server and etcd, no node, all on this machine.

Phases, each with a fresh API server:

- apply: many studies at once, until the last one has its Job. The bar is a ratio: the time relative to what a bare
  asyncio client needs for the same writes, just before, on the same API server. Then a restart with all of
  them alive, and idle minutes.
- finished: the operator starts where many studies have ended.
- storm: drivers that each write their progress once a second; the status follows;
- writes: CPU time of the API server for a new status, relative to that for a ConfigMap of the same size.

Prints a table and exits 1 if a bar is missed.

    python -m benchmarks.operator.load [--studies 1000] [--finished 5000] [--drivers 200] [--idle 600]
        [--writes 1000]
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.aio import client, config
from tests.api.wrong_manifests import VALID, changed
from tests.cluster.loopback import free_port, page
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess
from tests.cluster.shared import CRD

from benchmarks.machine import describe
from finetune_api.manifest import parse_study
from finetune_api.status import StudyStatus
from finetune_operator import names
from finetune_operator.decide import EXPLAIN_SECONDS, decide
from finetune_operator.decision import Decision
from finetune_operator.kube import Kube
from finetune_operator.observe import ConfigView, JobView, Observed
from finetune_operator.settings import Settings, read

STORM_SECONDS = 60
_AT_ONCE = 32
_STORAGE = '{"persistentVolumeClaim":{"claimName":"studies"}}'
_WRITES = ("POST", "PUT", "PATCH", "APPLY", "DELETE")
_CHILDREN = {
    *("jobs", "configmaps", "secrets", "services", "serviceaccounts"),
    *("roles", "rolebindings", "networkpolicies"),
}
"""What the operator writes for a new study; its Job comes last, followed by its status and an Event."""

_KINDS = {*_CHILDREN, "finetunestudies", "pods", "events"}


@dataclass
class Table:
    """What was measured, and whether a bar was missed."""

    missed: bool = False

    def row(self, what: str, value: float, bar: float | None = None) -> None:
        """Print a figure; at most `bar` is good."""
        miss = bar is not None and value > bar
        self.missed |= miss
        words = "" if bar is None else f"   at most {bar}{'   MISSED' if miss else ''}"
        print(f"{what:66} {value:>9}{words}", flush=True)


@dataclass
class Place:
    """An API server, a client for it, and the operator, not yet running."""

    server: ApiServer
    api: client.ApiClient
    operator: OperatorProcess
    port: int
    settings: Settings = field(default_factory=lambda: read({"FINETUNE_DEFAULT_STORAGE": _STORAGE}))

    @property
    def kube(self) -> Kube:
        return Kube(self.api)

    def requests(self, *verbs: str, kinds: Container[str] = frozenset(_KINDS)) -> int:
        """Requests with these verbs for these kinds, as counted by the API server."""
        return self.counted(*verbs, kinds=kinds).total()

    def counted(self, *verbs: str, kinds: Container[str] = frozenset(_KINDS)) -> Counter[str]:
        """The same, by verb and kind."""
        count: Counter[str] = Counter()
        for line in self.server.kubectl("get", "--raw", "/metrics").splitlines():
            if line.startswith("apiserver_request_total{"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
                if labels["verb"] in verbs and labels["resource"] in kinds:
                    number = int(float(line.rsplit(" ", 1)[1]))
                    count[f"{labels['verb']} {labels['resource']}"] += number
        return count

    def metric(self, name: str) -> float:
        """The sum of all series of one of the operator's metrics; 0 while it does not answer."""
        try:
            text = page(self.port, "metrics")
        except OSError:
            return 0.0
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    @property
    def pid(self) -> int:
        """The operator's process."""
        assert self.operator.process is not None
        return self.operator.process.pid

    def megabytes(self, what: str) -> int:
        """`VmRSS` or `VmHWM` of the operator."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(what)).split()[1]) // 1024

    def cpu_seconds(self) -> float:
        """CPU time of the operator."""
        return _cpu_seconds(self.pid)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    """An API server with the CRD and the namespaces `bare` and `operator`."""
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder)) as server:
        server.serve(CRD, "finetune.dev/v1alpha1/finetunestudies")
        for namespace in ("bare", "operator"):
            server.kubectl("create", "namespace", namespace)
        await config.load_kube_config(config_file=str(server.kubeconfig))
        configuration = client.Configuration.get_default_copy()
        configuration.connection_pool_maxsize = 2 * _AT_ONCE
        configuration.client_session_kwargs = {"trust_env": False}  # as the operator's client
        port = free_port()
        log = Path(folder) / "operator.log"
        environment = {"FINETUNE_NAMESPACES": "operator", "FINETUNE_METRICS_PORT": str(port)}
        operator = OperatorProcess(server, log, **environment)
        async with client.ApiClient(configuration) as api:
            try:
                yield Place(server, api, operator, port)
            except BaseException:
                print(log.read_text()[-3000:] if log.exists() else "the operator has not begun")
                raise
            finally:
                operator.kill()


def study(namespace: str, name: str) -> dict[str, Any]:
    """The manifest of one study."""
    return changed(VALID, {"metadata.name": name, "metadata.namespace": namespace})


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


async def _bounded(work: Callable[[str], Awaitable[Any]], names: Iterable[str]) -> None:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def guarded(name: str) -> None:
        async with gate:
            await work(name)

    await asyncio.gather(*(guarded(name) for name in names))


async def _write(kube: Kube, name: str, decision: Decision, namespace: str) -> None:
    """The operator's writes for a new study, with nothing around them."""
    await asyncio.gather(*(kube.apply(manifest) for manifest in decision.apply[:-1]))
    await kube.apply(decision.apply[-1])
    for manifest in decision.create:
        await kube.create(manifest)
    await kube.apply(_status(name, decision.status, namespace), "status")
    await kube.create(_event(name, namespace))


def _status(name: str, status: StudyStatus, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": VALID["apiVersion"],
        "kind": VALID["kind"],
        "metadata": {"name": name, "namespace": namespace},
        "status": status.to_json(),
    }


def _event(name: str, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.1", "namespace": namespace},
        "involvedObject": {"kind": "FineTuneStudy", "name": name, "namespace": namespace},
        "type": "Normal",
        "reason": "AttemptStarted",
    }


class Follower:
    """Follows one kind in the namespace `operator`: when each object was first seen, and its latest version."""

    def __init__(self, kube: Kube, kind: str, see: Callable[[dict[str, Any]], None]) -> None:
        self._kube, self._kind, self._see = kube, kind, see
        self.seen: dict[str, float] = {}
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            async for _, body in self._kube.watch(self._kind, "operator", "", "0"):
                self.seen.setdefault(body["metadata"].get("name", ""), time.perf_counter())
                self._see(body)
                self._news.set()

    async def wait(self, names: Iterable[str], seconds: float = 600) -> None:
        """Return when all of these exist. Raises TimeoutError, or what ended the watch."""
        missing = set(names)
        async with asyncio.timeout(seconds):
            while missing := missing - set(self.seen):
                self._news.clear()
                news = asyncio.create_task(self._news.wait())
                await asyncio.wait({news, self.task}, return_when="FIRST_COMPLETED")
                news.cancel()
                if self.task.done():
                    self.task.result()


async def apply(table: Table, studies: int, idle: int) -> None:
    """Many studies at once, a restart with all of them, and idle time."""
    async with place() as at:
        kube, all_names = at.kube, [f"study-{i}" for i in range(studies)]

        async def bare(name: str) -> None:
            parsed = parse_study(await kube.create(study("bare", name)))
            await _write(kube, name, decide(parsed, Observed(), at.settings, _now()), "bare")

        begun = time.perf_counter()
        await _bounded(bare, all_names)
        reference = time.perf_counter() - begun

        at.operator.start()  # only now: the reference had the machine to itself
        jobs = Follower(kube, "Job", lambda _: None)
        await _until(lambda: at.metric("finetune_reconcile_seconds_count") >= 0, 30)
        await asyncio.sleep(8)
        created: dict[str, float] = {}
        before, children = at.requests(*_WRITES), at.requests(*_WRITES, kinds=_CHILDREN)

        async def one(name: str) -> None:
            created[name] = time.perf_counter()
            await kube.create(study("operator", name))

        begun = time.perf_counter()
        await _bounded(one, all_names)
        await jobs.wait(f"{name}-1" for name in all_names)
        took = time.perf_counter() - begun
        await _settled(at, studies)
        written = at.requests(*_WRITES) - before - studies
        children = at.requests(*_WRITES, kinds=_CHILDREN) - children
        waits = sorted(jobs.seen[f"{name}-1"] - created[name] for name in all_names)
        table.row(f"{studies} studies, bare client, s", round(reference, 1))
        table.row(f"{studies} studies, until the last Job exists, s", round(took, 1))
        table.row("   over the bare client", round(took / reference, 2), 2)
        table.row("   from creation to Job, median, s", round(waits[studies // 2], 2))
        table.row(
            "   from creation to Job, 99th percentile, s", round(waits[studies * 99 // 100], 2)
        )
        table.row("   writes per study until its Job exists", round(children / studies, 2), 12)
        table.row("   with its status and Events", round(written / studies, 2))
        table.row("   peak memory of the operator, MB", at.megabytes("VmHWM"), 350)

        single = []
        for i in range(30):
            begun = time.perf_counter()
            await kube.create(study("operator", f"single-{i}"))
            await jobs.wait([f"single-{i}-1"])
            single.append(jobs.seen[f"single-{i}-1"] - begun)
            await asyncio.sleep(0.1)
        single.sort()
        table.row("one more study, until its Job exists, median, s", round(single[15], 3))
        table.row("one more study, until its Job exists, slowest of 30, s", round(single[-1], 3), 1)

        # Without a Job controller no pod ever appears; for a minute, the operator looks for the reason.
        await asyncio.sleep(EXPLAIN_SECONDS + 15)
        alive = studies + len(single)
        at.operator.kill()
        before, begun = at.requests(*_WRITES), time.perf_counter()
        at.operator.start()
        await _until(lambda: at.metric("finetune_studies") >= alive, 120)
        await _settled(at, alive)
        table.row(
            f"restart with {alive}, until all are reconciled, s",
            round(time.perf_counter() - begun, 1),
            15,
        )
        await asyncio.sleep(EXPLAIN_SECONDS + 15)
        table.row("   writes by the restart", at.requests(*_WRITES) - before, 0)

        idle_before, cpu = at.counted(*_WRITES, "LIST"), at.cpu_seconds()
        await asyncio.sleep(idle)
        noise = at.counted(*_WRITES, "LIST") - idle_before
        del noise["LIST services"]  # the API server's own: it looks after their addresses
        share = 100 * (at.cpu_seconds() - cpu) / idle
        table.row(f"writes and lists in {idle} idle seconds", noise.total(), 0)
        if noise:
            print(f"   they are: {dict(noise)}")
        table.row("   CPU, percent of one", round(share, 2), 1)
        jobs.task.cancel()


async def finished(table: Table, studies: int) -> None:
    """The operator where many studies have ended."""
    async with place() as at:
        kube = at.kube

        async def one(name: str) -> None:
            made = await kube.create(study("operator", name))
            begun = decide(parse_study(made), Observed(), at.settings, _now())
            await _write(kube, name, begun, "operator")
            await _patch(at, f"jobs/{name}-1/status", {"status": _succeeded()}, "apis/batch/v1")
            job = await kube.read("Job", "operator", f"{name}-1")
            assert job is not None
            best = {"trial": 2, "value": 0.5, "epoch": 1, "params": {"epochs": 1}}
            uids = made["metadata"]["uid"], job["metadata"]["uid"]
            document = _document(*uids, "Finished", "all 4 trials ended", 4, best=best)
            await _tell(at, name, document)
            ended = _ended(made, job, document, at.settings)
            for manifest in ended.create:  # the winner
                await kube.create(manifest)
            await kube.apply(_status(name, ended.status, "operator"), "status")

        await _bounded(one, [f"study-{i}" for i in range(studies)])
        before, begun = at.requests(*_WRITES), time.perf_counter()
        at.operator.start()
        await _until(lambda: at.metric("finetune_reconcile_seconds_count") >= studies, 300)
        await _settled(at, studies)
        table.row(
            f"start where {studies} studies have ended, s", round(time.perf_counter() - begun, 1)
        )
        await asyncio.sleep(30)
        table.row("   memory then, MB", at.megabytes("VmRSS"), 500)
        table.row("   peak memory, MB", at.megabytes("VmHWM"), 500)
        table.row("   tasks then", at.metric("finetune_tasks"), 100)
        table.row("   writes", at.requests(*_WRITES) - before, 0)


def _ended(
    made: dict[str, Any], job: dict[str, Any], document: dict[str, Any], settings: Settings
) -> Decision:
    """The decision about a study whose Job is complete and whose driver has said so."""
    name, uid = names.progress_config(made["metadata"]["name"]), made["metadata"]["uid"]
    configs = {name: ConfigView(name, uid, "", True, json.dumps(document), 1)}
    view = JobView.of(job)
    assert view is not None
    return decide(parse_study(made), Observed((view,), (), configs), settings, _now())


def _succeeded() -> dict[str, Any]:
    """The status of an Indexed Job whose only pod has succeeded, as the Job controller writes it."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": now, "lastProbeTime": now}
        for kind in ("SuccessCriteriaMet", "Complete")
    ]
    times = {"startTime": now, "completionTime": now}
    return {**times, "succeeded": 1, "completedIndexes": "0", "conditions": conditions}


def _document(
    uid: str, job: str, phase: str, message: str, completed: int, **found: Any
) -> dict[str, Any]:
    trials = {"planned": 100_000, "completed": completed, "summary": f"{completed}/100000"}
    return {
        "studyUid": uid,
        "jobUid": job,
        "term": 1,
        "phase": phase,
        "reason": "SearchFinished" if phase == "Finished" else "Running",
        "message": message,
        "time": datetime.now(UTC).isoformat(),
        "findings": {"trials": trials, **found},
    }


async def storm(table: Table, drivers: int) -> None:
    """Drivers that all write their progress every second."""
    async with place() as at:
        kube, all_names = at.kube, [f"study-{i}" for i in range(drivers)]
        sent: dict[tuple[str, int], float] = {}
        lags: list[float] = []
        shown = dict.fromkeys(all_names, 0)

        def see(body: dict[str, Any]) -> None:
            name, now = body["metadata"].get("name", ""), time.perf_counter()
            completed = (body.get("status") or {}).get("trials", {}).get("completed", 0)
            lags.extend(now - sent[name, n] for n in range(shown.get(name, 0) + 1, completed + 1))
            if name in shown:
                shown[name] = max(shown[name], completed)

        at.operator.start()
        jobs = Follower(kube, "Job", lambda _: None)
        studies = Follower(kube, "FineTuneStudy", see)
        await _bounded(lambda name: kube.create(study("operator", name)), all_names)
        await jobs.wait(f"{name}-1" for name in all_names)
        uids: dict[str, tuple[str, str]] = {}

        async def begin(name: str) -> None:
            found = await kube.read("FineTuneStudy", "operator", name)
            job = await kube.read("Job", "operator", f"{name}-1")
            assert found is not None
            assert job is not None
            uids[name] = (found["metadata"]["uid"], job["metadata"]["uid"])
            await kube.create(_pod(name, *uids[name]))
            await _pod_runs(at, f"{name}-1-0")

        await _bounded(begin, all_names)

        async def report(name: str, n: int) -> None:
            document = _document(*uids[name], "Searching", f"trial {n}", n)
            sent[name, n] = time.perf_counter()
            await _tell(at, name, document)

        await _bounded(lambda name: report(name, 1), all_names)
        await _until(lambda: min(shown.values()) >= 1, 120)
        await asyncio.sleep(5)
        lags.clear()
        before = at.metric("finetune_api_requests_total")
        begun = time.perf_counter()

        async def drive(name: str, offset: float) -> None:
            for n in range(2, STORM_SECONDS + 2):
                await asyncio.sleep(max(0.0, begun + offset + n - 2 - time.perf_counter()))
                await report(name, n)

        await asyncio.gather(*(drive(name, i / drivers) for i, name in enumerate(all_names)))
        took = time.perf_counter() - begun
        await _until(lambda: min(shown.values()) >= STORM_SECONDS + 1, 120)
        requests = at.metric("finetune_api_requests_total") - before
        lags.sort()
        writes = drivers * STORM_SECONDS
        table.row(f"{drivers} drivers, one progress write per second each, s", round(took, 1))
        table.row("   from progress to status, median, s", round(lags[len(lags) // 2], 2))
        table.row(
            "   from progress to status, 99th percentile, s",
            round(lags[len(lags) * 99 // 100], 2),
            5,
        )
        table.row(
            "   requests of the operator per progress write", round(requests / writes, 2), 0.75
        )
        for each in (jobs, studies):
            each.task.cancel()


async def writes(table: Table, count: int) -> None:
    """What a new status costs the API server, which checks the whole study each time."""
    async with place() as at:
        kube, all_names = at.kube, [f"study-{i}" for i in range(_AT_ONCE)]
        statuses: dict[str, StudyStatus] = {}

        async def begin(name: str) -> None:
            made = parse_study(await kube.create(study("operator", name)))
            statuses[name] = decide(made, Observed(), at.settings, _now()).status
            await kube.apply(_config(name, json.dumps(made.to_json())))

        async def tell(name: str, n: int) -> None:
            status = statuses[name].model_copy(update={"message": f"trial {n}"})
            await kube.apply(_status(name, status, "operator"), "status")

        async def note(name: str, n: int) -> None:
            text = json.dumps({"status": statuses[name].to_json(), "message": f"trial {n}"})
            await kube.apply(_config(name, text))

        each = max(1, count // len(all_names))

        async def milliseconds(write: Callable[[str, int], Awaitable[None]]) -> float:
            async def some(name: str) -> None:
                for n in range(each):
                    await write(name, n)

            pid = at.server.apiserver.pid
            assert pid is not None
            begun = await _idle(pid)
            await _bounded(some, all_names)
            return 1000 * (_cpu_seconds(pid) - begun) / (each * len(all_names))

        await _bounded(begin, all_names)
        await milliseconds(tell)  # the first writes compile and cache
        config, status = await milliseconds(note), await milliseconds(tell)
        table.row("CPU of the API server for a ConfigMap, ms", round(config, 1))
        table.row("   for a status", round(status, 1))
        table.row("   over the ConfigMap", round(status / config, 1), 7)


async def _idle(pid: int) -> float:
    """CPU seconds that the process has used, as soon as it needs at most a tenth of a CPU."""
    last = _cpu_seconds(pid)
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(1)
            now = _cpu_seconds(pid)
            if now - last < 0.1:
                return now
            last = now


def _config(name: str, text: str) -> dict[str, Any]:
    metadata = {"name": f"{name}-written", "namespace": "operator"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": text}}


def _pod(name: str, study_uid: str, job_uid: str) -> dict[str, Any]:
    labels = {
        names.STUDY_LABEL: name,
        names.UID_LABEL: study_uid,
        "batch.kubernetes.io/controller-uid": job_uid,
    }
    annotations = {"batch.kubernetes.io/job-completion-index": "0"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-1-0",
            "namespace": "operator",
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            "serviceAccountName": names.account(name),
            "containers": [{"name": "trainer", "image": "x"}],
        },
    }


async def _pod_runs(at: Place, name: str) -> None:
    await _patch(at, f"pods/{name}/status", {"status": {"phase": "Running"}})


async def _tell(at: Place, name: str, document: dict[str, Any]) -> None:
    data = {"term": "1", "progress": json.dumps(document)}
    await _patch(at, f"configmaps/{names.progress_config(name)}", {"data": data})


async def _patch(at: Place, path: str, body: dict[str, Any], group: str = "api/v1") -> None:
    await at.kube._request(
        "PATCH",
        f"/{group}/namespaces/operator/{path}",
        body,
        content_type="application/merge-patch+json",
    )


async def _settled(at: Place, studies: int) -> None:
    """Return when the operator has had nothing to do for two seconds."""
    last, since = -1.0, time.perf_counter()
    while time.perf_counter() - since < 2:
        done = at.metric("finetune_reconcile_seconds_count") + at.metric("finetune_queue_depth")
        if done != last:
            last, since = done, time.perf_counter()
        await asyncio.sleep(0.25)


async def _until(true: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # it is another process that makes it true
            await asyncio.sleep(0.1)


async def _run(arguments: argparse.Namespace) -> bool:
    table = Table()
    if arguments.studies:
        await apply(table, arguments.studies, arguments.idle)
    if arguments.finished:
        await finished(table, arguments.finished)
    if arguments.drivers:
        await storm(table, arguments.drivers)
    if arguments.writes:
        await writes(table, arguments.writes)
    return table.missed


def main() -> int:
    """Run the benchmark; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--studies", type=int, default=1000, help="studies applied at once; 0 skips this phase"
    )
    parser.add_argument(
        "--finished", type=int, default=5000, help="studies that have ended; 0 skips this phase"
    )
    parser.add_argument(
        "--drivers", type=int, default=200, help="drivers of the storm; 0 skips this phase"
    )
    parser.add_argument(
        "--writes",
        type=int,
        default=1000,
        help="writes of a status, and as many of a ConfigMap; 0 skips this phase",
    )
    parser.add_argument("--idle", type=int, default=600, help="seconds without any event")
    print(describe())
    return int(asyncio.run(_run(parser.parse_args())))


if __name__ == "__main__":
    sys.exit(main())
