"""What the chart renders, and which values it refuses."""

import json
import re
import tomllib
from typing import Any

import pytest
import yaml
from opentelemetry.sdk import environment_variables

from finetune_operator.settings import Settings, read
from finetune_operator.traces import ENDPOINTS
from tests.chart.helm import (
    CHART,
    CLUSTER_SCOPED,
    NAMESPACE,
    RELEASE,
    ROOT,
    environment,
    helm,
    hooks,
    of_kind,
    options,
    pod_of,
    refusal,
    render,
)

NAMESPACED = {"watch.namespaces": ["nlp", "search"]}
EVERYTHING: dict[str, Any] = {
    "image": {"repository": "mirror:5000/operator", "tag": f"1.2.3@sha256:{'a' * 64}"},
    "imagePullSecrets": [{"name": "mirror"}],
    "progressPerSecond": 200.5,
    "traces": {
        "endpoint": "http://collector:4318",
        "sampleRatio": 0.25,
        "headersSecret": "collector",
    },
    "podAnnotations": {"team": "platform"},
    "podLabels": {"cost-center": "7"},
    "priorityClassName": "system-cluster-critical",
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}},
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "replicas": 3,
    "metrics": {
        "service": {"annotations": {"prometheus.io/scrape": "true"}},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True, "annotations": {"grafana_folder": "ML"}},
    },
    "test": {
        "enabled": True,
        "namespace": "nlp",
        "study": {"task": "SingleLabel"},
        "timeoutSeconds": 60,
    },
    "study": {
        "image": {"repository": "mirror:5000/trainer", "tag": "4", "pullPolicy": "Always"},
        "resources": {"cpu": 4, "memory": "16Gi", "nvidia.com/gpu": 1},
        "storage": {"claimName": "studies"},
        "podTemplate": {"spec": {"imagePullSecrets": [{"name": "mirror"}]}},
        "maxFailedAttempts": 3,
    },
}


@pytest.fixture(scope="module")
def cluster_wide() -> list[dict[str, Any]]:
    return render()


@pytest.fixture(scope="module")
def namespaced() -> list[dict[str, Any]]:
    return render(NAMESPACED)


@pytest.mark.parametrize(
    "values", [{}, NAMESPACED, EVERYTHING], ids=["default", "namespaced", "all"]
)
def test_lint_has_no_warnings(values: dict[str, Any]) -> None:
    helm("lint", "--strict", str(CHART), *options(values))


def test_version_is_that_of_the_python_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]


def test_every_value_has_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if re.match(r" *\w+: \S", line) and not before.lstrip().startswith("#")
    ]
    assert bare == []


# -- the CRD


def test_crds_are_the_generated_ones_and_survive_uninstall(
    cluster_wide: list[dict[str, Any]],
) -> None:
    rendered = of_kind(cluster_wide, "CustomResourceDefinition")
    generated = [
        yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))
    ]
    for crd in generated:
        crd["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    assert sorted(rendered, key=_name_of) == sorted(generated, key=_name_of)


def _name_of(manifest: dict[str, Any]) -> str:
    return str(manifest["metadata"]["name"])


def test_policies_of_classes_are_the_generated_ones_and_belong_to_the_release() -> None:
    text = (CHART / "files" / "class-policies.yaml").read_text()
    generated = [*yaml.safe_load_all(text.replace("FULLNAME", f"{RELEASE}-finetune-operator"))]
    made = render({"policy.classes": "Enabled"})
    rendered = {(m["kind"], _name_of(m)): m for m in made}
    assert len(generated) == 4
    for policy in generated:
        found = rendered[policy["kind"], _name_of(policy)]
        assert found["metadata"].pop("labels")
        assert found == policy


def test_crd_is_a_template_so_that_it_is_upgraded() -> None:
    assert not (CHART / "crds").exists()  # Helm never upgrades what is in there


def test_everything_else_goes_with_uninstall(cluster_wide: list[dict[str, Any]]) -> None:
    kept = [m for m in cluster_wide if "annotations" in m["metadata"]]
    assert [manifest["kind"] for manifest in kept] == ["CustomResourceDefinition"] * 2


def test_crd_can_be_left_out() -> None:
    assert of_kind(render({"crds.enabled": False}), "CustomResourceDefinition") == []


# -- rights


def test_namespaced_mode_has_nothing_cluster_scoped_but_the_crd(
    namespaced: list[dict[str, Any]],
) -> None:
    kinds = {manifest["kind"] for manifest in namespaced}
    assert kinds & CLUSTER_SCOPED == {"CustomResourceDefinition"}
    namespaces = {m["metadata"]["namespace"] for m in namespaced if m["kind"] not in CLUSTER_SCOPED}
    assert namespaces == {NAMESPACE, "nlp", "search"}


def test_namespaced_mode_binds_the_operator_in_each_namespace(
    namespaced: list[dict[str, Any]],
) -> None:
    (account,) = of_kind(namespaced, "ServiceAccount")
    subject = {
        "kind": "ServiceAccount",
        "name": account["metadata"]["name"],
        "namespace": NAMESPACE,
    }
    bindings = of_kind(namespaced, "RoleBinding")
    places = sorted(binding["metadata"]["namespace"] for binding in bindings)
    assert places == [NAMESPACE, "nlp", "search"]
    for role, binding in zip(of_kind(namespaced, "Role"), bindings, strict=True):
        assert role["metadata"]["namespace"] == binding["metadata"]["namespace"]
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["subjects"] == [subject]
    assert read(environment(namespaced)).namespaces == ("nlp", "search")


def test_both_modes_have_the_same_rights_over_studies(
    cluster_wide: list[dict[str, Any]], namespaced: list[dict[str, Any]]
) -> None:
    everywhere = _operator_role(cluster_wide)["rules"]
    clusters = [
        {"apiGroups": [group], "resources": [resource], "verbs": verbs}
        for group, resource, verbs in (
            ("apiextensions.k8s.io", "customresourcedefinitions", ["list", "watch"]),
            ("finetune.dev", "finetuneclasses", ["list", "watch"]),
            ("", "namespaces", ["list", "watch"]),
            ("authentication.k8s.io", "tokenreviews", ["create"]),
            ("authorization.k8s.io", "subjectaccessreviews", ["create"]),
        )
    ]
    over_studies = [
        r for r in of_kind(namespaced, "Role") if r["metadata"]["namespace"] != NAMESPACE
    ]
    assert len(over_studies) == 2
    for role in over_studies:
        assert [*role["rules"], *clusters] == everywhere


@pytest.mark.parametrize("values", [{}, NAMESPACED], ids=["cluster-wide", "namespaced"])
def test_lease_is_the_one_that_the_operator_may_renew(values: dict[str, Any]) -> None:
    manifests = render(values)
    namespace, _, name = environment(manifests)["FINETUNE_LEASE"].partition("/")
    (role,) = (r for r in of_kind(manifests, "Role") if r["metadata"]["name"].endswith("-lease"))
    assert role["metadata"]["namespace"] == namespace == NAMESPACE
    leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
    assert role["rules"] == [
        {**leases, "resourceNames": [name], "verbs": ["get", "update"]},
        {**leases, "verbs": ["create"]},
    ]


@pytest.mark.parametrize(
    "values", [{}, NAMESPACED, EVERYTHING], ids=["cluster-wide", "namespaced", "all"]
)
def test_rights_are_least(values: dict[str, Any]) -> None:
    for role in of_kind(render(values), "Role", "ClusterRole"):
        if role["metadata"]["name"] == "finetune-metrics-reader":
            assert role["rules"] == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
            continue
        rights = _rights(role)
        assert not any("*" in (*right, verb) for right, verbs in rights.items() for verb in verbs)
        assert rights.get(("", "secrets"), {"create"}) == {"create"}
        assert rights.get(("", "configmaps"), {"get", "patch"}) >= {"get", "patch"}
        assert not {"escalate", "bind", "impersonate"} & set().union(*rights.values())


def test_operator_cannot_write_specs(cluster_wide: list[dict[str, Any]]) -> None:
    rights = _rights(_operator_role(cluster_wide))
    assert not {"create", "update", "patch"} & rights["finetune.dev", "finetunestudies"]


def test_user_roles_are_aggregated_and_can_be_left_out(cluster_wide: list[dict[str, Any]]) -> None:
    label = "rbac.authorization.k8s.io/aggregate-to-"
    aggregated = {
        role["metadata"]["name"]: key.removeprefix(label)
        for role in of_kind(cluster_wide, "ClusterRole")
        for key in role["metadata"]["labels"]
        if key.startswith(label)
    }
    assert aggregated == {"finetune-study-editor": "edit", "finetune-study-viewer": "view"}
    left = {
        role["metadata"]["name"]
        for role in of_kind(render({"rbac.userRoles": False}), "ClusterRole")
    }
    assert left == {"finetune-finetune-operator", "finetune-metrics-reader"}


# -- the operator's pod


@pytest.mark.parametrize(
    "values", [{}, EVERYTHING, {"runAsUser": None}], ids=["default", "all", "any user"]
)
def test_pod_is_within_the_restricted_standard(values: dict[str, Any]) -> None:
    pod = pod_of(render(values))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"])
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any("hostPort" in port for port in container["ports"])


def test_user_id_is_left_to_the_cluster_on_demand() -> None:
    manifests = render({"runAsUser": None, "study.runAsUser": None})
    assert "runAsUser" not in pod_of(manifests)["securityContext"]
    assert read(environment(manifests)).run_as_user is None


def test_a_standby_is_there_before_a_replica_goes(cluster_wide: list[dict[str, Any]]) -> None:
    (deployment,) = of_kind(cluster_wide, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    strategy = deployment["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    (spread,) = pod_of(cluster_wide)["topologySpreadConstraints"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"


def test_each_replica_stands_for_election_under_the_name_of_its_pod(
    cluster_wide: list[dict[str, Any]],
) -> None:
    (container,) = pod_of(cluster_wide)["containers"]
    fields = {e["name"]: e["valueFrom"] for e in container["env"] if "valueFrom" in e}
    assert fields == {"FINETUNE_IDENTITY": {"fieldRef": {"fieldPath": "metadata.name"}}}


def test_budget_keeps_a_replica_where_there_are_several(
    cluster_wide: list[dict[str, Any]],
) -> None:
    (budget,) = of_kind(cluster_wide, "PodDisruptionBudget")
    (deployment,) = of_kind(cluster_wide, "Deployment")
    assert budget["spec"]["selector"] == deployment["spec"]["selector"]
    assert budget["spec"]["maxUnavailable"] == 1
    # With one replica it would keep nodes from being drained.
    assert of_kind(render({"replicas": 1}), "PodDisruptionBudget") == []


def test_services_of_the_namespace_cannot_set_the_operators_environment(
    cluster_wide: list[dict[str, Any]],
) -> None:
    assert pod_of(cluster_wide)["enableServiceLinks"] is False


def test_traces_go_where_the_collector_is(cluster_wide: list[dict[str, Any]]) -> None:
    assert not any(name in environment(cluster_wide) for name in ENDPOINTS)
    manifests = render(EVERYTHING)
    told = {k: v for k, v in environment(manifests).items() if k.startswith("OTEL_")}
    assert told == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
    }
    (container,) = pod_of(manifests)["containers"]
    (headers,) = (e for e in container["env"] if e["name"] == "OTEL_EXPORTER_OTLP_HEADERS")
    assert headers["valueFrom"] == {"secretKeyRef": {"name": "collector", "key": "headers"}}


def test_ports_are_those_the_operator_listens_on(cluster_wide: list[dict[str, Any]]) -> None:
    settings = read(environment(cluster_wide))
    (container,) = pod_of(cluster_wide)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": settings.metrics_port, "health": settings.health_port}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}


def test_metrics_service_selects_the_operator(cluster_wide: list[dict[str, Any]]) -> None:
    (service,) = of_kind(cluster_wide, "Service")
    (deployment,) = of_kind(cluster_wide, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["ports"][0]["targetPort"] == "metrics"
    assert of_kind(render({"metrics.service.enabled": False}), "Service") == []


# -- metrics


def test_metrics_are_open_only_by_a_value(
    cluster_wide: list[dict[str, Any]], namespaced: list[dict[str, Any]]
) -> None:
    assert read(environment(cluster_wide)).metrics_access == "Authenticated"
    # Without cluster-scoped rights the operator cannot ask who somebody is.
    assert read(environment(namespaced)).metrics_access == "Off"
    assert of_kind(namespaced, "Service") == []
    assert [port["name"] for port in pod_of(namespaced)["containers"][0]["ports"]] == ["health"]
    for values in ({}, NAMESPACED):
        opened = render({**values, "metrics.access": "Open"})
        assert read(environment(opened)).metrics_access == "Open"
        assert len(of_kind(opened, "Service")) == 1
        roles = of_kind(opened, "ClusterRole")
        assert "finetune-metrics-reader" not in {role["metadata"]["name"] for role in roles}
        assert not any(("authentication.k8s.io", "tokenreviews") in _rights(r) for r in roles)


def test_certificate_of_the_metrics_is_mounted() -> None:
    manifests = render({"metrics.certificateSecret": "cert"})
    folder = read(environment(manifests)).metrics_certificate
    pod = pod_of(manifests)
    (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == folder)
    (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
    assert volume["secret"]["secretName"] == "cert"
    assert [item["path"] for item in volume["secret"]["items"]] == ["tls.crt", "tls.key"]
    opened = render({"metrics.certificateSecret": "cert", "metrics.access": "Open"})
    assert [v["name"] for v in pod_of(opened)["volumes"]] == ["tmp"]


# -- settings


def test_defaults_are_the_operators_own(cluster_wide: list[dict[str, Any]]) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    lease = f"{NAMESPACE}/finetune-finetune-operator"
    trainer = f"finetune-trainer:{version}"
    assert read(environment(cluster_wide)) == Settings(trainer_image=trainer, lease=lease)
    (container,) = pod_of(cluster_wide)["containers"]
    assert container["image"] == f"finetune-operator:{version}"


def test_values_reach_the_operator() -> None:
    manifests = render(EVERYTHING)
    settings = read(environment(manifests))
    assert settings.trainer_image == "mirror:5000/trainer:4"
    assert settings.image_pull_policy == "Always"
    assert settings.default_resources == {"cpu": 4, "memory": "16Gi", "nvidia.com/gpu": 1}
    assert settings.pod_template == {"spec": {"imagePullSecrets": [{"name": "mirror"}]}}
    assert settings.max_failed_attempts == 3
    assert settings.default_storage is not None
    assert settings.default_storage.to_json() == {"persistentVolumeClaim": {"claimName": "studies"}}
    pod = pod_of(manifests)
    assert pod["containers"][0]["image"] == f"mirror:5000/operator:1.2.3@sha256:{'a' * 64}"
    assert pod["nodeSelector"] == {"pool": "system"}
    assert pod["imagePullSecrets"] == [{"name": "mirror"}]


DIGEST = f"sha256:{'b' * 64}"


@pytest.mark.parametrize(
    ("values", "operator", "trainer"),
    [
        ({}, "finetune-operator:VERSION", "finetune-trainer:VERSION"),
        (
            {"global.imageRegistry": "mirror:5000/a"},
            "mirror:5000/a/finetune-operator:VERSION",
            "mirror:5000/a/finetune-trainer:VERSION",
        ),
        (
            {"global.imageRegistry": "mirror", "study.image.repository": "ghcr.io/b/trainer"},
            "mirror/finetune-operator:VERSION",
            "ghcr.io/b/trainer:VERSION",
        ),
        (
            {"global.imageRegistry": "mirror.io", "image.repository": "localhost/o"},
            "localhost/o:VERSION",
            "mirror.io/finetune-trainer:VERSION",
        ),
        (
            {"image": {"tag": "2", "digest": DIGEST}, "study.image.digest": DIGEST},
            f"finetune-operator@{DIGEST}",
            f"finetune-trainer@{DIGEST}",
        ),
    ],
    ids=["default", "registry", "one elsewhere", "the other elsewhere", "digest"],
)
def test_images_are_where_the_values_say(
    values: dict[str, Any], operator: str, trainer: str
) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    manifests = render({**values, "test.enabled": True, "test.study": {"task": "SingleLabel"}})
    (test,) = of_kind(manifests, "Pod")
    used = {pod["containers"][0]["image"] for pod in (pod_of(manifests), test["spec"])}
    assert used == {operator.replace("VERSION", version)}
    assert read(environment(manifests)).trainer_image == trainer.replace("VERSION", version)


def test_pull_secrets_are_given_once_for_all_images() -> None:
    values = {
        "global.imagePullSecrets": [{"name": "mirror"}],
        "imagePullSecrets": [{"name": "own"}, {"name": "mirror"}],
        "study.podTemplate": {
            "metadata": {"labels": {"team": "nlp"}},
            "spec": {"imagePullSecrets": [{"name": "models"}], "nodeSelector": {"gpu": "yes"}},
        },
        "test.enabled": True,
        "test.study": {"task": "SingleLabel"},
    }
    manifests = render(values)
    (test,) = of_kind(manifests, "Pod")
    for pod in (pod_of(manifests), test["spec"]):
        assert pod["imagePullSecrets"] == [{"name": "mirror"}, {"name": "own"}]
    assert read(environment(manifests)).pod_template == {
        "metadata": {"labels": {"team": "nlp"}},
        "spec": {
            "imagePullSecrets": [{"name": "mirror"}, {"name": "models"}],
            "nodeSelector": {"gpu": "yes"},
        },
    }
    alone = read(environment(render({"global.imagePullSecrets": [{"name": "mirror"}]})))
    assert alone.pod_template == {"spec": {"imagePullSecrets": [{"name": "mirror"}]}}
    assert read(environment(render())).pod_template == {}


def test_what_a_platform_adds_is_on_the_operators_pod_and_account() -> None:
    manifests = render(EVERYTHING)
    (deployment,) = of_kind(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels["cost-center"] == "7"
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert pod_of(manifests)["priorityClassName"] == "system-cluster-critical"
    assert environment(manifests)["HTTPS_PROXY"] == "http://proxy:3128"
    (account,) = of_kind(manifests, "ServiceAccount")[:1]
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn"}


def test_object_store_is_passed_with_its_secret() -> None:
    storage = {"uri": "s3://bucket/studies", "secretName": "s3"}
    settings = read(environment(render({"study.storage": storage})))
    assert settings.default_storage is not None
    assert settings.default_storage.to_json() == storage


def test_every_variable_is_one_the_operator_reads() -> None:
    known = {f"FINETUNE_{name.upper()}" for name in Settings.model_fields}
    known |= {name for name in dir(environment_variables) if name.startswith("OTEL_")}
    known |= {entry["name"] for entry in EVERYTHING["extraEnv"]}
    for values in ({}, {**NAMESPACED, "metrics.serviceMonitor.enabled": False}):
        assert set(environment(render({**EVERYTHING, **values}))) <= known


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"replica": 2}, "replica"),
        ({"replicas": 0}, "/replicas"),
        ({"replicas": "2"}, "/replicas"),
        ({"watch.namespaces": "nlp"}, "/watch/namespaces"),
        ({"watch.namespaces": ["NLP"]}, "/watch/namespaces/0"),
        ({"watch.namespaces": ["nlp", "nlp"]}, "/watch/namespaces"),
        ({"crds.enabled": "no"}, "/crds/enabled"),
        ({"image.tag": 1.5}, "/image/tag"),
        ({"image.digest": "b" * 64}, "/image/digest"),
        ({"global.imageRegistry": "https://mirror.io"}, "/global/imageRegistry"),
        ({"global.imagePullSecrets": ["mirror"]}, "/global/imagePullSecrets/0"),
        ({"podLabels": {"app.kubernetes.io/name": "mine"}}, "'app.kubernetes.io/name'"),
        ({"extraEnv": [{"name": "FINETUNE_LEASE", "value": "x"}]}, "/extraEnv/0/name"),
        ({"serviceAccount.name": "mine"}, "name"),
        ({"image.pullPolicy": "Sometimes"}, "/image/pullPolicy"),
        ({"runAsUser": 0}, "/runAsUser"),
        ({"resources.limit": {"memory": "1Gi"}}, "limit"),
        ({"metrics.podMonitor.interval": "half a minute"}, "/metrics/podMonitor/interval"),
        ({"metrics.serviceMonitor.interval": 30}, "/metrics/serviceMonitor/interval"),
        ({"metrics.rules.labels": {"release": 1}}, "/metrics/rules/labels/release"),
        ({"metrics.dashboard.folder": "ML"}, "folder"),
        ({"metrics.access": "Everybody"}, "/metrics/access"),
        ({"metrics.tokenSecret": {"name": "prometheus"}}, "/metrics/tokenSecret"),
        ({"policy.enabled": 1}, "/policy/enabled"),
        ({"test.enabled": True}, "/test/study"),
        ({"test.timeoutSeconds": 0}, "/test/timeoutSeconds"),
        ({"study.resources": {"cpu": "four"}}, "/study/resources/cpu"),
        ({"study.resources": {"cpu": 0.5}}, "/study/resources/cpu"),
        ({"study.storage": {"claimName": "a", "uri": "s3://b/c"}}, "/study/storage"),
        ({"study.storage": {"claimName": "a", "secretName": "b"}}, "/study/storage"),
        ({"study.storage": {"uri": "/data"}}, "/study/storage/uri"),
        ({"study.podTemplate": {"containers": []}}, "containers"),
        ({"study.maxFailedAttempts": 0}, "/study/maxFailedAttempts"),
        ({"progressPerSecond": 0}, "/progressPerSecond"),
        ({"traces.endpoint": "collector:4317"}, "/traces/endpoint"),
        ({"traces.sampleRatio": 2}, "/traces/sampleRatio"),
    ],
    ids=json.dumps,
)
def test_wrong_values_are_refused_with_their_path(values: dict[str, Any], field: str) -> None:
    assert field in refusal(values)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (
            {"metrics.podMonitor.enabled": True, "metrics.serviceMonitor.enabled": True},
            "metrics.podMonitor.enabled",
        ),
        (
            {"metrics.service.enabled": False, "metrics.serviceMonitor.enabled": True},
            "metrics.service.enabled",
        ),
        ({"metrics.serviceMonitor.enabled": True, **NAMESPACED}, "metrics.access"),
        ({"metrics.podMonitor.enabled": True}, "metrics.tokenSecret"),
        ({"policy.enabled": True, **NAMESPACED}, "policy.enabled"),
        ({"policy.operator": "Enabled", **NAMESPACED}, "policy.operator"),
        (
            {
                "policy.operator": "Enabled",
                "test.enabled": True,
                "test.study": {"task": "SingleLabel"},
            },
            "test.namespace",
        ),
    ],
    ids=[
        "scraped twice",
        "nothing to select",
        "nothing to scrape",
        "no token",
        "cluster-scoped",
        "also",
        "no place for a study",
    ],
)
def test_values_that_do_not_go_together_are_refused(values: dict[str, Any], field: str) -> None:
    message = refusal(values)
    assert field in message
    assert " must " in message


# -- helm test


@pytest.mark.parametrize(
    ("values", "namespace"),
    [
        ({"test.namespace": "nlp"}, "nlp"),
        ({"policy.operator": "Disabled"}, NAMESPACE),
        (NAMESPACED, "nlp"),
    ],
    ids=["cluster-wide", "in the release's", "namespaced"],
)
def test_study_of_helm_test_is_that_of_the_values(values: dict[str, Any], namespace: str) -> None:
    spec = {"task": "SingleLabel", "budget": {"maxTrials": 2}}
    manifests = render({**values, "test.enabled": True, "test.study": spec})
    assert {m["kind"] for m in hooks(manifests)} == {"ServiceAccount", "Role", "RoleBinding", "Pod"}
    (pod,) = of_kind(manifests, "Pod")
    assert pod["metadata"]["namespace"] == NAMESPACE  # helm test --logs looks nowhere else
    (container,) = pod["spec"]["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    study = json.loads(env["FINETUNE_TEST_STUDY"])
    name = study["metadata"]["name"]
    assert study["metadata"]["namespace"] == namespace
    assert study["spec"] == spec
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name)
    (role,) = of_kind(hooks(manifests), "Role")
    assert role["metadata"]["namespace"] == namespace
    studies = {"apiGroups": ["finetune.dev"], "resources": ["finetunestudies"]}
    assert role["rules"] == [
        {**studies, "resourceNames": [name], "verbs": ["get", "delete"]},
        {**studies, "verbs": ["create"]},
    ]


def test_pod_of_helm_test_is_taken_for_no_replica() -> None:
    manifests = render(EVERYTHING)
    (pod,) = of_kind(manifests, "Pod")
    (service,) = of_kind(manifests, "Service")
    (budget,) = of_kind(manifests, "PodDisruptionBudget")
    for selector in (service["spec"]["selector"], budget["spec"]["selector"]["matchLabels"]):
        assert not selector.items() <= pod["metadata"]["labels"].items()


def test_nothing_of_helm_test_is_there_by_default(cluster_wide: list[dict[str, Any]]) -> None:
    assert hooks(cluster_wide) == []


# -- the policy


def test_policy_is_there_on_demand(cluster_wide: list[dict[str, Any]]) -> None:
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    assert of_kind(cluster_wide, *kinds) == []  # no API server says that it has such policies
    policy, binding = of_kind(render({"policy.enabled": True}), *kinds)
    assert binding["spec"] == {
        "policyName": policy["metadata"]["name"],
        "validationActions": ["Deny"],
    }
    assert policy["spec"]["failurePolicy"] == "Fail"


@pytest.mark.parametrize("values", [NAMESPACED, {"policy.operator": "Disabled"}])
def test_operators_own_policy_is_not_there_in_namespaced_mode_or_when_disabled(
    values: dict[str, Any],
) -> None:
    assert of_kind(render(values), "ValidatingAdmissionPolicy") == []


def test_operators_own_policy_is_about_its_account_alone() -> None:
    manifests = render({"policy.operator": "Enabled"})
    (policy,) = of_kind(manifests, "ValidatingAdmissionPolicy")
    (account,) = of_kind(manifests, "ServiceAccount")
    name = f"system:serviceaccount:{NAMESPACE}:{account['metadata']['name']}"
    (condition,) = policy["spec"]["matchConditions"]
    assert condition["expression"] == f"request.userInfo.username == '{name}'"
    assert policy["spec"]["failurePolicy"] == "Fail"


def _operator_role(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (binding,) = of_kind(manifests, "ClusterRoleBinding")
    roles = of_kind(manifests, "ClusterRole")
    return next(r for r in roles if r["metadata"]["name"] == binding["roleRef"]["name"])


def _rights(role: dict[str, Any]) -> dict[tuple[str, str], set[str]]:
    """Verbs by API group and resource."""
    rights: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                rights.setdefault((group, resource), set()).update(rule["verbs"])
    return rights
