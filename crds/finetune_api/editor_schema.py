"""JSON schemas (draft 2020-12) of manifests, for editors: they complete fields, show what they are, and mark mistakes.

They know the shape of a manifest: fields, types, bounds, words. What must hold across fields is checked by
`finetune plan` and by the API server. A null, which kubectl would drop, is marked as well.
"""

import json
from collections.abc import Mapping
from typing import Any

from finetune_api.classes import FineTuneClass
from finetune_api.fields import NOT_DOCUMENTED, WRITTEN_METADATA
from finetune_api.schema import Model
from finetune_api.study import MAX_NAME, NAME_PATTERN, FineTuneStudy

DIALECT = "https://json-schema.org/draft/2020-12/schema"
STUDY_SCHEMA = "finetunestudy.schema.json"
CLASS_SCHEMA = "finetuneclass.schema.json"
"""The names of the files that hold them."""

_STATUS = "Written by the operator, or by `finetune run` into the folder of results."
_CLASS_NAME = "Name of the class."


def editor_line(schema: str) -> str:
    """The first line of a manifest, by which yaml-language-server finds its schema; a path starts at the manifest."""
    return f"# yaml-language-server: $schema={schema}"


def study_schema() -> dict[str, Any]:
    """The schema of a FineTuneStudy."""
    schema = _schema(FineTuneStudy)
    name = schema["properties"]["metadata"]["properties"]["name"]
    name |= {"pattern": NAME_PATTERN, "maxLength": MAX_NAME}
    for path, meaning in NOT_DOCUMENTED.items():
        _field(schema, path).setdefault("description", meaning)
    return schema


def class_schema() -> dict[str, Any]:
    """The schema of a FineTuneClass."""
    schema = _schema(FineTuneClass)
    schema["properties"]["metadata"]["properties"]["name"]["description"] = _CLASS_NAME
    return schema


def as_text(schema: Mapping[str, Any]) -> str:
    """A schema as the text of its file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _schema(kind: type[Model]) -> dict[str, Any]:
    raw = kind.model_json_schema(mode="validation")
    definitions = raw.pop("$defs")
    found = {"$schema": DIALECT, "title": kind.__name__, **_plain(raw)}
    # Kubernetes has more fields in it than people write, and nothing there needs a definition of its own.
    found["properties"]["metadata"] = _metadata(_plain(definitions["ObjectMeta"]))
    if "status" in found["properties"]:
        found["properties"]["status"] = {"type": "object", "description": _STATUS}
    used: dict[str, Any] = {}
    left = _references(found)
    while left:
        name = left.pop()
        if name not in used:
            used[name] = _plain(definitions[name])
            left += _references(used[name])
    return {**found, "$defs": {name: used[name] for name in sorted(used)}}


def _metadata(schema: dict[str, Any]) -> dict[str, Any]:
    shown = {
        name: {"description": NOT_DOCUMENTED[f"metadata.{name}"], **schema["properties"][name]}
        for name in WRITTEN_METADATA
    }
    return {"type": "object", "properties": shown, "required": schema["required"]}


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    """A node of pydantic's schema without what says nothing to an editor: titles, nulls, rules in CEL."""
    options = [option for option in node.get("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        outer = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        if node.get("default") is not None:
            outer["default"] = node["default"]
        return _plain({**options[0], **outer})
    kept = {
        key: value
        for key, value in node.items()
        if key != "title" and not key.startswith("x-kubernetes-")
    }
    if isinstance(kept.get("default"), dict):
        del kept["default"]  # that of its fields, spelt out
    if "description" in kept:
        kept["description"] = " ".join(kept["description"].split())
    if "properties" in kept:
        kept["properties"] = {name: _plain(child) for name, child in kept["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _plain(kept[key])
    return kept


def _field(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """The node of a field (`spec.cluster.nodeSelector`)."""
    node = schema
    for name in path.split("."):
        node = node.get("items", node)
        if "$ref" in node:
            node = schema["$defs"][_references(node)[0]]
        node = node["properties"][name]
    return node


def _references(node: Any) -> list[str]:
    """The definitions that a node names."""
    if isinstance(node, dict):
        own = [str(node["$ref"]).rpartition("/")[2]] if isinstance(node.get("$ref"), str) else []
        return own + [name for child in node.values() for name in _references(child)]
    if isinstance(node, list):
        return [name for child in node for name in _references(child)]
    return []
