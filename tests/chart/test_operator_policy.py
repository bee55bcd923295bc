"""What somebody could do with the operator's token: the chart's policy and rights on a real API server."""

import copy
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from finetune_api.manifest import parse_study
from finetune_operator import engines
from finetune_operator.children import children
from tests.api.wrong_manifests import VALID, changed
from tests.chart.helm import NAMESPACE
from tests.chart.release import TEAM, VALUES, api_server, groups, install
from tests.cluster.onenode.apiserver import ApiServer
from tests.cluster.onenode.build import program
from tests.operator.studies import SETTINGS, UID

Manifest: TypeAlias = dict[str, Any]
OPERATOR = "finetune-finetune-operator"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:{OPERATOR}"

CHILDREN = "the operator writes and deletes only objects whose controller is a study"
PLACE = "the operator writes nothing but its Lease in its own namespace"
PODS = "the operator writes and deletes only pods that an attempt of a study has made"
RESTRICTED = "are restricted"
NO_RIGHT = " cannot "


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as started:
        install(started, VALUES)
        yield started


class Thief:
    """Whoever has the operator's token."""

    def __init__(self, server: ApiServer) -> None:
        self._kubeconfig = server.kubeconfig_for(ACCOUNT, groups(NAMESPACE))

    def answer(self, *arguments: str, body: Manifest | None = None) -> str:
        """What the API server says against it; empty if it takes it."""
        command = [str(program("kubectl")), f"--kubeconfig={self._kubeconfig}", *arguments]
        stdin = "" if body is None else json.dumps(body)
        done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
        return done.stderr if done.returncode else ""

    def create(self, body: Manifest) -> str:
        """The same of a creation that leaves nothing behind."""
        return self.answer("create", "--dry-run=server", "-f", "-", body=body)


@pytest.fixture(scope="module")
def thief(server: ApiServer) -> Thief:
    role = of_a_study()["Role"]  # nothing is bound to one that is not there
    server.kubectl("create", "-f", "-", stdin=json.dumps(role))
    found = Thief(server)
    probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": TEAM}}
    deadline = time.monotonic() + 240
    while CHILDREN not in found.create(probe):
        assert time.monotonic() < deadline, "the policy is not in force"
        time.sleep(0.5)
    return found


def of_a_study(engine: str = "Job", **changes: Any) -> dict[str, Manifest]:
    """All objects of a study in the team's namespace, by kind."""
    known = {"metadata.name": "tickets", "metadata.namespace": TEAM, "metadata.uid": UID}
    study = parse_study(changed(VALID, {**known, **changes}))
    settings = SETTINGS.model_copy(update={"engine": engine})
    made = [*children(study, settings), *engines.manifests(study, 1, settings)]
    return {manifest["kind"]: manifest for manifest in made}


@pytest.mark.parametrize("kind", of_a_study())
def test_what_a_study_needs_may_be_written(kind: str, thief: Thief) -> None:
    said = thief.create(of_a_study()[kind])
    assert said == "" or (kind == "Role" and "already exists" in said)


Edit: TypeAlias = Callable[[Manifest], None]


def _no_owner(body: Manifest) -> None:
    del body["metadata"]["ownerReferences"]


def _other_owner(body: Manifest) -> None:
    owner = body["metadata"]["ownerReferences"][0]
    owner |= {"apiVersion": "apps/v1", "kind": "Deployment"}


def _owner_that_controls_nothing(body: Manifest) -> None:
    body["metadata"]["ownerReferences"][0]["controller"] = False


def _in(namespace: str) -> Edit:
    def edit(body: Manifest) -> None:
        body["metadata"]["namespace"] = namespace

    return edit


@pytest.mark.parametrize("kind", of_a_study())
@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (_no_owner, CHILDREN),
        (_other_owner, CHILDREN),
        (_owner_that_controls_nothing, CHILDREN),
        (_in(NAMESPACE), PLACE),
        (_in("kube-system"), PLACE),
    ],
    ids=["no owner", "another owner", "no controller", "its own namespace", "kube-system"],
)
def test_nothing_else_may_be_created(kind: str, edit: Edit, why: str, thief: Thief) -> None:
    body = copy.deepcopy(of_a_study()[kind])
    edit(body)
    said = thief.create(body)
    # Who grants what in another namespace is refused before the policy is asked, if it has not that Role.
    assert why in said or (kind == "RoleBinding" and "not found" in said)


def _pod(**spec: Any) -> Edit:
    return lambda body: body["spec"]["template"]["spec"].update(spec)


def _container(**fields: Any) -> Edit:
    def edit(body: Manifest) -> None:
        body["spec"]["template"]["spec"]["containers"][0].update(fields)

    return edit


def _context(**fields: Any) -> Edit:
    def edit(body: Manifest) -> None:
        body["spec"]["template"]["spec"]["containers"][0]["securityContext"].update(fields)

    return edit


def _sidecar(body: Manifest) -> None:
    body["spec"]["template"]["spec"]["initContainers"] = [{"name": "x", "image": "x"}]


def _host_path(body: Manifest) -> None:
    body["spec"]["template"]["spec"]["volumes"].append({"name": "x", "hostPath": {"path": "/"}})


UNRESTRICTED: dict[str, Edit] = {
    "host path": _host_path,
    "host network": _pod(hostNetwork=True),
    "host processes": _pod(hostPID=True),
    "host memory": _pod(hostIPC=True),
    "root": _context(runAsUser=0),
    "perhaps root": _context(runAsNonRoot=False),
    "privileged": _context(privileged=True, allowPrivilegeEscalation=True),
    "more privileges": _context(allowPrivilegeEscalation=True),
    "capabilities kept": _context(capabilities={}),
    "capabilities added": _context(capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]}),
    "no seccomp": _context(seccompProfile={"type": "Unconfined"}),
    "a port of the host": _container(ports=[{"containerPort": 80, "hostPort": 80}]),
    "a sidecar": _sidecar,
    "sysctls": _pod(
        securityContext={
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            "sysctls": [{"name": "kernel.msgmax", "value": "1"}],
        }
    ),
}


@pytest.mark.parametrize("what", UNRESTRICTED)
def test_pods_that_are_not_restricted_may_not_be_made(what: str, thief: Thief) -> None:
    body = copy.deepcopy(of_a_study()["Job"])
    UNRESTRICTED[what](body)
    assert RESTRICTED in thief.create(body)


def _type(body: Manifest) -> None:
    body["type"] = "kubernetes.io/service-account-token"
    body["metadata"]["annotations"] = {"kubernetes.io/service-account.name": "default"}


def _rule(**rule: Any) -> Edit:
    return lambda body: body["rules"][0].update(rule)


def _external(body: Manifest) -> None:
    del body["spec"]["clusterIP"]
    body["spec"] |= {"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"]}


WORSE: dict[str, tuple[str, Edit, str]] = {
    "a token of another account": ("Secret", _type, "of the type Opaque"),
    "a right to make Jobs": (
        "Role",
        _rule(apiGroups=["batch"], resources=["jobs"], resourceNames=["x"], verbs=["create"]),
        "grants only",
    ),
    "a right to all ConfigMaps": ("Role", _rule(resourceNames=[]), "grants only"),
    "a right to delete": ("Role", _rule(verbs=["delete"]), NO_RIGHT.strip()),
    "a Service of another address": ("Service", _external, "headless"),
}


@pytest.mark.parametrize("what", WORSE)
def test_what_looks_like_a_child_and_is_worse_may_not_be_made(what: str, thief: Thief) -> None:
    kind, edit, why = WORSE[what]
    body = copy.deepcopy(of_a_study()[kind])
    edit(body)
    assert why in thief.create(body) or "attempting to grant" in thief.create(body)


@pytest.fixture(scope="module")
def others(server: ApiServer) -> list[tuple[str, str, str]]:
    """Kind, namespace and name of objects that have nothing to do with studies, and of a pod with a study's labels."""
    meta = {"name": "theirs", "namespace": TEAM}
    labels = {"finetune.dev/study": "tickets", "finetune.dev/study-uid": UID}
    job = of_a_study()["Job"]["spec"]["template"]["spec"]
    found = []
    bodies: tuple[Manifest, ...] = (
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**meta, "labels": labels},
            "spec": {**job, "serviceAccountName": "theirs", "restartPolicy": "Never"},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": meta,
            "spec": {"suspend": True, "template": of_a_study()["Job"]["spec"]["template"]},
        },
    )
    for body in bodies:
        server.kubectl("create", "-f", "-", stdin=json.dumps(body))
        found.append((body["kind"], TEAM, "theirs"))
    return found


def test_nothing_of_others_may_be_deleted_or_adopted(
    thief: Thief, others: list[tuple[str, str, str]]
) -> None:
    owner = of_a_study()["Job"]["metadata"]["ownerReferences"]
    adopt = json.dumps({"metadata": {"ownerReferences": owner}})
    for kind, namespace, name in others:
        where = (kind, name, f"--namespace={namespace}")
        said = {thief.answer("delete", *where, "--wait=false")}
        if kind in ("ConfigMap", "ServiceAccount"):
            said.add(thief.answer("patch", *where, "--type=merge", f"-p={adopt}"))
        wanted = PODS if kind == "Pod" else CHILDREN
        assert all(wanted in one or NO_RIGHT in one for one in said), said


def test_no_lease_but_its_own_may_be_made(thief: Thief) -> None:
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": OPERATOR, "namespace": NAMESPACE},
    }
    assert thief.create(lease) == ""
    for name, namespace in ((OPERATOR, TEAM), ("other", NAMESPACE), (OPERATOR, "kube-system")):
        other = {**lease, "metadata": {"name": name, "namespace": namespace}}
        said = thief.create(other)
        assert "no Lease but its own" in said or NO_RIGHT in said


def test_events_may_be_posted_about_studies_alone(thief: Thief) -> None:
    def event(kind: str) -> Manifest:
        about = {"kind": kind, "name": "tickets", "namespace": TEAM}
        meta = {"name": "tickets.1", "namespace": TEAM}
        return {"apiVersion": "v1", "kind": "Event", "metadata": meta, "involvedObject": about}

    assert thief.create(event("FineTuneStudy")) == ""
    assert "Events only about studies" in thief.create(event("Pod"))


def test_nobody_else_is_concerned(server: ApiServer, thief: Thief) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "x", "namespace": NAMESPACE},
    }
    server.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(body))
    assert PLACE in thief.create(body)
