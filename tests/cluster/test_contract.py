"""The real API server and pydantic accept the same studies and name the same fields."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest import ManifestError, load_yaml, parse_study
from tests.api.wrong_manifests import EDITS, VALID, WRONG, Wrong, changed
from tests.cluster.client import STUDIES, Client
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import program
from tests.cluster.random_manifests import random_manifest
from tests.cluster.shared import CRD

MANIFESTS = 120
MANY_MANIFESTS = 2000
pytestmark = pytest.mark.quick
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def client(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    made = Client(server, tmp_path_factory.mktemp("client"))
    yield made
    made.close()


@pytest.mark.parametrize(
    "seeds",
    [range(MANIFESTS), pytest.param(range(MANIFESTS, MANY_MANIFESTS), marks=pytest.mark.slow)],
    ids=["some", "many"],
)
def test_api_server_and_pydantic_agree_on_random_manifests(client: Client, seeds: range) -> None:
    manifests = [random_manifest(seed) for seed in seeds]
    accepted = 0
    for seed, manifest, (status, answer) in zip(
        seeds, manifests, client.dry_runs(manifests), strict=True
    ):
        try:
            parse_study(manifest)
            problem = ""
        except ManifestError as error:
            problem = str(error)
        says = f"seed {seed}: API server {status} {answer.get('message', '')}; pydantic: {problem}"
        assert (status == 201) == (not problem), f"{says}\n{json.dumps(manifest['spec'])}"
        accepted += status == 201
    assert len(seeds) / 5 < accepted < len(seeds) * 4 / 5


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_example_is_accepted(client: Client, example: Path) -> None:
    manifest = load_yaml(example.read_text())
    parse_study(manifest)
    manifest["metadata"]["namespace"] = "default"
    status, answer = client.dry_run(manifest)
    assert status == 201, answer


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_wrong_manifest_is_refused_at_its_field(client: Client, wrong: Wrong) -> None:
    status, answer = client.dry_run(wrong.manifest())
    assert status in (400, 422), answer
    # The API server counts list items as pydantic does, but names the list where an item is at fault.
    assert wrong.field in answer["message"], answer["message"]
    assert wrong.reason in answer["message"], answer["message"]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
def test_edit_of_what_must_not_change_is_refused(client: Client, edit: Wrong) -> None:
    client.request("POST", STUDIES, VALID)
    _begun(client)
    status, answer = client.request(
        "PUT", f"{STUDIES}/tickets?dryRun=All", _stored(client, edit.changes)
    )
    assert status == 422, answer
    assert edit.field in answer["message"]
    assert edit.reason in answer["message"]


def test_nobody_hides_an_edit_behind_a_new_status(client: Client) -> None:
    """The spec is not compared when the status has a new message: who writes one must not write the other."""
    client.request("POST", STUDIES, VALID)
    told = _stored(client, {"status": {"observedGeneration": 1, "message": "as it was"}})
    assert client.request("PUT", f"{STUDIES}/tickets/status", told)[0] == 200
    both = {"spec.task": "MultiLabel", "status.message": "new"}

    status, answer = client.request("PUT", f"{STUDIES}/tickets", _stored(client, both))
    assert status == 422, answer
    assert "must not change after creation: task" in answer["message"]

    status, answer = client.request("PUT", f"{STUDIES}/tickets/status", _stored(client, both))
    assert status == 200, answer
    assert answer["spec"] == told["spec"]
    assert answer["status"]["message"] == "new"


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.suspend": True},
        {"spec.budget": {"maxTrials": 99}},
        {"spec.objective.target": 0.9},
        {"spec.ttlSecondsAfterFinished": 60},
    ],
    ids=["suspend", "budget", "target", "ttl"],
)
def test_edit_of_what_may_change_is_accepted(client: Client, changes: dict[str, object]) -> None:
    client.request("POST", STUDIES, VALID)
    status, answer = client.request(
        "PUT", f"{STUDIES}/tickets?dryRun=All", _stored(client, changes)
    )
    assert status == 200, answer


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.cluster": {"workers": 2, "resourcesPerWorker": {"memory": "8Gi"}}},
        {"spec.compute": {"precision": "BF16"}},
        {"spec.cluster": {"workers": 2}, "spec.suspend": False},
    ],
    ids=["cluster", "compute", "with the commit that resumes"],
)
def test_what_an_attempt_is_made_of_may_change_while_the_study_is_suspended(
    client: Client, changes: dict[str, object]
) -> None:
    manifest = changed(VALID, {"metadata.name": "suspended", "spec.suspend": True})
    client.request("POST", STUDIES, manifest)
    _begun(client, "suspended")
    where = f"{STUDIES}/suspended?dryRun=All"
    status, answer = client.request("PUT", where, _stored(client, changes, "suspended"))
    assert status == 200, answer
    moved = _stored(client, {"spec.storage": {"uri": "s3://bucket/other"}}, "suspended")
    assert client.request("PUT", where, moved)[0] == 422


def test_storage_may_change_until_there_is_an_attempt(client: Client) -> None:
    client.request("POST", STUDIES, changed(VALID, {"metadata.name": "waiting"}))
    where = f"{STUDIES}/waiting"
    for uri in ("s3://bucket/some", "s3://bucket/other"):
        status, answer = client.request(
            "PUT", where, _stored(client, {"spec.storage": {"uri": uri}}, "waiting")
        )
        assert status == 200, answer
        seen = _stored(client, {"status": {"observedGeneration": 1, "attempts": 0}}, "waiting")
        assert client.request("PUT", f"{where}/status", seen)[0] == 200


def _begun(client: Client, name: str = "tickets") -> None:
    """Let the study have an attempt."""
    told = _stored(client, {"status": {"observedGeneration": 1, "attempts": 1}}, name)
    status, answer = client.request("PUT", f"{STUDIES}/{name}/status", told)
    assert status == 200, answer


def _stored(client: Client, changes: dict[str, Any], name: str = "tickets") -> Any:
    _, stored = client.request("GET", f"{STUDIES}/{name}")
    return changed(stored, changes)


@pytest.mark.slow
def test_rules_stay_within_their_cost() -> None:
    done = subprocess.run(
        [program("celcost"), str(CRD)], text=True, capture_output=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


TRICKY = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: tricky
  annotations:
    words: "yes"
scalars: [1e-5, 1e3, 16.0, 010, 0o10, 0x1F, 0b11, 1_000, 1:30, 2001-01-01, y, Yes, off, ~, None, "1e-5", -0.5, +7, .5, 5., 08]
"""


def test_yaml_is_read_as_kubectl_reads_it(server: ApiServer, tmp_path: Path) -> None:
    path = tmp_path / "tricky.yaml"
    path.write_text(TRICKY)
    printed = server.kubectl(
        "create", "--dry-run=client", "--validate=false", "-o", "json", "-f", str(path)
    )
    assert load_yaml(TRICKY)["scalars"] == json.loads(printed)["scalars"]
