"""200 studies at once, one study at a time, and a quiet minute: the operator on a real API server, no node.

The bar for 200 studies is a ratio: the time until the last Job exists over the time that a bare asyncio
client needs for the same writes, right before, on the same API server. Exits 1 if a bar is missed.

    python -m benchmarks.operator.apply_200 [--studies 200]
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.aio import client, config, watch
from tests.api.wrong_manifests import VALID, changed
from tests.cluster.conftest import CRD
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess

from benchmarks.machine import describe
from finetune_api.manifest import parse_study
from finetune_operator.decide import EXPLAIN_SECONDS, decide
from finetune_operator.kube import Kube
from finetune_operator.observe import Observed
from finetune_operator.settings import Settings, read

SINGLE = 50
QUIET_SECONDS = 60
_WRITES = {"POST", "PUT", "PATCH", "APPLY", "DELETE", "LIST"}
_RESOURCES = {
    "finetunestudies",
    "jobs",
    "pods",
    "configmaps",
    "secrets",
    "services",
    "serviceaccounts",
    "roles",
    "rolebindings",
    "networkpolicies",
    "events",
}
_STORAGE = '{"persistentVolumeClaim":{"claimName":"studies"}}'


def study(namespace: str, name: str) -> dict[str, Any]:
    """The manifest of one study."""
    return changed(VALID, {"metadata.name": name, "metadata.namespace": namespace})


async def bare(kube: Kube, names: list[str], settings: Settings) -> float:
    """Seconds of a client that makes the operator's writes without deciding or watching anything."""

    async def one(name: str) -> None:
        made = await kube.create(study("bare", name))
        parsed = parse_study(made)
        decision = decide(parsed, Observed(), settings, datetime.now(UTC).replace(microsecond=0))
        await asyncio.gather(*(kube.apply(manifest) for manifest in decision.apply[:-1]))
        await kube.apply(decision.apply[-1])
        for manifest in decision.create:
            await kube.create(manifest)
        status = {
            "apiVersion": made["apiVersion"],
            "kind": made["kind"],
            "metadata": {"name": name, "namespace": "bare"},
            "status": decision.status.to_json(),
        }
        await kube.apply(status, "status")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name}.1", "namespace": "bare"},
            "involvedObject": {"kind": "FineTuneStudy", "name": name, "namespace": "bare"},
            "type": "Normal",
            "reason": "AttemptStarted",
        }
        await kube.create(event)

    started = time.perf_counter()
    await _bounded(one, names, 32)
    return time.perf_counter() - started


async def _bounded(work: Callable[[str], Awaitable[Any]], names: Iterable[str], limit: int) -> None:
    gate = asyncio.Semaphore(limit)

    async def guarded(name: str) -> None:
        async with gate:
            await work(name)

    await asyncio.gather(*(guarded(name) for name in names))


class JobWatch:
    """When each Job of a namespace was first seen."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._changed = asyncio.Event()
        self.seen: dict[str, float] = {}
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with watch.Watch() as stream:
            batch = client.BatchV1Api(self._api)
            async for event in stream.stream(batch.list_namespaced_job, self._namespace):
                self.seen.setdefault(event["object"].metadata.name, time.perf_counter())
                self._changed.set()

    async def wait(self, names: Iterable[str]) -> None:
        """Return when all Jobs of these names exist. Raises TimeoutError, or what ended the watch."""
        missing = set(names)
        async with asyncio.timeout(120):
            while missing:
                self._changed.clear()
                missing -= set(self.seen)
                if missing:
                    changed = asyncio.create_task(self._changed.wait())
                    await asyncio.wait({changed, self.task}, return_when="FIRST_COMPLETED")
                    changed.cancel()
                    if self.task.done():
                        self.task.result()


async def measure(server: ApiServer, studies: int, operator: OperatorProcess) -> bool:
    """Run the phases and print their figures; whether a bar was missed."""
    await config.load_kube_config(config_file=str(server.kubeconfig))
    configuration = client.Configuration.get_default_copy()
    configuration.connection_pool_maxsize = 64
    async with client.ApiClient(configuration) as api:
        kube = Kube(api)
        settings = read({"FINETUNE_DEFAULT_STORAGE": _STORAGE})
        names = [f"study-{i}" for i in range(studies)]
        reference = await bare(kube, names, settings)
        operator.start()  # only now: the reference had the machine for itself
        jobs = JobWatch(api, "operator")
        await asyncio.sleep(8)
        started = time.perf_counter()
        await _bounded(lambda name: kube.create(study("operator", name)), names, 32)
        await jobs.wait(f"{name}-1" for name in names)
        took = time.perf_counter() - started
        await asyncio.sleep(5)

        latencies = []
        for i in range(SINGLE):
            begun = time.perf_counter()
            await kube.create(study("operator", f"single-{i}"))
            await jobs.wait([f"single-{i}-1"])
            latencies.append(jobs.seen[f"single-{i}-1"] - begun)
            await asyncio.sleep(0.1)
        # Without a Job controller no pod ever comes; the operator looks for the reason, for a minute.
        await asyncio.sleep(EXPLAIN_SECONDS + 15)
        before = _requests(server)
        await asyncio.sleep(QUIET_SECONDS)
        quiet = {
            key: n - before.get(key, 0)
            for key, n in _requests(server).items()
            if n > before.get(key, 0)
        }
        jobs.task.cancel()
    latencies.sort()
    rows: list[tuple[str, float, float | None]] = [
        (f"bare client, {studies} studies, s", round(reference, 2), None),
        ("operator, until the last Job exists, s", round(took, 2), None),
        ("ratio", round(took / reference, 2), 2.5),
        ("one study until its Job exists, median s", round(latencies[SINGLE // 2], 3), None),
        (f"one study until its Job exists, slowest of {SINGLE}, s", round(latencies[-1], 3), 1),
        ("operator, peak memory, MB", _peak_memory(operator.process.pid), 250),
        (f"writes and lists in {QUIET_SECONDS} quiet seconds", sum(quiet.values()), 0),
    ]
    missed = False
    for name, value, bar in rows:
        miss = bar is not None and value > bar
        missed |= miss
        print(
            f"{name:52} {value:>8}"
            + (f"   at most {bar}{'   MISSED' if miss else ''}" if bar is not None else "")
        )
    if quiet:
        print(quiet)
    return missed


def _requests(server: ApiServer) -> dict[str, int]:
    """Writes and lists that the API server has counted, by verb and resource."""
    found: dict[str, int] = {}
    for line in server.kubectl("get", "--raw", "/metrics").splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["verb"] in _WRITES and labels["resource"] in _RESOURCES:
                key = f"{labels['verb']} {labels['resource']}"
                found[key] = found.get(key, 0) + int(float(line.rsplit(" ", 1)[1]))
    return found


def _peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return (
        int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        // 1024
    )


def main() -> int:
    """Run the benchmark; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=200)
    studies: int = parser.parse_args().studies
    print(describe())
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder)) as server:
        server.serve(CRD, "finetune.dev/v1alpha1/finetunestudies")
        for namespace in ("bare", "operator"):
            server.kubectl("create", "namespace", namespace)
        log = Path(folder) / "operator.log"
        operator = OperatorProcess(server, log, FINETUNE_NAMESPACES="operator")
        try:
            return int(asyncio.run(measure(server, studies, operator)))
        except TimeoutError:
            print(log.read_text()[-2000:])
            raise
        finally:
            operator.kill()


if __name__ == "__main__":
    sys.exit(main())
