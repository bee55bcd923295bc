"""What goes wrong on a cluster, told by the study's status, and how the study goes on when it is mended."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.records import events as ev
from tests.cluster.onenode import volumes
from tests.cluster.onenode.processes import Service
from tests.e2e.platform import ROOT, TEAM, Platform, condition
from tests.e2e.test_study import (
    folder,
    patch,
    pod_of,
    running_trials,
    state,
    study,
    term_of,
    wait_complete,
)
from tests.records import check_records, events_of


@contextmanager
def applied(platform: Platform, name: str, **changes: Any) -> Iterator[None]:
    """A study with one worker that goes when the test ends."""
    platform.apply(study(name, refit=False, **{"cluster": {"workers": 1}, **changes}))
    try:
        yield
    finally:
        pods = f"finetune.dev/study={name}"
        platform.kubectl("delete", "fts", name, "-n", TEAM, "--wait")
        platform.kubectl("wait", "pods", "-l", pods, "-n", TEAM, "--for=delete", "--timeout=120s")


def tells(
    platform: Platform, name: str, reason: str, words: str, lasts: bool = True, seconds: float = 60
) -> None:
    """Returns when an Event has that reason and those words; a condition too, as long as the trouble lasts."""
    platform.wait(f"{reason}: {words}", lambda: words in _events(platform, name, reason), seconds)
    if lasts:
        found = platform.study(name)["status"]["conditions"]
        assert any(c["reason"] == reason and words in c["message"] for c in found), found


def _events(platform: Platform, name: str, reason: str) -> str:
    uid = platform.study(name)["metadata"]["uid"]  # not of an earlier study of that name
    selector = f"involvedObject.uid={uid},reason={reason}"
    return platform.kubectl("get", "events", "-n", TEAM, "--field-selector", selector)


def runs(platform: Platform, name: str) -> None:
    platform.wait(f"{name} to run", lambda: state(platform, name) == "Running", 400)


def test_quota_that_is_used_up_and_raised(platform: Platform) -> None:
    platform.kubectl("create", "quota", "tight", "--hard=pods=0", "-n", TEAM)
    try:
        with applied(platform, "over-quota"):
            tells(platform, "over-quota", "PodsPending", "exceeded quota")
            platform.kubectl("delete", "quota", "tight", "-n", TEAM)
            runs(platform, "over-quota")
    finally:
        platform.kubectl("delete", "quota", "tight", "-n", TEAM, "--ignore-not-found")


def test_node_that_is_cordoned(platform: Platform) -> None:
    (node,) = platform.kubectl("get", "nodes", "-o", "name").split()
    platform.kubectl("cordon", node)
    try:
        with applied(platform, "cordoned"):
            tells(platform, "cordoned", "Unschedulable", "unschedulable")
            platform.kubectl("uncordon", node)
            runs(platform, "cordoned")
    finally:
        platform.kubectl("uncordon", node)


def test_image_that_is_missing_and_comes(platform: Platform) -> None:
    if platform.cluster is None:
        pytest.skip("images of a foreign cluster are not ours to change")
    image = "finetune.local/missing:1"
    template = {"spec": {"containers": [{"name": "trainer", "image": image}]}}
    with applied(platform, "no-image", cluster={"workers": 1, "podTemplate": template}):
        tells(platform, "no-image", "ImagePullFailed", image)
        platform.cluster.runtime().ctr("images", "tag", platform.images().trainer, image)
        try:
            runs(platform, "no-image")
        finally:
            platform.cluster.runtime().ctr("images", "rm", image)


# Where the kernel kills one process and not a container, as with cgroup v1, it should be the first one.
_EAT = """
open('/proc/1/oom_score_adj', 'w').write('1000')
x = bytearray(8 << 30)
x[::4096] = b'1' * len(x[::4096])
"""


def test_worker_that_runs_out_of_memory(platform: Platform) -> None:
    cluster = {"workers": 2, "resourcesPerWorker": {"memory": "3Gi"}}
    with applied(platform, "hungry", cluster=cluster):
        runs(platform, "hungry")
        worker = pod_of(platform, "hungry", 1)
        platform.kubectl(
            "exec", "-n", TEAM, worker, "--", "python3", "-c", _EAT, check=False
        )  # it is killed, with whatever else runs there
        tells(platform, "hungry", "OutOfMemory", "pod 1: container trainer was killed", lasts=False)
        platform.wait("trials go on", lambda: running_trials(platform, "hungry") >= 1, 240)
        assert platform.study("hungry")["status"]["attempts"] == 1


@pytest.mark.extended
def test_head_that_is_evicted(platform: Platform) -> None:
    with applied(platform, "evicted", budget={"maxTrials": 3}):
        platform.wait("a trial at its rung", lambda: running_trials(platform, "evicted"), 240)
        head = pod_of(platform, "evicted", 0)
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": head, "namespace": TEAM},
        }
        path = f"/api/v1/namespaces/{TEAM}/pods/{head}/eviction"
        platform.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        tells(platform, "evicted", "Evicted", "EvictionByEvictionAPI", lasts=False)
        done = wait_complete(platform, "evicted")
        assert done["status"]["attempts"] == 1
        assert done["status"]["trials"]["failed"] == 0


@contextmanager
def _well(platform: Platform, node: str) -> Iterator[None]:
    """A node that takes no pod and only says that it is well: where none is, Kubernetes gives up on none."""
    says = {"type": "Ready", "status": "True", "reason": "Stand-in"}
    manifest = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node},
        "spec": {"unschedulable": True},
        "status": {"conditions": [says]},
    }
    platform.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
    over = threading.Event()

    def beat() -> None:
        while not over.wait(5):
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": node, "namespace": "kube-node-lease"},
                "spec": {
                    "holderIdentity": node,
                    "leaseDurationSeconds": 40,
                    "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                },
            }
            platform.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(lease))

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()
        platform.kubectl("delete", "node", node)


@pytest.mark.extended
def test_node_that_is_lost_and_comes_back(platform: Platform) -> None:
    if platform.cluster is None:
        pytest.skip("nodes of a foreign cluster are not ours to stop")
    kubelet = Service("kubelet", (), platform.cluster.folder).pid
    assert kubelet is not None
    soon = {
        "key": "node.kubernetes.io/unreachable",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 5,
    }
    template = {"spec": {"tolerations": [soon], "terminationGracePeriodSeconds": 5}}
    cluster = {"workers": 1, "podTemplate": template}
    with (
        _well(platform, "stand-in"),
        applied(platform, "lost-node", budget={"maxTrials": 500}, cluster=cluster),
    ):
        platform.wait("a trial at its rung", lambda: running_trials(platform, "lost-node"), 240)
        head = pod_of(platform, "lost-node", 0)
        os.kill(kubelet, signal.SIGSTOP)  # its containers go on, but nobody can know
        try:
            silent = "its node does not answer"
            tells(platform, "lost-node", "NodeLost", silent, lasts=False, seconds=90)
            tells(platform, "lost-node", "NodeLost", "DeletionByTaintManager", seconds=120)
            platform.wait("another pod", lambda: _heads(platform, "lost-node") - {head}, 120)
            tells(platform, "lost-node", "Unschedulable", "untolerated taint")
        finally:
            os.kill(kubelet, signal.SIGCONT)
        platform.wait("another driver", lambda: term_of(platform, "lost-node") == 2, 120)
        patch(platform, "lost-node", {"budget": {"maxTrials": 1}})
        done = wait_complete(platform, "lost-node")
        assert done["status"]["attempts"] == 1
        assert done["status"]["trials"]["failed"] == 0
        assert term_of(platform, "lost-node") == 2
        records = folder(platform, "lost-node")
        proposed = [event for event in events_of(records) if isinstance(event, ev.Proposed)]
        check_records(records, len(proposed))


def _heads(platform: Platform, name: str) -> set[str]:
    """Names of the pods of the first place; the only ones of a study with one worker."""
    return {pod["metadata"]["name"] for pod in platform.pods(name)}


@pytest.fixture
def small(platform: Platform) -> Iterator[tuple[str, Path]]:
    """A claim on a small file system with the example's data and model, and its folder."""
    if platform.cluster is None:
        pytest.skip("file systems of a foreign cluster are not ours to fill")
    server = platform.cluster.server()
    folder = server.folder / "volumes" / "small"
    _remove_small(platform, folder)  # what a run that was cut off may have left
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=500m,mode=777", "small", folder], check=True
    )
    try:
        for name in ("data", "models"):
            subprocess.run(["cp", "-rL", ROOT / "examples" / name, folder], check=True)
        subprocess.run(["chmod", "-R", "a+rwX", folder], check=True)
        manifests = volumes.volume(TEAM, "small", folder, "ReadWriteMany")
        items = {"apiVersion": "v1", "kind": "List", "items": manifests}
        platform.kubectl("apply", "-f", "-", stdin=json.dumps(items))
        yield "small", folder
    finally:
        _remove_small(platform, folder)


def _remove_small(platform: Platform, folder: Path) -> None:
    platform.kubectl("delete", "pvc", "small", "-n", TEAM, "--ignore-not-found")
    platform.kubectl("delete", "pv", f"{TEAM}-small", "--ignore-not-found")
    while folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_volume_that_is_full_and_gets_room(platform: Platform, small: tuple[str, Path]) -> None:
    claim, folder = small
    storage = {"persistentVolumeClaim": {"claimName": claim}}
    with applied(platform, "no-room", storage=storage, budget={"maxTrials": 3}):
        platform.wait("a trial at its rung", lambda: running_trials(platform, "no-room"), 240)
        filler = folder / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1M"], check=False)
        tells(platform, "no-room", "StorageUnavailable", "No space left on device", seconds=120)
        assert condition(platform.study("no-room"), "Failed") != "True"
        filler.unlink()
        done = wait_complete(platform, "no-room")
        assert done["status"]["attempts"] == 1
        assert done["status"]["trials"]["failed"] == 0
        assert done["status"]["trials"]["summary"] == "3/3"


def test_suspension_reaches_a_study_whose_pods_cannot_start(platform: Platform) -> None:
    platform.kubectl("create", "quota", "tight", "--hard=pods=0", "-n", TEAM)
    try:
        with applied(platform, "waits"):
            tells(platform, "waits", "PodsPending", "exceeded quota")
            patch(platform, "waits", {"suspend": True})
            platform.wait("Suspended", lambda: state(platform, "waits") == "Suspended", 30)
    finally:
        platform.kubectl("delete", "quota", "tight", "-n", TEAM)
