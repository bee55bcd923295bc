"""What `finetune explain` says of fields, and of what is none."""

import pytest

from finetune_api.explain import explain, plain
from finetune_api.fields import sections
from finetune_api.hyperparameters import JSON_NAMES
from finetune_api.manifest import ManifestError

PATHS = [row.path for section in sections() for row in section.rows]


@pytest.mark.parametrize("path", PATHS)
def test_every_field_of_the_reference_can_be_explained(path: str) -> None:
    found = explain(path)
    assert found.path == path
    assert found.type
    assert len(found.meaning) > 3
    assert "](#" not in f"{found.type}{found.meaning}{found.rules}"


@pytest.mark.parametrize("name", JSON_NAMES)
def test_the_name_of_a_hyperparameter_is_enough(name: str) -> None:
    found = explain(name)
    assert found.path == f"spec.hyperparameters.{name}"
    assert found.default
    domain = {row.path.rpartition(".")[2] for row in found.fields}
    assert {"values", "when"} <= domain


@pytest.mark.parametrize(
    "path",
    [
        "spec.dataset.split",
        "dataset.split",
        "fts.spec.dataset.split",
        "finetunestudy.spec.dataset.split",
    ],
)
def test_what_goes_without_saying_may_be_left_out(path: str) -> None:
    found = explain(path)
    assert found.path == "spec.dataset.split"
    names = [row.path.rpartition(".")[2] for row in found.fields]
    assert names == ["validation", "test", "stratify", "seed"]
    assert "How rows are set aside" in found.meaning
    assert any("below 1" in rule for rule in found.rules)


def test_nothing_is_the_spec() -> None:
    assert explain("").path == "spec"


def test_fields_of_an_object_that_is_there_twice_have_the_path_that_was_asked_for() -> None:
    found = explain("spec.dataset.cleaning.duplicateEncoder")
    assert [row.path for row in found.fields] == [
        "spec.dataset.cleaning.duplicateEncoder.name",
        "spec.dataset.cleaning.duplicateEncoder.revision",
    ]


def test_bounds_defaults_and_words_are_told() -> None:
    assert explain("budget.maxTrials").type == "integer, 1 to 10,000"
    assert explain("dataset.split.test").default == "0.1"
    assert explain("spec.task").default == "required"
    assert explain("search.scheduler.type").type.startswith("Auto, None, ASHA")
    assert "f1_macro" in explain("objective.metric").type
    assert explain("searchSpaces[0].epochs.min").type == "integer, 1 to 1,000"


def test_a_laptop_ignores_the_storage_and_what_is_below() -> None:
    assert "runs/<name>" in explain("storage").on_a_laptop
    assert explain("storage.uri").on_a_laptop == "ignored on a laptop"
    assert explain("dataset").on_a_laptop == ""


def test_a_pattern_stays_as_it_is() -> None:
    assert explain("className").type.endswith("matching ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    assert plain("a [link](#x) and `[a](b)`") == "a link and [a](b)"


@pytest.mark.parametrize(
    ("path", "field", "says"),
    [
        ("dataset.splt", "spec.dataset.splt", "did you mean split?"),
        ("dataset.splt", "spec.dataset.splt", "the fields are hub, files, textColumns"),
        ("splt", "spec.splt", "did you mean spec.dataset.split?"),
        ("groupColumn", "spec.groupColumn", "spec.dataset.groupColumn"),
        ("lr", "spec.lr", "spec.hyperparameters.learningRate"),
        ("learningrte", "spec.learningrte", "spec.hyperparameters.learningRate"),
        ("task.of", "spec.task.of", "spec.task has none below it"),
        ("metadata.generation", "metadata.generation", "the fields are name, namespace, labels"),
        ("zzz", "spec.zzz", "the fields are className, task"),
    ],
)
def test_a_wrong_path_names_what_there_is(path: str, field: str, says: str) -> None:
    with pytest.raises(ManifestError) as error:
        explain(path)
    (problem,) = error.value.problems
    assert problem.field == field
    assert says in problem.message
