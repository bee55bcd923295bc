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
    assert problem.field == (wrong.closer or wrong.field)
    assert (wrong.clearer or wrong.reason) in problem.message


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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: {{ .Values.name }}", "line 2: {{ … }} is a template: render it first, or write it in quotes"),
        ("a: 1\n{% if gpu %}\nb: 2", "line 2: {% … %} is a template: render it first, or write it in quotes"),
        ("a:\n- {{ one }}-{{ two }}", "line 2: {{ … }} is a template: "),
        ("a: [{{ one }}]", "line 1: {{ … }} is a template: "),
        ("# {{ not.me }}\na: '{{ nor.me }}'\nb: [", "line 3: must be one YAML document: "),
        ("a: 1\na: 2", "line 2: must be one YAML document: key 'a' must be given once"),
        ("a: 1\n---\nb: 2", "line 2: must be one YAML document: expected a single document"),
        ("a: 1\nb: \x07", "line 2: must be one YAML document: the character U+0007 must not be used"),
        ("a:\n\tb: 1", "line 2: must be one YAML document: "),
        ('a: "\\U00110000"', "must be one YAML document: "),
    ],
)  # fmt: skip
def test_what_is_not_yaml_is_told_with_its_line(text: str, says: str) -> None:
    with pytest.raises(ManifestError) as error:
        load_yaml(text)
    told = str(error.value)
    assert told.startswith(says)
    assert "<unicode string>" not in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# a study\n# that is still to be written\n", "---\n"]
)
def test_an_empty_file_is_called_empty(text: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=r"^the file is empty$"):
        read_study(path)


@pytest.mark.parametrize("key", ["a]", "b[", "c.", ".", "[", "d[x]", "e.f"])
def test_no_key_is_too_odd_to_be_told(key: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        dump_yaml(changed(VALID, {"metadata": {"name": "x", key: 1}, "spec": {key: 1}}))
    )
    with pytest.raises(ManifestError) as error:
        read_study(path)
    assert any(problem.field == f"spec.{key}" and problem.line for problem in error.value.problems)


def test_a_study_file_reads_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(VALID))
    assert read_study(path) == parse_study(VALID)
