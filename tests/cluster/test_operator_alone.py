"""The operator killed at random moments, and a study that it cannot read: on an API server of their own."""

import json
import random
import subprocess
import time
from functools import partial
from typing import Any

from tests.cluster.lives import FINISHED, finish
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.cluster.shared import CRD

KILLS = 20


def test_operator_killed_at_random_moments_does_the_same_thing(
    operator: OperatorProcess, studies: Studies
) -> None:
    rng = random.Random(7)

    def active(name: str) -> Any:
        return studies.get("job", f"{name}-1").get("status", {}).get("active")

    def complete(name: str) -> bool:
        return studies.state(name) == "Complete"

    for number in range(KILLS):
        studies.apply(f"study-{number}")
        time.sleep(rng.uniform(0, 0.6))
        operator.kill()
        operator.start()
        if number % 4 == 3:
            time.sleep(rng.uniform(0, 4))  # now and then it lives long enough to work
    names = [f"study-{number}" for number in range(KILLS)]
    until("all Jobs", lambda: len(studies.all("jobs")) >= KILLS, 60)
    for name in names:
        until(f"a pod of {name}", partial(active, name))
        operator.kill() if rng.random() < 0.3 else None
        finish(studies, name, f"{name}-1", **FINISHED)
        if operator.process is None or operator.process.poll() is not None:
            operator.start()
    for name in names:
        until(f"{name} to complete", partial(complete, name), 60)
    jobs = sorted(job["metadata"]["name"] for job in studies.all("jobs"))
    assert jobs == sorted(f"{name}-1" for name in names)
    for study in studies.all("fts"):
        assert study["status"]["attempts"] == 1
        assert study["status"]["observedGeneration"] == 1
    owners = {study["metadata"]["uid"] for study in studies.all("fts")}
    for kind in ("configmaps", "secrets", "services"):
        for child in studies.all(kind):
            assert {
                owner["uid"] for owner in child["metadata"].get("ownerReferences", [])
            } <= owners


def test_study_that_only_a_newer_operator_can_read_stands_still(
    operator: OperatorProcess, studies: Studies, server: ApiServer
) -> None:
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/search/properties/algorithm/enum/-"
    newer = [{"op": "add", "path": path, "value": "Oracle"}]
    crd = "crd/finetunestudies.finetune.dev"
    server.kubectl("patch", crd, "--type=json", "-p", json.dumps(newer))
    until("the newer schema", lambda: _accepted(studies, "tickets", search={"algorithm": "Oracle"}))
    until("Stalled", lambda: studies.condition("tickets", "Stalled").get("status") == "True")
    assert studies.condition("tickets", "Stalled")["reason"] == "InvalidSpec"
    assert "spec.search.algorithm" in studies.condition("tickets", "Stalled")["message"]
    studies.kubectl("delete", "fts", "tickets")
    server.serve(CRD, "finetune.dev/v1alpha1/finetunestudies")


def _accepted(studies: Studies, name: str, **changes: Any) -> bool:
    try:
        studies.apply(name, **changes)
    except subprocess.CalledProcessError:
        return False
    return True
