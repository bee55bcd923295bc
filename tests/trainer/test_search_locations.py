"""Object stores by their URIs: what is read from variables that a Secret holds."""

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.storage.locations import AZURE_KEY, AZURE_TOKEN, GOOGLE_KEY, beside
from finetune_trainer.storage.locations import open_filesystem as opened

KEY = base64.b64encode(b"x" * 64).decode()
AZURE = "abfss://studies@account.dfs.core.windows.net/team/one"
TOKEN = "sv=2024-11-04&sig=abc%3D"
FILE = "GOOGLE_APPLICATION_CREDENTIALS"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (AZURE_KEY, AZURE_TOKEN, GOOGLE_KEY, FILE):
        monkeypatch.setenv(name, "")  # so that it is put back, whoever sets it
        monkeypatch.delenv(name)


def azure(location: str = AZURE) -> dict[str, Any]:
    """What pyarrow knows of a store in Azure."""
    filesystem, path = opened(location)
    assert path == "studies/team/one"
    facts: dict[str, Any] = filesystem.__reduce__()[1][0]
    return {name: value for name, value in facts.items() if value and "_storage_" not in name}


def test_azure_is_opened_as_whoever_runs_there_or_with_what_a_secret_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert azure() == {"account_name": "account"}
    monkeypatch.setenv(AZURE_TOKEN, f"?{TOKEN}")
    assert azure() == {"account_name": "account", "sas_token": f"?{TOKEN}"}
    monkeypatch.setenv(AZURE_KEY, KEY)
    assert azure() == {"account_name": "account", "account_key": KEY}
    assert "account_key" not in azure(f"{AZURE}?{TOKEN}"), "what the study says counts"
    assert azure("abfs://account@studies/team/one") == azure()


def test_googles_key_becomes_the_file_that_its_client_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened("gs://studies/team")
    assert FILE not in os.environ
    monkeypatch.setenv(GOOGLE_KEY, '{"type": "service_account"}')
    opened("gs://studies/team")
    file = Path(os.environ[FILE])
    assert file.read_text() == '{"type": "service_account"}'
    assert file.stat().st_mode & 0o077 == 0
    monkeypatch.setenv(FILE, "/mine")
    opened("gs://studies/team")
    assert os.environ[FILE] == "/mine"
    file.unlink()


@pytest.mark.parametrize(
    ("location", "own", "found"),
    [
        ("s3://b/x/results", "s3://k:s@b/t?scheme=http", "s3://k:s@b/x/results?scheme=http"),
        ("s3://b/x", "s3://b/t", "s3://b/x"),
        ("s3://other/x", "s3://k:s@b/t?scheme=http", "s3://other/x"),
        ("gs://b/x", "s3://k:s@b/t?scheme=http", "gs://b/x"),
        ("s3://b/x?region=eu", "s3://k:s@b/t?scheme=http", "s3://b/x?region=eu"),
        ("runs/one", "s3://k:s@b/t?scheme=http", "runs/one"),
        ("s3://b/x", None, "s3://b/x"),
    ],
)
def test_a_study_in_the_same_bucket_is_read_with_what_opens_the_bucket(
    location: str, own: str | None, found: str
) -> None:
    assert beside(location, own) == found
