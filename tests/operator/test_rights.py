"""The operator's rights in the chart are those of the table in docs/operations.md; without helm."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import yaml

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "charts" / "finetune-operator" / "templates"

Right: TypeAlias = tuple[str, str, bool]
"""Resource, verb, and whether only of the object named like the deployment."""

GROUPS = {
    "finetunestudies": "finetune.dev",
    "finetunestudies/status": "finetune.dev",
    "finetunestudies/finalizers": "finetune.dev",
    "jobs": "batch",
    "rayjobs": "ray.io",
    "networkpolicies": "networking.k8s.io",
    "roles": "rbac.authorization.k8s.io",
    "rolebindings": "rbac.authorization.k8s.io",
    "finetuneclasses": "finetune.dev",
    "customresourcedefinitions": "apiextensions.k8s.io",
    "leases": "coordination.k8s.io",
    "tokenreviews": "authentication.k8s.io",
    "subjectaccessreviews": "authorization.k8s.io",
}
"""API groups of the resources that are not in the core group."""

OTHERS = {
    "metrics-role.yaml": {"finetune-metrics-reader"},
    "user-roles.yaml": {"finetune-study-editor", "finetune-study-viewer", "finetune-class-viewer"},
    "tests/study.yaml": {"{{ $name }}"},  # `helm test` has an account of its own
}
"""Templates with roles that are not the operator's, and the names of these."""

NAME = '{{ include "finetune-operator.fullname" . }}'
INCLUDES = re.compile(r'^\{\{ include "finetune-operator\.([\w.]+)" [.$] \}\}\n', re.M)
DOCUMENT = re.compile(r"^(?:---|\{\{- else \}\})\n", re.M)


def texts() -> dict[str, str]:
    """The named texts of the templates, by name."""
    text = "\n".join(path.read_text() for path in sorted(TEMPLATES.rglob("*.tpl")))
    found = re.findall(
        r'^\{\{- define "finetune-operator\.([\w.]+)" -\}\}\n(.*?)^\{\{- end \}\}\n(?=\n|\Z)',
        text,
        flags=re.M | re.S,
    )
    assert len(found) == text.count("define "), "a text of another form"
    return dict(found)


def rights_of(text: str) -> list[Right]:
    """The rights of rules that are plain YAML but for the deployment's name."""
    rules: list[dict[str, Any]] = yaml.safe_load(text.replace(NAME, "the-deployment"))
    found = []
    for rule in rules:
        names = rule.pop("resourceNames", None)
        assert names in (None, ["the-deployment"])
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
        for resource in rule["resources"]:
            assert rule["apiGroups"] == [GROUPS.get(resource, "")], resource
            found += [(resource, verb, names is not None) for verb in rule["verbs"]]
    return found


def table() -> list[tuple[list[str], str, str]]:
    """Resources, verbs and purpose of each row of the table in docs/operations.md."""
    page = (ROOT / "docs" / "operations.md").read_text()
    (section,) = re.findall(r"^## Rights of the operator$(.*?)^## ", page, flags=re.M | re.S)
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", section, flags=re.M)
    assert len(rows) == section.count("\n|") - 2, "a row of another form"
    return [(re.findall(r"`([^`]+)`", resources), verbs, why) for resources, verbs, why in rows]


def documented() -> list[Right]:
    """The rights that the table grants."""
    found = []
    for resources, verbs, _ in table():
        for clause in verbs.split("; "):
            free = clause.removesuffix(" of the one named like the deployment")
            named = free != clause
            for resource in resources:
                found += [(resource, verb, named) for verb in re.split(", | and ", free)]
    return found


def test_the_chart_grants_what_the_table_says_and_nothing_else() -> None:
    granted = [
        right
        for name, text in texts().items()
        if name.startswith("rights.")
        for right in rights_of(text)
    ]
    assert Counter(granted) == Counter(documented())


def test_what_is_granted_only_at_times_is_granted_then() -> None:
    rules, roles = texts()["rules"], (TEMPLATES / "rbac.yaml").read_text()
    cluster_rules = texts()["clusterRules"]
    namespaced, _, clusterwide = roles.partition("\n{{- else }}\n")
    kuberay = '{{- if ne .Values.study.engine "Job" }}\n{{ include "finetune-operator.rights.kuberay" . }}\n{{- end }}\n'
    assert kuberay in rules
    assert INCLUDES.findall(rules.replace(kuberay, "")) == ["rights.studies", "rights.children"]
    reviews = '{{- if eq .Values.metrics.access "Authenticated" }}\n{{ include "finetune-operator.rights.reviews" . }}\n{{- end }}\n'
    assert reviews in cluster_rules
    assert INCLUDES.findall(cluster_rules.replace(reviews, "")) == ["rights.crd", "rights.classes"]
    assert INCLUDES.findall(namespaced) == ["rules"]
    assert INCLUDES.findall(clusterwide) == ["rules", "clusterRules"]
    said = {word: why for resources, _, why in table() for word in resources}
    at_times = {name: why for name, why in said.items() if re.search(r"\bnot (in|with) ", why)}
    clusterwide_only = {"customresourcedefinitions", "finetuneclasses", "namespaces"}
    asked = {"tokenreviews", "subjectaccessreviews"}
    assert at_times.keys() == {"rayjobs"} | clusterwide_only | asked
    assert at_times["rayjobs"].endswith("not with `study.engine: Job`")
    assert all(at_times[name].endswith("not in namespaced mode") for name in clusterwide_only)
    for name in asked:
        assert at_times[name].endswith("not in namespaced mode, not with `metrics.access: Open`")


def documents(kind: str) -> Iterator[tuple[str, str]]:
    """(template, text) of each manifest of a kind, a Cluster before it or not."""
    for path in sorted(TEMPLATES.rglob("*.yaml")):
        for document in DOCUMENT.split(path.read_text()):
            if re.search(rf"^kind: (Cluster)?{kind}$", document, flags=re.M):
                yield str(path.relative_to(TEMPLATES)), document


def name_of(document: str) -> str:
    """What a manifest is called."""
    (name,) = re.findall(r"^metadata:\n  name: (.*)$", document, flags=re.M)
    return str(name)


def test_no_role_of_the_operator_has_rules_of_its_own() -> None:
    collections = {"rules", "clusterRules"}
    used = {name for text in collections for name in INCLUDES.findall(texts()[text])}
    for template, document in documents("Role"):
        if template in OTHERS:
            assert name_of(document) in OTHERS[template]
            continue
        head, _, rules = document.partition("\nrules:\n")
        assert "aggregat" not in head
        assert re.fullmatch(r"(\{\{- end \}\}\n)*", INCLUDES.sub("", rules)), template
        used |= set(INCLUDES.findall(rules))
    assert used == {*collections, *(name for name in texts() if name.startswith("rights."))}


def test_the_operators_account_has_no_other_role() -> None:
    """A binding names a role beside it, so none of Kubernetes' own, and only `helm test` binds one of the others."""
    made = {(template, name_of(document)) for template, document in documents("Role")}
    bound = {
        (template, re.findall(r"^roleRef:\n(?:  .*\n)*?  name: (.*)$", document, re.M)[0])
        for template, document in documents("RoleBinding")
    }
    for_others = ("metrics-role.yaml", "user-roles.yaml")
    assert bound == {(template, name) for template, name in made if template not in for_others}
    smoke = (TEMPLATES / "tests" / "study.yaml").read_text()
    assert '{{- $name := printf "%s-test" (include "finetune-operator.fullname" .) }}' in smoke
