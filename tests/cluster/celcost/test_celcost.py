"""The cost of CEL rules as the API server estimates it: ours are within the limits, dear ones are not."""

import subprocess
from pathlib import Path

import pytest
import yaml
from tests.cluster.onenode.build import program
from tests.needs import ToolMissing, not_run

CRDS = Path(__file__).parents[3] / "crds"


def celcost(crd: Path) -> subprocess.CompletedProcess[str]:
    try:
        command = program("celcost")
    except ToolMissing as missing:
        not_run(missing)
    return subprocess.run([command, crd], text=True, capture_output=True, check=False)


def crd_with(rule: str, schema: dict[str, object], folder: Path) -> Path:
    text = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "probes.example.dev"},
        "spec": {
            "group": "example.dev",
            "scope": "Namespaced",
            "names": {
                "plural": "probes",
                "singular": "probe",
                "kind": "Probe",
                "listKind": "ProbeList",
            },
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {**schema, "x-kubernetes-validations": [{"rule": rule}]}
                            },
                        }
                    },
                }
            ],
        },
    }
    path = folder / "crd.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.mark.parametrize("crd", sorted(CRDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_api_server_accepts_what_our_rules_cost(crd: Path) -> None:
    done = celcost(crd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "0 refused" in done.stdout


@pytest.mark.parametrize(
    ("rule", "schema", "verdict"),
    [
        pytest.param(
            "self.all(a, self.exists(b, a == b))",
            {"type": "array", "items": {"type": "string"}},
            "TOO COSTLY",
            id="unbounded nested loop",
        ),
        pytest.param("self.nosuch", {"type": "string"}, "INVALID", id="does not compile"),
    ],
)
def test_a_rule_the_api_server_would_refuse_is_shown_and_fails(
    rule: str, schema: dict[str, object], verdict: str, tmp_path: Path
) -> None:
    done = celcost(crd_with(rule, schema, tmp_path))
    assert done.returncode == 1
    assert verdict in done.stdout
    assert rule in done.stdout
