"""What `parse_study` accepts, refuses and says."""

from pathlib import Path

import pytest

from finetune_api.manifest import ManifestError, dump_yaml, load_yaml, parse_study, read_study
from tests.api.wrong_manifests import VALID, WRONG, Wrong, changed


def test_valid_study_gets_its_defaults() -> None:
    study = parse_study(VALID)
    assert study.spec.search.scheduler.type == "None"
    assert study.spec.budget.max_failed_trials == 3
    assert study.spec.objective.direction == "Maximize"
    assert study.status.observed_generation == -1


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_wrong_manifest_is_refused_at_its_field(wrong: Wrong) -> None:
    with pytest.raises(ManifestError) as error:
        parse_study(wrong.manifest())
    (problem,) = error.value.problems
    assert problem.field == wrong.field
    assert wrong.reason in problem.message


def test_every_problem_of_a_manifest_is_told_at_once() -> None:
    manifest = changed(VALID, {"spec.budget.maxTrials": 0, "spec.task": "Sorting"})
    with pytest.raises(ManifestError) as error:
        parse_study(manifest)
    assert [problem.field for problem in error.value.problems] == [
        "spec.task",
        "spec.budget.maxTrials",
    ]


def test_null_is_as_good_as_absent() -> None:
    assert parse_study(changed(VALID, {"spec.storage": None})) == parse_study(VALID)


def test_snake_case_is_no_field() -> None:
    with pytest.raises(ManifestError, match=r"spec\.search_spaces: must be a known field"):
        parse_study(changed(VALID, {"spec.search_spaces": []}))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E+2", 100),
        ("16.0", 16),
        ("1_000", 1000),
        ("010", 8),
        ("0o10", 8),
        ("0b11", 3),
        ("-0x1F", -31),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("y", True),
        ("Off", False),
        ("yEs", "yEs"),
        ("~", None),
        ("", None),
        ("'y'", "y"),
        ("1.5.2", "1.5.2"),
        ("None", "None"),
    ],
)
def test_yaml_scalars_are_read_as_kubectl_reads_them(text: str, value: object) -> None:
    read = load_yaml(f"key: {text}")["key"]
    assert read == value
    assert type(read) is type(value)
    assert load_yaml(dump_yaml({"key": value})) == {"key": value}


@pytest.mark.parametrize("text", ["a: 1\na: 2", "a: .nan", "a: .inf", "a: [", "--- 1\n--- 2"])
def test_yaml_that_is_no_single_document_of_json_values_is_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="must be one YAML document"):
        load_yaml(text)


def test_a_study_file_reads_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(VALID))
    assert read_study(path) == parse_study(VALID)
