"""The CustomResourceDefinition, derived from the pydantic models."""

from typing import Any

from finetune_api.classes import CLASS_KIND, CLASS_PLURAL, FineTuneClass
from finetune_api.schema import Model
from finetune_api.study import GROUP, KIND, PLURAL, VERSION, FineTuneStudy

_PLAIN = (
    "type",
    "description",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "default",
    "required",
)


def _structural(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """`node` of a pydantic JSON schema as a structural schema: no references, unions or titles."""
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    if node.get("x-kubernetes-int-or-string"):
        return {key: value for key, value in node.items() if key not in ("title", "default")}
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    if options:
        (option,) = options
        outer = {key: value for key, value in node.items() if key != "anyOf"}
        return _structural({**option, **outer}, definitions)
    schema: dict[str, Any] = {key: node[key] for key in _PLAIN if node.get(key) is not None}
    if "const" in node:
        schema["enum"] = [node["const"]]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            schema |= {bound: node[exclusive], exclusive: True}
    schema |= {key: value for key, value in node.items() if key.startswith("x-kubernetes-")}
    schema |= _fractional_bounds(schema)
    if "items" in node:
        schema["items"] = _structural(node["items"], definitions)
    if "properties" in node:
        schema["properties"] = {
            name: _structural(child, definitions) for name, child in node["properties"].items()
        }
    elif isinstance(node.get("additionalProperties"), dict):
        schema["additionalProperties"] = _structural(node["additionalProperties"], definitions)
    if isinstance(schema.get("default"), dict):
        # The API server checks a default against the rules before it fills in the defaults of its fields.
        schema["default"] = _without_nulls(schema["default"])
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    return schema


def _fractional_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Rules for bounds that are no whole numbers.

    The API server compares a whole number with the bound cut to a whole one: for it, 0 is not below 0.5.
    """
    rules = [
        {"rule": f"self {sign} {schema[bound]}", "message": f"must be at {least} {schema[bound]}"}
        for bound, sign, least in (("minimum", ">=", "least"), ("maximum", "<=", "most"))
        if isinstance(schema.get(bound), float) and not schema[bound].is_integer()
    ]
    known = schema.get("x-kubernetes-validations", [])
    return {"x-kubernetes-validations": [*known, *rules]} if rules else {}


def _object_schema(model: type[Model]) -> dict[str, Any]:
    """The structural OpenAPI v3 schema of a kind."""
    raw = model.model_json_schema(mode="validation")
    schema = _structural(raw, raw["$defs"])
    properties = schema["properties"]
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    schema["required"] = ["spec"]
    return schema


def openapi_schema() -> dict[str, Any]:
    """The structural OpenAPI v3 schema of FineTuneStudy."""
    schema = _object_schema(FineTuneStudy)
    properties = schema["properties"]
    # Without this default, tools that compute health (kstatus) call a study Current before anybody has seen it.
    properties["status"] = _without_defaults(properties["status"])
    properties["status"]["default"] = {"observedGeneration": -1}
    # One writer writes all of it; recording the owner of each field would make up most of the object.
    properties["status"]["x-kubernetes-map-type"] = "atomic"
    return schema


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _without_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    # A status is what was written; defaults must add nothing to it.
    kept = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in kept:
        kept["properties"] = {
            name: _without_defaults(child) for name, child in kept["properties"].items()
        }
    if "items" in kept:
        kept["items"] = _without_defaults(kept["items"])
    return kept


def _column(name: str, path: str, kind: str = "string", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "jsonPath": path, **more}


_REASON = '.status.conditions[?(@.type=="Reconciling")].reason'
"""All conditions have the reason of what goes on now; this one always exists."""


def custom_resource_definition() -> dict[str, Any]:
    """The manifest of the CRD of studies."""
    version = {
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            _column("State", ".status.state"),
            _column("Reason", _REASON),
            _column("Trials", ".status.trials.summary"),
            _column("Best", ".status.bestShown"),
            _column("Workers", ".status.workers"),
            _column("Age", ".metadata.creationTimestamp", "date"),
            _column("Metric", ".spec.objective.metric", priority=1),
            _column("Algorithm", ".spec.search.algorithm", priority=1),
            _column("Chosen", ".status.search.algorithm", priority=1),
            _column("Class", ".status.className", priority=1),
            _column("GPU-Seconds", ".status.gpuSeconds", "number", priority=1),
            _column("Message", ".status.message", priority=1),
        ],
        "schema": {"openAPIV3Schema": openapi_schema()},
    }
    return _definition(KIND, PLURAL, ["fts", "study"], "Namespaced", version)


def class_definition() -> dict[str, Any]:
    """The manifest of the CRD of classes."""
    version = {
        "additionalPrinterColumns": [
            _column("Default", ".spec.default", "boolean"),
            _column("Workers", ".spec.limits.workers", "integer"),
            _column("GPUs", ".spec.limits.gpus", "integer"),
            _column("Pod-Template", ".spec.allowed.podTemplate"),
            _column("Age", ".metadata.creationTimestamp", "date"),
        ],
        "schema": {"openAPIV3Schema": _object_schema(FineTuneClass)},
    }
    return _definition(CLASS_KIND, CLASS_PLURAL, ["ftc"], "Cluster", version)


def _definition(
    kind: str, plural: str, short: list[str], scope: str, version: dict[str, Any]
) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": short,
            },
            "versions": [{"name": VERSION, "served": True, "storage": True, **version}],
        },
    }
