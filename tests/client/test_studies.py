"""The client against a real API server; statuses are those that the operator's code makes."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes.config import incluster_config

import finetune_client
from finetune_api.labels import ATTEMPT_LABEL, CONTAINER, UID_LABEL
from finetune_api.manifest import ManifestError, dump_yaml, parse_study
from finetune_api.study import StudySpec
from finetune_client import NotFound, Refused, StudyFailed, Unreachable, access
from finetune_client import Studies as ClientStudies
from tests.api.wrong_manifests import VALID, changed
from tests.client.found import PARAMS, failed, status, write
from tests.client.kubelet import kubelet
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import Studies, until
from tests.cluster.proxy import Answer, Call, Fault, Proxy, Watch, expired

SPEC = parse_study(VALID).spec


def test_spec_study_values_and_file_make_the_same_study(
    client: ClientStudies, studies: Studies, tmp_path: Path
) -> None:
    manifest = changed(VALID, {"metadata": {"name": "from-file", "labels": {"team": "nlp"}}})
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(manifest))
    client.create(path)
    client.create(changed(manifest, {"metadata.name": "from-values"}))
    client.create(parse_study(changed(manifest, {"metadata.name": "from-study"})))
    client.create(SPEC, name="from-spec")
    client.create(SPEC.to_json(), name="from-json")
    named = {study.name: study for study in client.list()}
    assert sorted(named) == ["from-file", "from-json", "from-spec", "from-study", "from-values"]
    for study in named.values():
        assert StudySpec.model_validate(study.last.spec) == SPEC
    assert studies.get("fts", "from-study")["metadata"]["labels"] == {"team": "nlp"}


def test_study_without_a_name_gets_one(client: ClientStudies) -> None:
    first, second = client.create(SPEC), client.create(SPEC)
    assert first.name != second.name
    assert first.name.startswith("study-")
    assert first.state == ""
    assert "not seen" in first.why()[0]
    assert repr(first).startswith(f"<StudyHandle {first.namespace}/{first.name} Not seen yet")


def test_what_is_wrong_is_said_before_anything_is_sent(
    client: ClientStudies, tmp_path: Path
) -> None:
    wrong = changed(VALID, {"spec.objective.metric": "f1", "metadata.namespace": client.namespace})
    with pytest.raises(ManifestError, match=r"spec\.objective\.metric"):
        client.create(wrong)
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(wrong))
    with pytest.raises(ManifestError, match=r"\(line \d+\)"):
        client.create(path)
    with pytest.raises(ManifestError, match=r"spec\.objective\.metric"):
        client.create(
            {"spec": wrong["spec"], "apiVersion": "finetune.dev/v1alpha1"} | {"kind": wrong["kind"]}
        )
    assert client.list() == []


def test_namespace_that_is_given_must_be_that_of_the_manifest(kubeconfig: Path) -> None:
    with (
        ClientStudies(namespace="nlp", kubeconfig=kubeconfig) as client,
        pytest.raises(ManifestError, match=r"metadata\.namespace: must be nlp or unset"),
    ):
        client.create(VALID)


def test_findings_are_those_of_the_status(client: ClientStudies, studies: Studies) -> None:
    study = client.create(SPEC, name="tickets")
    assert study.best is None
    assert study.trials().empty
    write(studies, "tickets", status())
    best = study.best
    assert best is not None
    assert (best.trial, best.metric, best.value, best.standard_error) == (
        1,
        "f1_macro",
        0.91234,
        0.004,
    )
    assert (best.params, best.metrics["accuracy"]) == (PARAMS, 0.93)
    table = study.trials()
    assert list(table.index) == [1, 0]
    assert table.loc[1, "param_learningRate"] == 2.5e-05
    assert table.attrs["resultsUri"] == "/storage/nlp/tickets/results"
    assert study.state == "Complete"
    assert "f1_macro 0.9123 ± 0.0040 (trial 1)" in study._repr_html_()


def test_changes_are_those_of_kubectl(client: ClientStudies, studies: Studies) -> None:
    study = client.create(SPEC, name="tickets")
    study.suspend()
    assert studies.get("fts", "tickets")["spec"]["suspend"] is True
    study.resume()
    assert studies.get("fts", "tickets")["spec"]["suspend"] is False
    study.edit_budget(max_trials=8, max_duration_seconds=60)
    study.edit_budget(max_duration_seconds=None)
    assert studies.get("fts", "tickets")["spec"]["budget"] == {"maxTrials": 8, "maxFailedTrials": 3}
    values = []
    for _ in range(2):
        study.retry()
        values.append(
            studies.get("fts", "tickets")["metadata"]["annotations"]["finetune.dev/retry"]
        )
    assert values[0] != values[1]
    with pytest.raises(Refused, match=r"spec\.budget\.maxTrials"):
        study.edit_budget(max_trials=0)
    with pytest.raises(TypeError, match="max_trails must be a limit of the budget: max_trials"):
        study.edit_budget(max_trails=8)
    study.delete()
    with pytest.raises(NotFound, match=r'finetunestudies\.finetune\.dev "tickets" not found'):
        client.get("tickets")


def in_background(work: Callable[[], object]) -> Callable[[], object]:
    """Start it; what is returned waits for it, and raises what it raised."""
    result: list[object] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001  # it is raised where it is waited for
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def ended() -> object:
        thread.join(60)
        assert result, "it still waits"
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]

    return ended


def test_wait_tells_why_a_study_failed(client: ClientStudies, studies: Studies) -> None:
    study = client.create(SPEC, name="tickets")
    ended = in_background(lambda: study.wait(progress=False))
    write(studies, "tickets", failed())
    with pytest.raises(StudyFailed, match=r"tickets failed \(DataError\)") as error:
        ended()
    assert error.value.reason == "DataError"
    assert error.value.message == "spec.dataset: no such column"


def test_wait_ends_at_its_timeout_and_when_the_study_is_deleted(
    client: ClientStudies, studies: Studies, capsys: pytest.CaptureFixture[str]
) -> None:
    study = client.create(SPEC, name="tickets")
    with pytest.raises(TimeoutError, match=r"tickets has not ended after 0\.5 s: Not seen yet"):
        study.wait(timeout=0.5)
    assert capsys.readouterr().out == "Not seen yet: 0 trials\n"
    ended = in_background(lambda: study.wait(progress=False))
    study.delete()
    with pytest.raises(NotFound, match="tickets"):
        ended()


@pytest.mark.parametrize("cut", ["410 in the watch", "410 to the watch", "connection", "503"])
def test_wait_goes_on_when_its_watch_is_cut(
    cut: str, server: ApiServer, studies: Studies, tmp_path: Path
) -> None:
    faults: dict[str, Fault] = {
        "410 in the watch": Watch(lines=lambda _: expired(), events=1),
        "410 to the watch": Answer(410, "Expired"),
        "connection": Watch(events=1),
        "503": Answer(503, "ServiceUnavailable"),
    }
    watches: list[Call] = []

    def rule(call: Call) -> Fault | None:
        if not call.watch:
            return None
        watches.append(call)
        return faults[cut] if len(watches) <= 2 else None

    with Proxy(server, tmp_path, rule) as proxy:
        namespace = studies.namespace
        with ClientStudies(namespace=namespace, kubeconfig=proxy.kubeconfig) as client:
            study = client.create(changed(VALID, {"metadata.namespace": namespace}))
            ended = in_background(lambda: study.wait(progress=False))
            for number in range(2):
                until("the watch", lambda at=number: len(watches) > at, 30)  # type: ignore[misc]
                if cut in ("410 in the watch", "connection"):
                    studies.kubectl("label", "--overwrite", "fts", "tickets", f"at={number}")
            until("another watch", lambda: len(watches) > 2, 30)
            write(studies, "tickets", status())
            assert ended() is study
    assert study.last.state == "Complete"


def test_logs_are_those_of_the_driver(
    client: ClientStudies, studies: Studies, server: ApiServer
) -> None:
    study = client.create(SPEC, name="tickets")
    with pytest.raises(NotFound, match="no driver pod"):
        study.logs()
    with kubelet(server, studies.namespace) as node:
        for attempt, index in ((1, 0), (2, 1), (2, 0)):
            studies.done("POST", "pod", body=pod(study.last.uid, attempt, index, node))
        place = f"/containerLogs/{studies.namespace}"
        assert study.logs() == f"{place}/tickets-2-0/trainer\nfollow: False\n"
        assert study.logs(pod="tickets-2-1").startswith(f"{place}/tickets-2-1/trainer\n")
        assert list(study.logs(follow=True))[1] == "follow: True"


def pod(uid: str, attempt: int, index: int, node: str) -> dict[str, Any]:
    """A pod of an attempt, marked as the operator marks it."""
    marks = {UID_LABEL: uid, ATTEMPT_LABEL: str(attempt)}
    annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
    name = f"tickets-{attempt}-{index}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": marks, "annotations": annotations},
        "spec": {"nodeName": node, "containers": [{"name": CONTAINER, "image": "x"}]},
    }


def test_cluster_that_cannot_be_reached_is_named(tmp_path: Path, kubeconfig: Path) -> None:
    with pytest.raises(Unreachable, match=r"gone\.yaml does not exist"):
        ClientStudies(kubeconfig=tmp_path / "gone.yaml")
    with pytest.raises(Unreachable, match="nowhere"):
        ClientStudies(kubeconfig=kubeconfig, context="nowhere")
    lost = tmp_path / "lost.yaml"
    text = kubeconfig.read_text()
    port = text.partition("https://127.0.0.1:")[2].partition("\n")[0]
    lost.write_text(text.replace(f"127.0.0.1:{port}", "127.0.0.1:9"))
    with ClientStudies(kubeconfig=lost) as client, pytest.raises(Unreachable, match="refused"):
        client.list()


def test_kubeconfig_and_namespace_are_found_as_kubectl_finds_them(
    kubeconfig: Path, studies: Studies, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}:{kubeconfig}")
    with ClientStudies() as client:
        assert client.namespace == studies.namespace
        assert client.list() == []


def test_pod_uses_its_own_account(
    server: ApiServer, studies: Studies, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    until("the account", lambda: studies.get("serviceaccount", "default"))
    token = tmp_path / "token"
    token.write_text(studies.kubectl("create", "token", "default").strip())
    namespace = tmp_path / "namespace"
    namespace.write_text(studies.namespace)
    address = urlsplit(server.url)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(address.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(address.port))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    certificate = str(server.authority.certificate)
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", certificate)
    monkeypatch.setattr(access, "_ACCOUNT_NAMESPACE", namespace)
    with ClientStudies() as client:
        assert client.namespace == studies.namespace
        account = f"system:serviceaccount:{studies.namespace}:default"
        with pytest.raises(Refused, match=f'"{account}" cannot list resource "finetunestudies"'):
            client.list()


def test_errors_are_of_one_family() -> None:
    named = [getattr(finetune_client, name) for name in finetune_client.__all__]
    errors = [each for each in named if isinstance(each, type) and issubclass(each, Exception)]
    assert len(errors) == 6
    assert all(issubclass(error, finetune_client.ClientError) for error in errors)
