"""What is generated from the models."""

import json
from pathlib import Path
from typing import Any, assert_type

import pytest

from finetune_api.crd import custom_resource_definition
from finetune_api.fixed_and_searched import FixedHyperparameters, SearchSpace
from finetune_api.generate import stale
from finetune_api.hyperparameters import (
    Decides,
    Hyperparameters,
    json_name,
    resolve,
)
from finetune_api.manifest import parse_study
from finetune_api.spaces import FloatDomain, IntegerDomain
from tests.api.wrong_manifests import VALID

ROOT = Path(__file__).parents[2]


def test_generated_files_are_up_to_date() -> None:
    assert stale(ROOT) == []


def test_crd_fits_the_annotation_of_a_client_side_apply() -> None:
    """All annotations of an object together may have 262,144 bytes."""
    assert len(json.dumps(custom_resource_definition())) < 240_000


def test_every_hyperparameter_can_be_fixed_and_searched() -> None:
    schema = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    spec = schema["properties"]["spec"]["properties"]
    names = {json_name(name) for name in Hyperparameters.model_fields}
    assert set(spec["hyperparameters"]["properties"]) == names
    assert set(spec["searchSpaces"]["items"]["properties"]) == names
    assert all(child["description"] for child in spec["hyperparameters"]["properties"].values())


def test_every_list_of_the_schema_has_a_type_and_a_bound() -> None:
    def walk(node: dict[str, Any], path: str) -> None:
        if node.get("type") == "array":
            assert "x-kubernetes-list-type" in node, path
            assert "maxItems" in node, path
        for key in ("properties",):
            for name, child in (node.get(key) or {}).items():
                walk(child, f"{path}.{name}")
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                walk(node[key], f"{path}[]")

    walk(custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "")


def test_params_override_fixed_values_override_defaults() -> None:
    fixed = FixedHyperparameters.model_validate({"batchSize": 8, "learningRate": 1e-4})
    config = resolve(fixed, {"learningRate": 1e-3})
    assert (config.learning_rate, config.batch_size, config.epochs) == (1e-3, 8, 3)


def test_type_checkers_know_what_a_study_fixes_and_searches() -> None:
    """`make check` fails where the stub says another type; the fields that it has are those of the models."""
    fixed = FixedHyperparameters(batch_size=8, optimizer="SGD")
    assert_type(fixed.batch_size, int | None)
    assert fixed.optimizer == "SGD"
    space = SearchSpace.of(learningRate={"min": 1e-5, "max": 1e-3}, optimizer={"values": ["SGD"]})
    assert_type(space.learning_rate, FloatDomain | None)
    spec = parse_study(VALID).spec
    assert_type(spec.search_spaces[0].epochs, IntegerDomain | None)
    for model in (FixedHyperparameters, SearchSpace):
        assert list(model.model_fields) == list(Hyperparameters.model_fields)


def test_steps_of_a_domain_are_exact_decimals() -> None:
    space = SearchSpace.of(
        weightDecay={"min": 0, "max": 0.1, "step": 0.02}, epochs={"min": 2, "max": 5}
    )
    assert tuple(space.domains()["weightDecay"].finite_values() or ()) == (
        0.0,
        0.02,
        0.04,
        0.06,
        0.08,
        0.1,
    )
    assert tuple(space.domains()["epochs"].finite_values() or ()) == (2, 3, 4, 5)


@pytest.mark.parametrize("name", Hyperparameters.model_fields)
def test_a_hyperparameter_says_what_depends_on_it(name: str) -> None:
    metadata = Hyperparameters.model_fields[name].metadata
    assert sum(isinstance(said, Decides) for said in metadata) == 1
