"""Objects nested as deep as the API server takes them, by whoever may write one: the operator outlives them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api.wrong_manifests import VALID, changed
from tests.cluster import lives
from tests.cluster.driver import DEPTH, NESTED, Driver, as_json
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until


@pytest.fixture(autouse=True)
def deep_json() -> Iterator[None]:
    """This test reads what the API server serves, too."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(3 * DEPTH)
    yield
    sys.setrecursionlimit(limit)


def _in_fields_of_a_manager(server: ApiServer, studies: Studies, folder: Path) -> None:
    """By a study's pods: whose fields are whose is part of the metadata that they may patch."""
    entry = {
        "manager": "stranger",
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2026-11-23T12:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": NESTED,
    }
    driver = Driver.of(server, studies, "tickets", folder)
    driver.patch("tickets-progress", {"metadata": {"managedFields": [entry]}}, folder)


def _in_a_pod_template(server: ApiServer, studies: Studies, folder: Path) -> None:
    """By a user: the template has no schema."""
    meta = {"name": "deep", "namespace": studies.namespace}
    template = {"metadata": meta, "spec.cluster": {"podTemplate": {"spec": NESTED}}}
    file = folder / "study.json"
    file.write_text(as_json(changed(VALID, template)))
    studies.kubectl("create", "--validate=false", "-f", str(file))
    until("Stalled", lambda: studies.condition("deep", "Stalled").get("status") == "True")
    assert studies.condition("deep", "Stalled")["reason"] == "InvalidSpec"
    assert "must be nested at most" in studies.condition("deep", "Stalled")["message"]
    assert not studies.get("job", "deep-1")


@pytest.mark.parametrize("write", [_in_fields_of_a_manager, _in_a_pod_template])
def test_operator_outlives_what_is_nested_too_deep(
    write: Callable[[ApiServer, Studies, Path], None],
    operator: OperatorProcess,
    server: ApiServer,
    studies: Studies,
    tmp_path: Path,
) -> None:
    process = operator.process
    assert process is not None
    studies.apply("tickets")
    lives.run(studies, "tickets")
    write(server, studies, tmp_path)
    studies.apply("other")
    lives.run(studies, "other")
    lives.complete(studies, "other")
    assert process.poll() is None
    operator.kill()
    operator.start()  # it lists now what it watched before
    lives.complete(studies, "tickets")
