"""What a class makes of a study, and what it refuses: for the API server in CEL, for everybody else in Python.

`policy()` is the ValidatingAdmissionPolicy of the chart. Neither it nor the operator's own check (`refusals`) is needed for
the other; `tests/cluster/test_classes.py` proves that they agree.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias, TypeVar

from finetune_api.classes import CLASS_KIND, CLASS_LABEL, CLASS_PLURAL, ClassSpec
from finetune_api.cluster import Toleration
from finetune_api.quantities import gpus_in, parse_quantity
from finetune_api.search import Budget
from finetune_api.study import API_VERSION, GROUP, PLURAL, VERSION, StudySpec

CLAIM_ROOT = "/mnt/storage"
"""Where the PersistentVolumeClaim of a study is mounted: it belongs to the study's namespace."""

_T = TypeVar("_T", int, float)
Refusal: TypeAlias = tuple[str, str]
"""The path of a field, and what must hold."""


def with_class(spec: StudySpec, given: ClassSpec) -> StudySpec:
    """The study as its class makes it: what it leaves out is the class's, and its budget is within the limits."""
    cluster, limits = spec.cluster, given.limits
    tolerated = [*cluster.tolerations, *(t for t in given.tolerations if _is_new(t, spec))]
    placed = cluster.model_copy(
        update={
            "resources_per_worker": {**given.resources_per_worker, **cluster.resources_per_worker},
            "node_selector": {**cluster.node_selector, **given.node_selector},
            "tolerations": tolerated,
            "queue_name": cluster.queue_name or given.queue_name,
            "priority_class_name": cluster.priority_class_name or given.priority_class_name,
        }
    )
    budget = spec.budget
    limited = budget.model_copy(
        update={
            "max_trials": _least(budget.max_trials, limits.trials),
            "max_parallel_trials": _least(budget.max_parallel_trials, limits.parallel_trials),
            "max_duration_seconds": _least(budget.max_duration_seconds, limits.duration_seconds),
            "max_gpu_hours": _least(budget.max_gpu_hours, limits.gpu_hours),
            "price_per_gpu_hour": budget.price_per_gpu_hour or given.price_per_gpu_hour,
        }
    )
    changes: dict[str, Any] = {
        "storage": spec.storage or given.storage,
        "cluster": placed,
        "budget": limited,
    }
    if given.without_texts:
        changes["artifacts"] = spec.artifacts.model_copy(update={"texts": False})
    return spec.model_copy(update=changes)


def refusals(spec: StudySpec, namespace: str, name: str, given: ClassSpec) -> list[Refusal]:
    """What the class `name` does not let a study in that namespace have; empty if nothing."""
    asked = _Asked(spec, namespace, given)
    return [
        (field, f"{message} in class {name} (got {got})")
        for rule in _RULES
        for field, message, got in rule.broken(asked)
    ]


def policy(name: str) -> dict[str, Any]:
    """The ValidatingAdmissionPolicy that refuses the same when a study is created or its spec is edited.

    A study that is suspended is not checked: nothing of it runs, and resuming is an edit.
    """
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": API_VERSION, "kind": CLASS_KIND},
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [GROUP],
                        "apiVersions": [VERSION],
                        "resources": [PLURAL],
                        "operations": ["CREATE", "UPDATE"],
                    }
                ]
            },
            "matchConditions": [
                {
                    "name": "spec-is-new",
                    "expression": "request.operation == 'CREATE'"
                    " || (object.spec != oldObject.spec && !object.spec.?suspend.orValue(false))",
                }
            ],
            "variables": [{"name": n, "expression": e} for n, e in _VARIABLES.items()],
            "validations": [
                {
                    "expression": f"!variables.mine || ({rule.cel})",
                    "messageExpression": f"{rule.said} + ' in class ' + params.metadata.name"
                    + (f" + ' (got ' + {rule.got} + ')'" if rule.got else ""),
                }
                for rule in _RULES
            ],
        },
    }


def defaults_policy(name: str) -> dict[str, Any]:
    """The ValidatingAdmissionPolicy that refuses a second default class."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": API_VERSION, "kind": CLASS_KIND},
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [GROUP],
                        "apiVersions": [VERSION],
                        "resources": [CLASS_PLURAL],
                        "operations": ["CREATE", "UPDATE"],
                    }
                ]
            },
            "validations": [
                {
                    "expression": "!object.spec.?default.orValue(false)"
                    " || !params.spec.?default.orValue(false)"
                    " || params.metadata.name == object.metadata.name",
                    "messageExpression": "'spec.default must be true in one class only: '"
                    " + params.metadata.name + ' is the default'",
                }
            ],
        },
    }


def _is_new(toleration: Toleration, spec: StudySpec) -> bool:
    return toleration not in spec.cluster.tolerations


def _least(asked: _T | None, limit: _T | None) -> _T | None:
    return min((value for value in (asked, limit) if value is not None), default=None)


@dataclass(frozen=True)
class _Asked:
    """A study under the eyes of a class."""

    spec: StudySpec
    namespace: str
    given: ClassSpec

    @property
    def budget(self) -> Budget:
        return self.spec.budget

    @property
    def resources(self) -> dict[str, Any]:
        return {**self.given.resources_per_worker, **self.spec.cluster.resources_per_worker}

    @property
    def gpus(self) -> Decimal:
        return self.spec.cluster.workers * gpus_in(self.resources)

    def names(self) -> Iterator[Refusal]:
        """Each name of a model, with its field."""
        spec = self.spec
        yield "spec.model.name", spec.model.name
        if spec.dataset.cleaning.duplicate_encoder is not None:
            encoder = spec.dataset.cleaning.duplicate_encoder.name
            yield "spec.dataset.cleaning.duplicateEncoder.name", encoder
        fixed = {"spec.hyperparameters": spec.hyperparameters}
        fixed |= {f"spec.search.points[{n}]": point for n, point in enumerate(spec.search.points)}
        for place, values in fixed.items():
            found = values.to_json().get("pretrainedModel") if values is not None else None
            if found:
                yield f"{place}.pretrainedModel", found
        for number, space in enumerate(spec.spaces):
            domain = space.domains().get("pretrainedModel")
            for value in getattr(domain, "values", None) or ():
                yield f"spec.searchSpaces[{number}].pretrainedModel", str(value)

    def locations(self) -> Iterator[Refusal]:
        """Each place that is read, with its field; without models and data sets of the hub."""
        data = self.spec.dataset
        files = data.files
        places = {
            "spec.dataset.files.train": files and files.train,
            "spec.dataset.files.validation": files and files.validation,
            "spec.dataset.files.test": files and files.test,
            "spec.dataset.labelNamesFile": data.label_names_file,
            "spec.dataset.synonyms": data.synonyms,
        }
        yield from ((field, place) for field, place in places.items() if place)
        for number, start in enumerate(self.spec.search.warm_start):
            yield f"spec.search.warmStart[{number}].uri", start.uri
        yield from ((field, name) for field, name in self.names() if is_location(name))
        if data.hub is not None and is_location(data.hub.path):
            yield "spec.dataset.hub.path", data.hub.path

    def places(self) -> Iterator[Refusal]:
        """Each place that is read or written, trackers included."""
        yield from self.locations()
        spec = self.spec
        if spec.storage is not None and spec.storage.uri is not None:
            yield "spec.storage.uri", spec.storage.uri
        if spec.tracking is not None and spec.tracking.mlflow is not None:
            yield "spec.tracking.mlflow.trackingUri", spec.tracking.mlflow.tracking_uri

    def secrets(self) -> Iterator[Refusal]:
        for part in ("storage", "tracking"):
            found = getattr(self.spec, part)
            if found is not None and found.secret_name is not None:
                yield f"spec.{part}.secretName", found.secret_name

    @property
    def roots(self) -> list[str]:
        """What locations may begin with."""
        allowed = self.given.allowed
        own = self.given.storage.uri if self.given.storage is not None else None
        by_namespace = [
            *(allowed.data_roots or []),
            *(allowed.stores or []),
            *([own] if own else []),
        ]
        return [
            *(f"{_folder(root)}{self.namespace}/" for root in by_namespace),
            *map(_folder, allowed.shared_roots),
            f"{CLAIM_ROOT}/",
        ]


def _folder(root: str) -> str:
    """A root without its options, ending with a slash."""
    path = root.partition("?")[0]
    return path if path.endswith("/") else f"{path}/"


_LOCATION = r"://|^[/.~]|\\|/.*/|\.\."
_CLIMBS = r"(?i)(^|/)\.\.(/|$)|%2e|%2f|%5c|\\"
_ENDPOINT = r"(?i)[?&][^=&]*(endpoint|authority|%)[^=&]*=[^&]*"
_WITH_HOST = r"(?i)^[a-z][a-z0-9+.-]*://"
_WITHOUT_HOST = r"(?i)^(s3|gs|gcs|file|abfss?)://"
_AZURE = r"(?i)^abfss?://"
_OF_AZURE = r"(?i)^[^.:]+$|^[a-z0-9-]+\.(dfs|blob)\.core\.windows\.net$"


def is_location(name: str) -> bool:
    """Whether the name of a model or of a data set is a path or a URI, and not one of the hub."""
    return re.search(_LOCATION, name) is not None


def _hosts(place: str) -> list[str]:
    """The hosts that a place names, in its options and as its authority."""
    found = [part.partition("=")[2] for part in _all(_ENDPOINT, place)]
    if re.search(_WITH_HOST, place) and not re.search(_WITHOUT_HOST, place):
        found.append(_authority(place))
    if re.search(_AZURE, place) and not re.search(_OF_AZURE, _authority(place)):
        found.append(_authority(place))
    return found


def _all(pattern: str, text: str) -> list[str]:
    return [match.group() for match in re.finditer(pattern, text)]


def _authority(place: str) -> str:
    """The part of a URI between its scheme and its path, without what stands before an @."""
    return place.split("://")[1].split("/")[0].split("?")[0].split("@")[-1]


_VARIABLES: dict[str, str] = {
    "mine": (
        "has(object.spec.className) ? object.spec.className == params.metadata.name"
        f" : ('{CLASS_LABEL}' in namespaceObject.metadata.?labels.orValue({{}})"
        f" ? namespaceObject.metadata.labels['{CLASS_LABEL}'] == params.metadata.name"
        " : params.spec.?default.orValue(false))"
    ),
    "limits": "params.spec.?limits.orValue({})",
    "allowed": "params.spec.?allowed.orValue({})",
    "cluster": "object.spec.?cluster.orValue({})",
    "budget": "object.spec.?budget.orValue({})",
    "asked": "variables.cluster.?resourcesPerWorker.orValue({})",
    "given": "params.spec.?resourcesPerWorker.orValue({})",
    "most": "variables.limits.?resourcesPerWorker.orValue({})",
    "gpus": (
        "double(variables.cluster.?workers.orValue(1)) * ("
        "variables.asked.map(k, k.endsWith('gpu') || k.startsWith('nvidia.com/mig-')"
        " ? quantity(string(variables.asked[k])).asApproximateFloat() : 0.0).sum()"
        " + variables.given.map(k, !(k in variables.asked)"
        " && (k.endsWith('gpu') || k.startsWith('nvidia.com/mig-'))"
        " ? quantity(string(variables.given[k])).asApproximateFloat() : 0.0).sum())"
    ),
    "names": (
        "[object.spec.model.name, ?object.spec.dataset.?cleaning.?duplicateEncoder.?name,"
        " ?object.spec.?hyperparameters.?pretrainedModel]"
        " + object.spec.?search.?points.orValue([]).filter(p, has(p.pretrainedModel)).map(p, p.pretrainedModel)"
        " + object.spec.searchSpaces.filter(s, has(s.pretrainedModel))"
        ".map(s, s.pretrainedModel.?values.orValue([])).flatten()"
    ),
    "locations": (
        "[?object.spec.dataset.?files.?train, ?object.spec.dataset.?files.?validation,"
        " ?object.spec.dataset.?files.?test, ?object.spec.dataset.?labelNamesFile, ?object.spec.dataset.?synonyms]"
        " + object.spec.?search.?warmStart.orValue([]).map(w, w.uri)"
        " + (variables.names + [?object.spec.dataset.?hub.?path])"
        f".filter(n, n.matches(r'{_LOCATION}'))"
    ),
    "places": (
        "variables.locations + [?object.spec.?storage.?uri, ?object.spec.?tracking.?mlflow.?trackingUri]"
    ),
    "secrets": "[?object.spec.?storage.?secretName, ?object.spec.?tracking.?secretName]",
    "roots": (
        "(variables.allowed.?dataRoots.orValue([]) + variables.allowed.?stores.orValue([])"
        " + [?params.spec.?storage.?uri])"
        ".map(r, r.split('?')[0]).map(r, (r.endsWith('/') ? r : r + '/') + request.namespace + '/')"
        " + variables.allowed.?sharedRoots.orValue([])"
        ".map(r, r.split('?')[0]).map(r, r.endsWith('/') ? r : r + '/')"
        f" + ['{CLAIM_ROOT}/']"
    ),
    "outside": (
        f"variables.locations.filter(l, l.split('?')[0].matches(r'{_CLIMBS}')"
        " || !variables.roots.exists(r, l.split('?')[0].startsWith(r)))"
    ),
    "hosts": (
        f"variables.places.map(l, l.findAll(r'{_ENDPOINT}').map(p, p.contains('=') ? p.split('=', 2)[1] : p)).flatten()"
        f" + variables.places.filter(l, l.matches(r'{_WITH_HOST}') && !l.matches(r'{_WITHOUT_HOST}'))"
        ".map(l, l.split('://')[1].split('/')[0].split('?')[0]).map(a, a.split('@')[a.split('@').size() - 1])"
        f" + variables.places.filter(l, l.matches(r'{_AZURE}'))"
        ".map(l, l.split('://')[1].split('/')[0].split('?')[0]).map(a, a.split('@')[a.split('@').size() - 1])"
        f".filter(h, !h.matches(r'{_OF_AZURE}'))"
    ),
    "foreign": (
        "variables.hosts.filter(h, !(h in variables.allowed.?endpoints.orValue([]))"
        " && !('*' in variables.allowed.?endpoints.orValue([])))"
    ),
}
"""What the expressions of the policy share, each of which may use those before it."""

Found: TypeAlias = tuple[str, str, object]
"""A field, what must hold for it, and what was asked."""


@dataclass(frozen=True)
class _ClassRule:
    """What a class may refuse: `cel` is true, and `broken` yields nothing, where a study may have what it asks for.

    `said` and `got` are expressions for the message: what must hold, and what was asked.
    """

    cel: str
    said: str
    got: str
    broken: Callable[[_Asked], Iterable[Found]]


def _limit(field: str, limit: str, alias: str) -> _ClassRule:
    """A number of the study's budget or cluster and its limit; `field` and `limit` are names in Python."""
    part, _, own = field.partition(".")
    json = {"budget": "variables.budget", "cluster": "variables.cluster"}[part]
    name = _camel(own)

    def broken(asked: _Asked) -> Iterator[Found]:
        value, most = getattr(getattr(asked.spec, part), own), getattr(asked.given.limits, limit)
        if value is not None and most is not None and value > most:
            yield f"spec.{part}.{name}", f"must be at most {most:g}", f"{value:g}"

    return _ClassRule(
        cel=f"!has(variables.limits.{alias}) || !has({json}.{name})"
        f" || double({json}.{name}) <= double(variables.limits.{alias})",
        said=f"'spec.{part}.{name} must be at most ' + string(variables.limits.{alias})",
        got=f"string({json}.{name})",
        broken=broken,
    )


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _listed(field: str, allowed: str, alias: str, values: str) -> _ClassRule:
    """One value of the study, at a path in Python, that must be among those allowed."""
    path = ".".join(map(_camel, field.split(".")))

    def broken(asked: _Asked) -> Iterator[Found]:
        value: Any = asked.spec
        for part in field.split("."):
            value = getattr(value, part, None)
        names = getattr(asked.given.allowed, allowed)
        if value is not None and names is not None and value not in names:
            yield f"spec.{path}", _one_of(names), value

    return _ClassRule(
        cel=f"!has(variables.allowed.{alias}) || [{values}].all(v, v in variables.allowed.{alias})",
        said=f"'spec.{path} must be ' + {_cel_one_of(alias)}",
        got=f"[{values}].filter(v, !(v in variables.allowed.{alias}))[0]",
        broken=broken,
    )


def _one_of(names: list[str]) -> str:
    return f"must be one of {', '.join(names)}" if names else "must not be given"


def _cel_one_of(alias: str) -> str:
    names = f"variables.allowed.{alias}"
    return f"({names}.size() > 0 ? 'one of ' + {names}.join(', ') : 'left out')"


def _templates(asked: _Asked) -> Iterator[Found]:
    if asked.given.allowed.pod_template == "Deny" and asked.spec.cluster.pod_template is not None:
        yield "spec.cluster.podTemplate", "must not be given", "one"


def _placements(asked: _Asked) -> Iterator[Found]:
    if asked.given.allowed.placement == "Deny":
        for field in ("node_selector", "tolerations"):
            if getattr(asked.spec.cluster, field):
                yield f"spec.cluster.{_camel(field)}", "must not be given", "some"


def _all_gpus(asked: _Asked) -> Iterator[Found]:
    most = asked.given.limits.gpus
    if most is not None and asked.gpus > most:
        message = f"must ask for at most {most} GPUs, all workers together,"
        yield "spec.cluster.resourcesPerWorker", message, f"{asked.gpus:f}"


def _each_resource(asked: _Asked) -> Iterator[Found]:
    most, own = asked.given.limits.resources_per_worker, asked.spec.cluster.resources_per_worker
    for name, value in own.items():
        if name in most and parse_quantity(value) > parse_quantity(most[name]):
            field = f"spec.cluster.resourcesPerWorker.{name}"
            yield field, f"must be at most {most[name]}", value


def _secret_names(asked: _Asked) -> Iterator[Found]:
    names = asked.given.allowed.secret_names
    for field, name in asked.secrets():
        if names is not None and name not in names:
            yield field, _one_of(names), name


def _hub_names(asked: _Asked) -> Iterator[Found]:
    allowed, hub = asked.given.allowed, asked.spec.dataset.hub
    models = [(field, name) for field, name in asked.names() if not is_location(name)]
    sets = [("spec.dataset.hub.path", hub.path)] if hub and not is_location(hub.path) else []
    for known, found in ((allowed.hub_models, models), (allowed.hub_datasets, sets)):
        for field, name in found if known is not None else ():
            if not _is_known(name, known or []):
                yield field, _one_of(known or []), name


def _is_known(name: str, known: list[str]) -> bool:
    return any(name == each or (each.endswith("/") and name.startswith(each)) for each in known)


def _cel_hub(alias: str, values: str, what: str) -> tuple[str, str, str]:
    known = f"variables.allowed.{alias}"
    unknown = f"{values}.filter(n, !n.matches(r'{_LOCATION}') && !{known}.exists(a, n == a || (a.endsWith('/') && n.startsWith(a))))"
    return (
        f"!has({known}) || {unknown}.size() == 0",
        f"'{what} must be ' + {_cel_one_of(alias)}",
        f"{unknown}[0]",
    )


def _outside(asked: _Asked) -> Iterator[Found]:
    if asked.given.allowed.data_roots is None:
        return
    for field, place in asked.locations():
        path = place.partition("?")[0]
        if re.search(_CLIMBS, path) or not any(path.startswith(root) for root in asked.roots):
            yield field, f"must be below {' or '.join(asked.roots)}", place


def _foreign(asked: _Asked) -> Iterator[Found]:
    known = asked.given.allowed.endpoints
    for field, place in asked.places():
        for host in _hosts(place):
            if host not in known and "*" not in known:
                yield (
                    field,
                    f"must name no host but those allowed ({', '.join(known) or 'none'})",
                    host,
                )


_MODELS = _cel_hub("hubModels", "variables.names", "models of the hub")
_SETS = _cel_hub("hubDatasets", "[?object.spec.dataset.?hub.?path]", "spec.dataset.hub.path")

_RULES: tuple[_ClassRule, ...] = (
    _ClassRule(
        "variables.allowed.?podTemplate.orValue('Deny') == 'Allow' || !has(variables.cluster.podTemplate)",
        "'spec.cluster.podTemplate must not be given'",
        "'one'",
        _templates,
    ),
    _ClassRule(
        "variables.allowed.?placement.orValue('Allow') == 'Allow'"
        " || (variables.cluster.?nodeSelector.orValue({}).size() == 0"
        " && variables.cluster.?tolerations.orValue([]).size() == 0)",
        "'spec.cluster.nodeSelector and tolerations must not be given'",
        "'some'",
        _placements,
    ),
    _limit("cluster.workers", "workers", "workers"),
    _ClassRule(
        "!has(variables.limits.gpus) || variables.gpus <= double(variables.limits.gpus)",
        "'spec.cluster.resourcesPerWorker must ask for at most ' + string(variables.limits.gpus)"
        " + ' GPUs, all workers together,'",
        "string(variables.gpus)",
        _all_gpus,
    ),
    _ClassRule(
        "variables.asked.all(k, !(k in variables.most) || quantity(string(variables.asked[k]))"
        ".compareTo(quantity(string(variables.most[k]))) <= 0)",
        "'spec.cluster.resourcesPerWorker must be at most '"
        " + variables.most.map(k, k + ' ' + string(variables.most[k])).join(', ')",
        "variables.asked.map(k, k + ' ' + string(variables.asked[k])).join(', ')",
        _each_resource,
    ),
    _limit("budget.max_trials", "trials", "trials"),
    _limit("budget.max_parallel_trials", "parallel_trials", "parallelTrials"),
    _limit("budget.max_duration_seconds", "duration_seconds", "durationSeconds"),
    _limit("budget.max_gpu_hours", "gpu_hours", "gpuHours"),
    _listed("cluster.queue_name", "queue_names", "queueNames", "?variables.cluster.?queueName"),
    _listed(
        "cluster.priority_class_name",
        "priority_class_names",
        "priorityClassNames",
        "?variables.cluster.?priorityClassName",
    ),
    _listed(
        "storage.persistent_volume_claim.claim_name",
        "claims",
        "claims",
        "?object.spec.?storage.?persistentVolumeClaim.?claimName",
    ),
    _listed("storage.uri", "stores", "stores", "?object.spec.?storage.?uri"),
    _ClassRule(
        "!has(variables.allowed.secretNames)"
        " || variables.secrets.all(s, s in variables.allowed.secretNames)",
        f"'spec.storage.secretName and spec.tracking.secretName must be ' + {_cel_one_of('secretNames')}",
        "variables.secrets.filter(s, !(s in variables.allowed.secretNames))[0]",
        _secret_names,
    ),
    _ClassRule(*_MODELS, lambda asked: (f for f in _hub_names(asked) if "hub.path" not in f[0])),
    _ClassRule(*_SETS, lambda asked: (f for f in _hub_names(asked) if "hub.path" in f[0])),
    _ClassRule(
        "!has(variables.allowed.dataRoots) || variables.outside.size() == 0",
        "'data, models and earlier studies must be below ' + variables.roots.join(' or ')",
        "variables.outside[0]",
        _outside,
    ),
    _ClassRule(
        "variables.foreign.size() == 0",
        "'locations and trackers must name no host but those allowed ('"
        " + (variables.allowed.?endpoints.orValue([]).size() > 0 ?"
        " variables.allowed.endpoints.join(', ') : 'none') + ')'",
        "variables.foreign[0]",
        _foreign,
    ),
)
"""Everything that a class may refuse."""
