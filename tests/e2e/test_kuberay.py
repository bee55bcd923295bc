"""A study under KubeRay on a real node: it completes, and goes on from its records when its head is lost."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from finetune_trainer.records import events as ev
from tests.cluster.kuberay import KINDS, controller, serve
from tests.cluster.onenode.processes import Service
from tests.e2e.platform import TEAM, Platform
from tests.e2e.test_study import folder, running_trials, study, term_of, wait_complete
from tests.records import check_records, events_of

pytestmark = pytest.mark.extended

# A head and a worker side by side on two processors, with what the node itself needs.
_HEAD = {"cpu": "500m", "memory": "3Gi"}


@pytest.fixture(scope="module")
def kuberay(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if platform.cluster is None:
        pytest.skip("a foreign cluster has a KubeRay of its own")
    serve(platform.cluster.server())
    platform.install(engine="RayJob", headResources=_HEAD)
    service = controller(platform.kubeconfig, tmp_path_factory.mktemp("kuberay"))
    service.start()
    try:
        yield service
    finally:
        platform.clear()
        platform.install()
        for kind in KINDS:  # while KubeRay runs: it takes its finalizers off
            platform.kubectl("delete", "crd", f"{kind}.ray.io", "--wait")
        service.stop()


def _ray_job(platform: Platform, name: str) -> dict[str, Any]:
    found = platform.kubectl("get", "rayjobs", name, "-n", TEAM, "-o", "json", check=False)
    return json.loads(found) if found else {}


def _said(platform: Platform, kuberay: Service, name: str) -> str:
    """What a person would look at when a RayJob does not come up."""
    job = json.dumps(_ray_job(platform, name).get("status", {}), indent=1)
    return f"{job}\n{kuberay.log_end()}"


def _pods(platform: Platform, name: str, kind: Literal["head", "worker"]) -> list[str]:
    """The names of the study's head or workers, without those that are being deleted."""
    return [
        str(pod["metadata"]["name"])
        for pod in platform.pods(name)
        if pod["metadata"]["labels"].get("ray.io/node-type") == kind
        and "deletionTimestamp" not in pod["metadata"]
    ]


def test_study_completes_under_kuberay(platform: Platform, kuberay: Service) -> None:
    name = "kuberay"
    platform.apply(study(name, budget={"maxTrials": 4}, cluster={"workers": 1}))
    try:
        platform.wait("a trial at its rung", lambda: running_trials(platform, name), 420)
    except AssertionError as error:
        raise AssertionError(_said(platform, kuberay, f"{name}-1")) from error
    assert _ray_job(platform, f"{name}-1")["status"]["jobDeploymentStatus"] == "Running"
    assert platform.study(name)["status"]["state"] == "Running"
    done = wait_complete(platform, name)
    status = done["status"]
    assert status["trials"]["summary"] == "4/4"
    assert status["attempts"] == 1
    assert status["final"]["testMetrics"]["accuracy"] > status["final"]["baseline"]["accuracy"]
    assert (folder(platform, name) / "model" / "config.json").exists()
    check_records(folder(platform, name), 4)
    platform.wait("its pods to go", lambda: not platform.pods(name), 120)


def test_study_goes_on_when_its_head_is_lost(platform: Platform, kuberay: Service) -> None:
    name = "kuberay-head"
    platform.apply(study(name, refit=False, budget={"maxTrials": 6}, cluster={"workers": 1}))
    platform.wait("a trial at its rung", lambda: running_trials(platform, name), 420)
    (lost,), terms = _pods(platform, name, "head"), term_of(platform, name)
    platform.kubectl("delete", "pod", lost, "-n", TEAM, "--grace-period=0", "--force")
    platform.wait("another driver", lambda: term_of(platform, name) > terms, 420)
    done = wait_complete(platform, name)
    assert done["status"]["trials"]["summary"] == "6/6"
    check_records(folder(platform, name), 6)


def test_a_worker_that_must_go_saves_first(platform: Platform, kuberay: Service) -> None:
    name = "kuberay-drained"
    long = {"epochs": 9, "maxLength": 64, "batchSize": 16}
    changes: dict[str, Any] = {"budget": {"maxTrials": 6}, "cluster": {"workers": 1}}
    platform.apply(study(name, refit=False, hyperparameters=long, **changes))
    platform.wait("a trial at its rung", lambda: running_trials(platform, name), 420)
    (worker,) = _pods(platform, name, "worker")
    platform.kubectl("delete", "pod", worker, "-n", TEAM)
    done = wait_complete(platform, name)
    assert done["status"]["trials"]["summary"] == "6/6"
    assert done["status"]["attempts"] == 1
    events = events_of(folder(platform, name))
    given_back = [event for event in events if isinstance(event, ev.Requeued)]
    assert given_back
    assert not any(event.lost for event in given_back)
    check_records(folder(platform, name), 6)


def test_workers_come_with_the_work_and_go_as_the_search_drains(
    platform: Platform, kuberay: Service
) -> None:
    name = "kuberay-scaled"
    worker = {"cpu": "350m", "memory": "3Gi"}  # two, beside the head and Ray's autoscaler
    changes: dict[str, Any] = {
        "hyperparameters": {"epochs": 9, "maxLength": 64, "batchSize": 16},  # minutes
        "search": {"algorithm": "Random", "scheduler": {"type": "None"}},
        "budget": {"maxTrials": 3},
        "cluster": {"workers": 2, "minWorkers": 0, "resourcesPerWorker": worker},
    }
    platform.apply(study(name, refit=False, **changes))
    platform.wait("a RayJob", lambda: _ray_job(platform, f"{name}-1"), 60)
    (group,) = _ray_job(platform, f"{name}-1")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 0

    def ended() -> int:
        return int(platform.study(name)["status"].get("trials", {}).get("completed", 0))

    try:
        platform.wait("two workers", lambda: len(_pods(platform, name, "worker")) == 2, 420)
        platform.wait("the last trial to train alone", lambda: ended() == 2, 900)
        platform.wait("a worker to go", lambda: len(_pods(platform, name, "worker")) == 1, 300)
        assert ended() == 2
        done = wait_complete(platform, name)
    except AssertionError as error:
        raise AssertionError(_said(platform, kuberay, f"{name}-1")) from error
    assert done["status"]["trials"]["summary"] == "3/3"
    assert done["status"]["attempts"] == 1
    check_records(folder(platform, name), 3)
