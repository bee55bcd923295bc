"""A study on a real node: it completes, survives faults, suspends and resumes; its model predicts."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.storage.folder import Storage
from tests.cluster.object_servers import BUCKET, KEY, SECRET, ObjectServer, object_server
from tests.cluster.onenode.network import NODE_ADDRESS
from tests.e2e.platform import ROOT, TEAM, Platform, condition, example
from tests.records import check_records, events_of

Manifest = dict[str, Any]
MINILM = "all-MiniLM-L6-v2"


def study(name: str, **changes: Any) -> Manifest:
    """The library example, smaller: its rungs at 1 and 3 epochs, two workers."""
    manifest = example("library")
    manifest["metadata"]["name"] = name
    manifest["spec"] |= {
        "hyperparameters": {"epochs": 3, "maxLength": 16, "batchSize": 16},
        "searchSpaces": [{"learningRate": {"min": 1e-4, "max": 6e-4, "scale": "Log"}}],
        **changes,
    }
    return manifest


def tagging(name: str) -> Manifest:
    """The example of entities, as small."""
    manifest = example("names")
    manifest["metadata"]["name"] = name
    manifest["spec"]["hyperparameters"] = {"epochs": 3, "maxLength": 32, "batchSize": 16}
    manifest["spec"]["searchSpaces"] = [
        {"learningRate": {"min": 3e-4, "max": 9e-4, "scale": "Log"}}
    ]
    manifest["spec"]["budget"] = {"maxTrials": 8}
    manifest["spec"]["dataset"]["split"] = {"validation": 0.2, "test": 0.5, "seed": 7}
    return manifest


def state(platform: Platform, name: str) -> str:
    return str(platform.study(name).get("status", {}).get("state", ""))


def wait_complete(platform: Platform, name: str) -> Manifest:
    def over() -> bool:
        found = platform.study(name)
        assert condition(found, "Failed") != "True", platform.describe()
        return condition(found, "Complete") == "True"

    platform.wait(f"{name} to complete", over, 900)
    return platform.study(name)


def folder(platform: Platform, name: str) -> Path:
    """The study's own folder on this machine."""
    assert platform.cluster is not None
    root = platform.cluster.server().folder / "volumes" / TEAM
    return root / TEAM / name / str(platform.study(name)["metadata"]["uid"])


def running_trials(platform: Platform, name: str) -> int:
    return int(platform.study(name).get("status", {}).get("trials", {}).get("paused", 0))


@pytest.mark.quick
def test_study_completes_and_its_model_predicts(platform: Platform) -> None:
    name = "completes"
    platform.apply(study(name))
    pods = platform.wait("two running pods", lambda: _running(platform, name, 2), 120)
    for pod in pods:
        security = pod["spec"]["containers"][0]["securityContext"]
        assert security["readOnlyRootFilesystem"]
    done = wait_complete(platform, name)

    status = done["status"]
    assert status["state"] == "Complete"
    assert status["trials"]["summary"] == "8/8"
    assert status["final"]["testMetrics"]["accuracy"] > 2 * status["final"]["baseline"]["accuracy"]
    params = platform.kubectl(
        "get", "fts", name, "-n", TEAM, "-o", "jsonpath={.status.best.params.learningRate}"
    )
    assert 1e-4 <= float(params) <= 6e-4
    platform.wait("all pods to go", lambda: not _running(platform, name, 1), 60)
    labels = json.loads(platform.kubectl("get", "ns", TEAM, "-o", "json"))["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    _predicts(folder(platform, name) / "model")
    table = (folder(platform, name) / "results" / "trials.csv").read_text()
    assert len(list(csv.DictReader(table.splitlines()))) == 8
    check_records(folder(platform, name), 8)


def _running(platform: Platform, name: str, count: int) -> list[Manifest]:
    pods = [pod for pod in platform.pods(name) if pod["status"]["phase"] == "Running"]
    return pods if len(pods) >= count else []


def _predicts(model: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForSequenceClassification.from_pretrained(model).eval()
    logits = loaded(
        **tokenizer("Compute the eigenvalues of a sparse matrix.", return_tensors="pt")
    ).logits
    assert logits.shape == (1, 8)
    assert "scipy" in loaded.config.id2label.values()


def _tags(model: Path) -> None:
    from transformers import pipeline

    tagger = pipeline("token-classification", str(model), aggregation_strategy="first", stride=8)
    text = "Returns None if axis is False, else an array. " * 8
    kinds = {found["entity_group"] for found in tagger(text)}
    assert kinds <= {"parameter", "class", "value"}
    assert max(found["end"] for found in tagger(text)) > len(text) / 2, "windows reach the end"


_KILL_DRIVER = """
import glob, os, signal
for path in glob.glob("/proc/[0-9]*/cmdline"):
    command = open(path, "rb").read().split(b"\\0")
    if b"finetune_trainer.driver" in command:
        os.kill(int(path.split("/")[2]), signal.SIGKILL)
"""


def test_study_survives_the_loss_of_drivers_and_pods(platform: Platform) -> None:
    """One that tags words, to its end: its model finds entities."""
    name = "survives"
    platform.apply(tagging(name))

    def at_its_rung(term: int) -> bool:
        return term_of(platform, name) == term and running_trials(platform, name) > 0

    for term in (1, 2):
        platform.wait(f"term {term} with a trial at its rung", partial(at_its_rung, term), 240)
        head = pod_of(platform, name, 0)
        platform.kubectl("exec", "-n", TEAM, head, "--", "python3", "-c", _KILL_DRIVER)
    platform.wait("term 3", lambda: term_of(platform, name) == 3, 120)
    platform.kubectl("delete", "pod", "-n", TEAM, pod_of(platform, name, 1), "--wait=false")
    platform.wait("more trials at their rung", lambda: running_trials(platform, name) >= 2, 240)
    platform.kubectl("delete", "pod", "-n", TEAM, pod_of(platform, name, 0), "--wait=false")
    done = wait_complete(platform, name)
    assert term_of(platform, name) == 4
    assert done["status"]["trials"]["failed"] == 0
    assert done["status"]["trials"]["summary"] == "8/8"
    check_records(folder(platform, name), 8)
    final = done["status"]["final"]
    assert final["testMetrics"]["f1_micro"] > final["baseline"]["f1_micro"] == 0
    _tags(folder(platform, name) / "model")
    label = f"finetune.dev/study={name}"
    jobs = json.loads(platform.kubectl("get", "jobs", "-n", TEAM, "-l", label, "-o", "json"))
    assert len(jobs["items"]) == 1


def term_of(platform: Platform, name: str) -> int:
    """How many drivers the study has had."""
    config = ("configmap", f"{name}-progress", "-n", TEAM)
    return int(platform.kubectl("get", *config, "-o", "jsonpath={.data.term}") or 0)


def pod_of(platform: Platform, name: str, index: int) -> str:
    def find() -> str:
        for pod in _running(platform, name, 1):
            if pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] == str(
                index
            ):
                return (
                    "" if "deletionTimestamp" in pod["metadata"] else str(pod["metadata"]["name"])
                )
        return ""

    return str(platform.wait(f"pod {index} of {name}", find, 180))


@pytest.fixture
def s3(platform: Platform, tmp_path: Path) -> Iterator[ObjectServer]:
    """A server of S3 on the node with example data and model in it; the Secret `s3` says where and who."""
    with object_server("s3", tmp_path, NODE_ADDRESS) as server:
        data = (ROOT / "examples" / "data" / "library.csv").read_bytes()
        Storage.open(server.uri("data")).write("library.csv", data)
        Storage.open(server.uri("models")).upload(ROOT / "examples" / "models" / MINILM, MINILM)
        known = {
            "AWS_ENDPOINT_URL": f"http://{server.host}:{server.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        secret = {"metadata": {"name": "s3"}, "stringData": known}
        manifest = json.dumps({"apiVersion": "v1", "kind": "Secret", **secret})
        platform.kubectl("apply", "-n", TEAM, "-f", "-", stdin=manifest)
        yield server
        platform.clear()
        platform.kubectl("delete", "secret", "s3", "-n", TEAM)


def in_s3(name: str, **changes: Any) -> Manifest:
    """The study with storage, data and model in S3."""
    made = study(name, storage={"uri": f"s3://{BUCKET}/teams", "secretName": "s3"}, **changes)
    made["spec"]["dataset"]["files"] = {"train": f"s3://{BUCKET}/data/library.csv"}
    made["spec"]["model"] = {"name": f"s3://{BUCKET}/models/{MINILM}"}
    return made


def test_suspended_study_goes_on_from_its_records_in_s3(
    platform: Platform, s3: ObjectServer
) -> None:
    name = "suspended"
    platform.apply(in_s3(name, budget={"maxTrials": 4}))
    uid = platform.study(name)["metadata"]["uid"]
    root = s3.uri(f"teams/{TEAM}/{name}/{uid}")
    platform.wait("a trial at its rung", lambda: running_trials(platform, name), 240)
    patch(platform, name, {"suspend": True})
    platform.wait("the pods to go", lambda: not platform.pods(name), 60)
    platform.wait("Suspended", lambda: condition(platform.study(name), "Suspended") == "True", 30)
    before = Counter(type(event).__name__ for event in events_of(root))
    patch(platform, name, {"suspend": False, "budget": {"maxTrials": 5}})
    done = wait_complete(platform, name)
    assert done["status"]["attempts"] == 2
    assert done["status"]["trials"]["summary"] == "5/5"
    assert before["EpochDone"] >= 1
    check_records(root, 5)
    with Storage.open(root).fetched("model") as model:
        _predicts(model)


def patch(platform: Platform, name: str, spec: Manifest) -> None:
    platform.kubectl(
        "patch", "fts", name, "-n", TEAM, "--type=merge", "-p", json.dumps({"spec": spec})
    )


@pytest.mark.parametrize(
    ("name", "changes", "reason", "field"),
    [
        (
            "no-column",
            {
                "dataset": {
                    "files": {"train": "data/library.csv"},
                    "textColumns": ["body"],
                    "labelColumn": "library",
                }
            },
            "DataError",
            "spec.dataset.textColumns",
        ),
        ("no-model", {"model": {"name": "models/none"}}, "ModelError", "spec.model.name"),
    ],
)
def test_what_only_the_data_can_tell_fails_the_study_with_the_field(
    platform: Platform, name: str, changes: Manifest, reason: str, field: str
) -> None:
    platform.apply(study(name, cluster={"workers": 1}, **changes))
    platform.wait("Failed", lambda: state(platform, name) == "Failed", 180)
    found = platform.study(name)
    failed = next(c for c in found["status"]["conditions"] if c["type"] == "Failed")
    assert failed["reason"] == reason
    assert field in failed["message"]
    assert condition(found, "Stalled") == "True"
