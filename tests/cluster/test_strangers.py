"""Objects of somebody else under a study's names, policies that deny, and mistakes of the platform, on a real API server.

The operator changes and deletes nothing that does not belong to a study, and no study fails for what others did.
"""

import copy
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client, config

from finetune_api.manifest import parse_study
from finetune_operator import engines
from finetune_operator.children import Manifest, children
from finetune_operator.kube import Conflict, Kube
from finetune_operator.names import MANAGER
from tests.api.wrong_manifests import VALID, changed
from tests.cluster import lives
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.operator_process import OperatorProcess, Studies, until
from tests.operator.studies import SETTINGS


def needed(name: str, namespace: str, uid: str = "") -> list[Manifest]:
    """Everything that a first attempt needs under a known name, as the operator would make it."""
    known = {"metadata.name": name, "metadata.namespace": namespace, "metadata.uid": uid or "none"}
    study = parse_study(changed(VALID, known))
    made = [*children(study, SETTINGS), *engines.manifests(study, 1, SETTINGS)]
    return [manifest for manifest in made if manifest["kind"] != "Secret"]


def path_of(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


NEEDED = [path_of(manifest) for manifest in needed("tickets", "default")]


def of_somebody(manifest: Manifest) -> Manifest:
    """An object of that name that has nothing to do with the study."""
    theirs = copy.deepcopy(manifest)
    meta = theirs["metadata"]
    theirs["metadata"] = {key: meta[key] for key in ("name", "namespace")}
    theirs["metadata"]["annotations"] = {"of": "somebody"}
    if theirs["kind"] == "Job":
        theirs["spec"]["suspend"] = True
        del theirs["spec"]["template"]["metadata"]["labels"]
    return theirs


def content(body: dict[str, Any]) -> dict[str, Any]:
    """What nobody may have changed."""
    known = {key: value for key, value in body.items() if key not in ("metadata", "status")}
    meta = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return {
        **known,
        **{key: meta.get(key) for key in ("uid", "labels", "annotations", "ownerReferences")},
    }


def test_a_study_waits_for_all_that_is_somebody_elses_and_its_end_deletes_none_of_it(
    operator: OperatorProcess, studies: Studies
) -> None:
    theirs = [of_somebody(manifest) for manifest in needed("victim", studies.namespace)]
    before = [content(studies.done("POST", one["kind"].lower(), body=one)) for one in theirs]

    def there() -> list[dict[str, Any]]:
        return [
            content(studies.get(one["kind"].lower(), one["metadata"]["name"])) for one in theirs
        ]

    studies.create("victim")
    waits = "exists and does not belong to this study: delete it"
    until(
        "it to be told", lambda: waits in studies.get("fts", "victim")["status"].get("message", "")
    )
    assert (studies.state("victim"), studies.condition("victim", "Reconciling")["reason"]) == (
        "Pending",
        "Forbidden",
    )
    assert there() == before
    studies.create("other")  # its end shows that the garbage collector has been there
    lives.run(studies, "other")
    for name in ("victim", "other"):
        studies.done("DELETE", "fts", name)
    until("the other's children to go", lambda: not studies.get("configmap", "other-spec"), 90)
    assert there() == before


@pytest.mark.parametrize("path", NEEDED)
def test_a_study_goes_on_when_what_was_in_its_way_is_gone(
    path: str, operator: OperatorProcess, studies: Studies
) -> None:
    (found,) = [one for one in needed("tickets", studies.namespace) if path_of(one) == path]
    theirs = of_somebody(found)
    kind, name = path.split("/")
    studies.done("POST", kind.lower(), body=theirs)
    studies.create("tickets")
    waits = f"{kind} {name} exists and does not belong to this study: delete it"
    until("it to be told", lambda: studies.get("fts", "tickets")["status"].get("message") == waits)
    studies.done("DELETE", kind.lower(), name, {"propagationPolicy": "Background"})
    lives.run(studies, "tickets")
    lives.complete(studies, "tickets")


def test_pod_that_has_only_the_labels_of_a_study_is_not_deleted(
    operator: OperatorProcess, studies: Studies
) -> None:
    studies.create("tickets")
    lives.run(studies, "tickets")
    (pod,) = studies.all("pods")
    labels = pod["metadata"]["labels"]
    meta = {"name": "database-0", "labels": labels, "finalizers": ["example.dev/backup"]}
    spec = {"containers": [{"name": "trainer", "image": "x"}]}
    theirs: Manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    job = studies.get("job", "tickets-1")["metadata"]
    # Its owner is the Job's namesake, as after a restore from a backup: the Job controller adopts nothing that is owned.
    owner = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "name": "database",
        "uid": job["uid"][::-1],
    }
    theirs["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    made = studies.done("POST", "pod", body=theirs)
    studies.done("DELETE", "pod", "database-0", {"gracePeriodSeconds": 1})
    studies.create("other")
    lives.run(studies, "other")
    operator.stop()
    operator.start()
    lives.complete(studies, "other")
    assert studies.get("pod", "database-0")["metadata"]["uid"] == made["metadata"]["uid"]
    assert studies.get("pod", "database-0")["status"].get("reason") != "NodeLost"
    studies.done("PATCH", "pod", "database-0", {"metadata": {"finalizers": None}})


# -- requests


@pytest.fixture
async def kube(server: ApiServer) -> AsyncIterator[Kube]:
    await config.load_kube_config(config_file=str(server.kubeconfig))
    made = Kube(client.ApiClient())
    yield made
    await made.close()


@pytest.mark.parametrize("path", NEEDED[:-1])
async def test_a_field_that_is_no_longer_applied_goes_though_it_was_created(
    path: str, kube: Kube, studies: Studies
) -> None:
    owner = studies.namespace
    studies.create("tickets")
    uid = studies.get("fts", "tickets")["metadata"]["uid"]
    (manifest,) = [one for one in needed("tickets", owner, uid) if path_of(one) == path]
    kind = manifest["kind"]
    first = copy.deepcopy(manifest)
    first["metadata"]["labels"]["of"] = "an-earlier-version"
    made = await kube.create(first)
    changed = await kube.update(made, manifest)
    assert changed["metadata"]["labels"] == manifest["metadata"]["labels"]
    own = [e for e in changed["metadata"]["managedFields"] if e["manager"] == MANAGER]
    assert [entry["operation"] for entry in own] == ["Apply"]
    assert content(await kube.update(changed, manifest)) == content(changed)
    other = {"metadata": {**changed["metadata"], "uid": uid}}
    with pytest.raises(Conflict):
        await kube.update(other, manifest)
    await kube.delete(kind, owner, manifest["metadata"]["name"], changed["metadata"]["uid"])
    with pytest.raises(Conflict):
        await kube.update(changed, manifest)
    assert not studies.get(kind.lower(), manifest["metadata"]["name"])


# -- the platform's mistakes

DENIED = "no team may train before the audit"
POLICY = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "ValidatingAdmissionPolicy",
    "metadata": {"name": "no-training"},
    "spec": {
        "matchConstraints": {
            "resourceRules": [
                {
                    "apiGroups": ["batch"],
                    "apiVersions": ["v1"],
                    "operations": ["CREATE"],
                    "resources": ["jobs"],
                }
            ]
        },
        "validations": [{"expression": "false", "message": DENIED}],
    },
}
BINDING: Manifest = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "ValidatingAdmissionPolicyBinding",
    "metadata": {"name": "no-training"},
    "spec": {"policyName": "no-training", "validationActions": ["Deny"]},
}


@pytest.fixture
def denied(server: ApiServer, studies: Studies) -> Iterator[None]:
    selector = {"matchLabels": {"kubernetes.io/metadata.name": studies.namespace}}
    binding = copy.deepcopy(BINDING)
    binding["spec"]["matchResources"] = {"namespaceSelector": selector}
    for body in (POLICY, binding):
        server.kubectl("apply", "-f", "-", stdin=json.dumps(body))

    def enforced() -> bool:
        job = of_somebody(needed("probe", studies.namespace)[-1])
        status, answer = studies.request("POST", "job", body=job)
        if status < 300:
            studies.done("DELETE", "job", "probe-1")
        return DENIED in answer.get("message", "")

    until("the policy", enforced)
    yield
    server.kubectl(
        "delete",
        "validatingadmissionpolicybinding,validatingadmissionpolicy",
        "no-training",
        "--ignore-not-found",
    )


@pytest.mark.parametrize(
    "template", [{}, {"spec": {"hostNetwork": True}}], ids=["plain", "own template"]
)
def test_a_study_that_a_policy_denies_waits_and_goes_on_when_it_is_gone(
    template: Manifest,
    operator: OperatorProcess,
    studies: Studies,
    server: ApiServer,
    denied: None,
) -> None:
    studies.create("tickets", **({"cluster": {"podTemplate": template}} if template else {}))
    until(
        "it to be told",
        lambda: DENIED in studies.condition("tickets", "Reconciling").get("message", ""),
    )
    assert studies.state("tickets") == "Pending"
    assert studies.condition("tickets", "Failed")["status"] == "False"
    server.kubectl("delete", "validatingadmissionpolicybinding", "no-training")
    lives.run(studies, "tickets")
    lives.complete(studies, "tickets")


def test_an_operator_whose_chart_has_a_typo_never_acts(
    server: ApiServer, studies: Studies, tmp_path: Path
) -> None:
    env = {"FINETUNE_NAMESPACES": studies.namespace}
    wrong = {"FINETUNE_POD_TEMPLATE": '{"spec": {"nodeSelektor": {"gpu": "yes"}}}'}
    bad = OperatorProcess(server, tmp_path / "bad.log", **env, **wrong)
    bad.start()
    assert bad.process is not None
    assert bad.process.wait(240) == 1
    bad.stop()
    (last,) = [line for line in bad.said() if line["level"] == "ERROR"]
    assert "study.podTemplate" in last["message"]
    assert "nodeSelektor" in last["message"]
    right = {"FINETUNE_POD_TEMPLATE": '{"spec": {"nodeSelector": {"gpu": "yes"}}}'}
    good = OperatorProcess(server, tmp_path / "good.log", **env, **right)
    good.start()
    try:
        studies.create("tickets")
        until("the Job", lambda: studies.get("job", "tickets-1"))
    finally:
        good.stop()
