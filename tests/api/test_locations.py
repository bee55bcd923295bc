"""Locations hold no credentials, wherever a study has one; the API server's rule agrees (tests/cluster/test_contract.py)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from finetune_api.locations import RULE, Location
from finetune_api.manifest import ManifestError, load_yaml, parse_study
from tests.api.wrong_manifests import VALID, changed

CRD = Path(__file__).resolve().parents[2] / "crds" / "finetunestudies.yaml"
SECRET = "s3cret"

LEAKS = [
    f"s3://AKIA:{SECRET}@bucket/data.csv",
    f"s3://AKIA:{SECRET}@minio:9000/bucket",
    f"https://me:{SECRET}@example.com/data.csv",
    f"http://:{SECRET}@mlflow:5000",
    f"abfss://container:{SECRET}@account.dfs.core.windows.net/x",
    f"s3://bucket/x?access_key=AKIA&secret_key={SECRET}",
    f"s3://bucket/x?region=eu&session_token={SECRET}",
    f"s3://bucket/x?AWSAccessKeyId={SECRET}&Expires=1",
    f"https://bucket.s3.amazonaws.com/x?X-Amz-Algorithm=a&X-Amz-Signature={SECRET}",
    f"https://storage.googleapis.com/b/x?X-Goog-Signature={SECRET}",
    f"https://account.blob.core.windows.net/c/x?sv=2026&sig={SECRET}",
    f"abfs://c@a.dfs.core.windows.net/x?account_key={SECRET}",
    f"https://example.com/data?token={SECRET}",
    f"https://example.com/data?api_key={SECRET}",
]
FINE = [
    "data/train.csv",
    "/data/a:b@c.csv",
    "s3://bucket/data.csv",
    "s3://minio:9000/bucket/x",
    "s3://bucket/user@example.com/a:b.csv",
    "s3://bucket/x?endpoint_override=minio:9000&scheme=http&region=eu",
    "abfss://container@account.dfs.core.windows.net/x",
    "hdfs://namenode:8020/user/me@corp/data.csv",
    "http://mlflow.ml:5000",
    "all-MiniLM-L6-v2",
    "org/model",
    "s3://bucket/signature=old/x.csv",
]


@pytest.mark.parametrize("location", LEAKS)
def test_credentials_are_refused_and_not_repeated(location: str) -> None:
    with pytest.raises(ValidationError, match="must not hold credentials") as caught:
        TypeAdapter(Location).validate_python(location)
    assert SECRET not in caught.value.errors()[0]["msg"]


def test_they_are_not_repeated_with_the_study_either() -> None:
    wrong = changed(VALID, {"spec.dataset.files.train": LEAKS[0]})
    with pytest.raises(
        ManifestError, match=r"spec\.dataset\.files\.train: must not hold"
    ) as caught:
        parse_study(wrong)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("location", FINE)
def test_locations_without_credentials_are_taken(location: str) -> None:
    assert TypeAdapter(Location).validate_python(location) == location


def strings(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field with text, by its path."""
    if schema.get("type") == "string":
        yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from strings(field, f"{path}.{name}")
    if "items" in schema:
        yield from strings(schema["items"], f"{path}[]")


def test_every_field_with_a_location_has_the_rule() -> None:
    (version,) = load_yaml(CRD.read_text())["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    fields = dict(strings(spec))
    ruled = {p for p, field in fields.items() if RULE in field.get("x-kubernetes-validations", [])}
    named = {p for p in fields if p.lower().endswith("uri") or ".files." in p}
    texts = {".dataset.files." + name for name in ("encoding", "delimiter", "columnNames[]")}
    assert named - texts <= ruled
    assert {".model.name", ".dataset.labelNamesFile", ".dataset.synonyms"} <= ruled
    models = {p for p in fields if "pretrainedModel" in p and ".when" not in p}
    assert models == {
        ".hyperparameters.pretrainedModel",
        ".search.points[].pretrainedModel",
        ".searchSpaces[].pretrainedModel.values[]",
    }
    assert models <= ruled
