"""`engine: Auto` follows KubeRay's coming and going while the operator runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import lives
from tests.cluster.kuberay import crd
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until


@pytest.fixture
def operator(server: ApiServer, tmp_path: Path) -> Iterator[OperatorProcess]:
    process = OperatorProcess(server, tmp_path / "operator.log", FINETUNE_ENGINE="Auto")
    process.start()
    yield process
    process.stop()


def test_attempts_follow_kuberay_coming_and_going(
    server: ApiServer, operator: OperatorProcess, studies: Studies
) -> None:
    studies.create("before")
    lives.run(studies, "before")

    server.serve(crd("rayjobs"), "ray.io/v1/rayjobs")

    tries = iter(f"with-{n}" for n in range(100))

    def ray_job() -> str:
        """The name of a study that has one, if the operator has noticed by now."""
        name = next(tries)
        studies.create(name)
        until(
            "an attempt", lambda: studies.get("job", f"{name}-1") or _ray_job(studies, f"{name}-1")
        )
        return name if _ray_job(studies, f"{name}-1") else ""

    name = until("a RayJob", ray_job)
    lives.complete(studies, "before")

    server.kubectl("delete", "crd", "rayjobs.ray.io")
    until("its next attempt as a Job", lambda: studies.get("job", f"{name}-2"))
    lives.run(studies, name, 2)
    lives.complete(studies, name, 2)
    studies.create("after")
    lives.run(studies, "after")
    assert operator.process is not None
    assert operator.process.poll() is None


def test_an_operator_of_one_namespace_notices_that_kuberay_goes(
    server: ApiServer, tmp_path: Path, studies: Studies
) -> None:
    """Which may not follow CRDs."""
    server.serve(crd("rayjobs"), "ray.io/v1/rayjobs")
    settings = {"FINETUNE_ENGINE": "Auto", "FINETUNE_NAMESPACES": studies.namespace}
    process = OperatorProcess(server, tmp_path / "operator.log", **settings)
    process.start()
    try:
        studies.create("with")
        until("a RayJob", lambda: _ray_job(studies, "with-1"))
        server.kubectl("delete", "crd", "rayjobs.ray.io")
        until("its next attempt as a Job", lambda: studies.get("job", "with-2"))
        studies.create("after")
        until("a Job", lambda: studies.get("job", "after-1"))
    finally:
        process.stop()


def _ray_job(studies: Studies, name: str) -> dict[str, object]:
    """The RayJob of that name; empty if there is none, or no such kind."""
    status, found = studies.request("GET", "rayjob", name)
    return dict(found) if status == 200 else {}
