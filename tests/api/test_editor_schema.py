"""The schemas that editors read accept what `finetune plan` accepts, and mark what is wrong by shape."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from finetune_api.editor_schema import class_schema, study_schema
from finetune_api.manifest import ManifestError, load_yaml, parse_study
from finetune_api.study import FineTuneStudy
from tests.api.wrong_manifests import VALID, WRONG, Wrong, changed
from tests.cluster.random_manifests import random_manifest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
STUDY = study_schema()
VALIDATOR = Draft202012Validator(STUDY)

_OF_CONTENT = {"rule", "credentials"}
"""What pydantic calls errors that no shape can have: of several fields, of secrets in an address."""


def is_wrong_by_shape(manifest: dict[str, Any]) -> bool:
    """Whether one field alone is not of its type, or out of its bounds."""
    try:
        FineTuneStudy.model_validate(manifest, by_alias=True, by_name=False)
    except ValidationError as error:
        return not {each["type"] for each in error.errors()} <= _OF_CONTENT
    return False


@pytest.mark.parametrize("schema", [STUDY, class_schema()], ids=["study", "class"])
def test_it_is_a_schema_of_its_draft(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_names_its_schema_and_fits_it(path: Path) -> None:
    text = path.read_text()
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named is not None
    schema = json.loads((path.parent / named[1]).read_text())
    document = load_yaml(text)
    assert schema["title"] == document["kind"]
    assert not [*Draft202012Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_manifest_is_marked_if_its_shape_is_wrong(wrong: Wrong) -> None:
    manifest = wrong.manifest()
    named = (
        wrong.changes.get("metadata.name") is not None
    )  # a rule, whose pattern a schema can have
    assert VALIDATOR.is_valid(manifest) == (not is_wrong_by_shape(manifest) and not named)


def test_wrong_manifests_are_of_both_kinds() -> None:
    shapes = [is_wrong_by_shape(wrong.manifest()) for wrong in WRONG]
    assert 10 < sum(shapes) < len(shapes) - 10


def test_random_studies_are_marked_as_their_shape_is() -> None:
    marked = 0
    for seed in range(120):
        manifest = random_manifest(seed)
        try:
            parse_study(manifest)
        except ManifestError:
            if is_wrong_by_shape(manifest):
                marked += not VALIDATOR.is_valid(manifest)
        else:
            assert VALIDATOR.is_valid(manifest) or _has_null(manifest), seed
    assert marked > 10


def _has_null(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_null, value.values() if isinstance(value, dict) else value))
    return value is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"spec.budget.maxTrials": "many"}, "budget"),
        ({"spec.datset": {}}, "datset"),
        ({"spec.searchSpaces.0.learningRate.min": -1}, "learningRate"),
        ({"spec.cluster": {"resourcesPerWorker": {"memory": "16 GB"}}}, "memory"),
    ],
)
def test_a_mistake_is_marked_where_it_is(changes: dict[str, Any], field: str) -> None:
    (error,) = VALIDATOR.iter_errors(changed(VALID, changes))
    assert field in [*error.absolute_path] or field in error.message


def test_every_field_of_a_study_says_what_it_is() -> None:
    """Or its object does, which an editor shows as well."""
    definitions = STUDY["$defs"]
    for name, definition in definitions.items():
        for field, node in definition.get("properties", {}).items():
            inner = node.get("items", node).get("$ref", "").rpartition("/")[2]
            assert "description" in {**definitions.get(inner, {}), **node}, (name, field)
