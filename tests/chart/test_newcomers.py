"""What a newcomer is told: the commands of the pages work as written, and what helm prints names what is missing."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest import load_yaml
from tests.chart.helm import CHART, NAMESPACE, RELEASE, ROOT, helm, options
from tests.chart.release import TEAM, study, uninstall
from tests.cluster.onenode.apiserver import ApiServer

PAGES = [ROOT / "README.md", CHART / "README.md", ROOT / "docs" / "operations.md"]
VERSION = load_yaml((CHART / "Chart.yaml").read_text())["appVersion"]


def commands(page: Path) -> list[list[str]]:
    """Every `helm install` of a page that installs from the checkout, as words."""
    text = page.read_text().replace("\\\n", " ")
    found = [shlex.split(line) for line in re.findall(r"^helm install .*$", text, flags=re.M)]
    return [words for words in found if not any(word.startswith("oci://") for word in words)]


def written() -> list[tuple[str, list[str]]]:
    return [(page.parent.name, words) for page in PAGES for words in commands(page)]


def notes(values: dict[str, Any]) -> str:
    """What helm prints when the chart has been installed."""
    command = ("install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client")
    return helm(*command, *options(values)).partition("NOTES:\n")[2]


def test_pages_say_how_to_install() -> None:
    assert all(commands(page) for page in PAGES)


@pytest.mark.parametrize(("place", "words"), written())
def test_install_works_as_written(place: str, words: list[str], server: ApiServer) -> None:
    filled = [word.replace("<registry>", "mirror.example.com/finetune") for word in words]
    assert not [word for word in filled if "<" in word]
    namespaced = any("watch.namespaces" in word for word in filled)
    if namespaced:  # its page says that the CRDs come first
        for crd in ("crd", "class-crd"):
            server.kubectl("apply", "--server-side", "-f", str(CHART / "files" / f"{crd}.yaml"))
    said = helm(*filled[1:], f"--kubeconfig={server.kubeconfig}")
    (namespace,) = (filled[at + 1] for at, word in enumerate(filled) if word == "--namespace")
    try:
        assert "STATUS: deployed" in said
        assert f"kubectl --namespace {namespace} rollout status" in said
        # The next command but one: a study is accepted.
        body = json.dumps(study(f"first-{place}"))
        server.kubectl("apply", "-n", TEAM, "-f", "-", stdin=body)
        server.kubectl("delete", "fts", "--all", "-n", TEAM)
    finally:
        helm("uninstall", "finetune", "-n", namespace, f"--kubeconfig={server.kubeconfig}")


def test_nothing_is_missing_where_everything_is_said() -> None:
    said = notes({"global.imageRegistry": "mirror.io", "study.storage": {"claimName": "studies"}})
    assert "MISSING" not in said
    assert "PersistentVolumeClaim studies" in said
    assert "\n\n\n" not in said


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, f"  finetune-operator:{VERSION}\n  finetune-trainer:{VERSION}\n"),
        ({}, "--set global.imageRegistry=<registry>"),
        ({"image.repository": "mirror.io/operator"}, "MISSING: a registry"),
        ({}, "MISSING: storage"),
        (
            {"study.storage": {"uri": "s3://b/p", "secretName": "s3"}},
            "Secret s3, with the credentials of s3://b/p",
        ),
        ({}, "a FineTuneClass says what studies get"),
        ({"crds.enabled": False}, "kubectl get crd finetunestudies.finetune.dev"),
        ({"watch.namespaces": ["nlp"]}, "--set metrics.access=Open"),
        (
            {"test": {"enabled": True, "namespace": "nlp", "study": {"task": "SingleLabel"}}},
            f"helm test {RELEASE}",
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value[:30].strip(),
)
def test_notes_say_what_is_missing_and_what_to_do(values: dict[str, Any], told: str) -> None:
    assert told in notes(values)


def test_upgrades_of_the_notes_work_as_written(server: ApiServer) -> None:
    place = (f"--namespace={NAMESPACE}", f"--kubeconfig={server.kubeconfig}")
    said = helm("install", RELEASE, str(CHART), *place)
    found = re.findall(r"^  (helm upgrade .*)$", said, flags=re.M)
    assert len(found) == 2
    for line in found:
        filled = re.sub("<(registry|claim)>", r"my-\1", line.replace("<chart>", str(CHART)))
        said = helm(*shlex.split(filled)[1:], f"--kubeconfig={server.kubeconfig}")
    assert "MISSING: storage" not in said
    assert "my-registry/finetune-operator" in said, "the first of them still counts"
    uninstall(server)


def test_helm_refuses_what_the_readme_does_not_know() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        notes({"global.imageRegistry": 5})
