"""What is wrong with a manifest is said with what was probably meant, and where it stands."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest import ManifestError, dump_yaml, parse_study, read_study
from tests.api.wrong_manifests import GONE, VALID, changed

NAMES = "lower-case letters, digits and hyphens, begin with a letter, at most 40 characters"
CPU = "spec.cluster.resourcesPerWorker.cpu"
MEMORY = "spec.cluster.resourcesPerWorker.memory"
MOMENTUM = "spec.searchSpaces.0.momentum"


def told(changes: dict[str, Any]) -> str:
    with pytest.raises(ManifestError) as error:
        parse_study(changed(VALID, changes))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spec.hyperparameters": {"batch_size": 8}}, "batch_size: must be a known field; did you mean batchSize?"),
        ({"spec.hyperparameters": {"epoch": 8}}, "did you mean epochs?"),
        ({"spec.hyperparameters": {"per_device_train_batch_size": 8}}, "here that is spec.hyperparameters.batchSize"),
        ({"spec.hyperparameters": {"num_train_epochs": 8}}, "here that is spec.hyperparameters.epochs"),
        ({"spec.budget.n_trials": 8}, "spec.budget.n_trials: must be a known field; here that is spec.budget.maxTrials"),
        ({"spec.epochs": 3}, "here that is spec.hyperparameters.epochs"),
        ({"spec.parallelTrialCount": 3}, "here that is spec.budget.maxParallelTrials"),
        ({"spec.dataset.textcolumns": ["a"]}, "did you mean textColumns?"),
        ({"spec.model.qqq": 1}, "the fields are name, revision"),
        ({"spec.model": "bert-base-uncased"}, "(got 'bert-base-uncased'), such as {name: bert-base-uncased}"),
        ({"spec.budget": 20}, ", such as {maxTrials: 20}"),
        ({"spec.searchSpaces": [{"batchSize": [8, 16]}]}, ", such as {values: [8, 16]}"),
        ({"spec.dataset.labelColumn": True}, "YAML reads y, n, yes, no, on and off as true or false: write it in quotes"),
        ({"spec.dataset.labelColumn": 1}, "must be a string (got 1); write it in quotes"),
        ({"spec.budget.maxTrials": "10"}, "write it as a number, without quotes"),
        ({"spec.dataset.textColumns": "text"}, "write it as a list: [text]"),
        ({"spec.objective.goal": "maximize"}, "did you mean Maximize?"),
        ({"spec.objective.metric": "F1 macro"}, "must be a metric of SingleLabel: accuracy, "),
        ({"spec.objective.metric": "F1 macro"}, "(got 'F1 macro'; did you mean f1_macro?)"),
        ({"spec.dataset.labelColumn": "text"}, "labelColumn must not be one of textColumns"),
        ({"apiVersion": "v1"}, "apiVersion: must be finetune.dev/v1alpha1 (got 'v1')"),
        ({"kind": "Study"}, "kind: must be FineTuneStudy (got 'Study'"),
        ({"metadata.name": "My_Study"}, f"metadata.name: must be {NAMES} (got 'My_Study')"),
        ({"metadata.name": "réglage"}, f"metadata.name: must be {NAMES} (got 'réglage')"),
        ({"metadata.name": 7}, f"metadata.name: must be {NAMES} (got 7)"),
        ({"metadata.name": True}, f"metadata.name: must be {NAMES} (got True)"),
        ({"metadata.name": "ends-"}, f"metadata.name: must be {NAMES}, not end with a hyphen (got 'ends-')"),
        ({"metadata.name": GONE}, "metadata.name: must be given, such as name: my-study"),
        ({"spec.objective": GONE}, "spec.objective: must be given, such as objective: {metric: f1_macro}"),
        ({"spec.task": "Regression", "spec.objective": {}}, "must be given, such as metric: rmse"),
        ({"spec.searchSpaces": GONE}, "such as searchSpaces: [{learningRate: {min: 1e-5, max: 1e-3, scale: Log}}]"),
        ({"spec.dataset.textColumns": GONE}, "spec.dataset.textColumns: must be given, such as textColumns: [text]"),
        ({"spec.hyperparameters": {"weightDecay": "0.1 to 0.2"}}, "a range belongs in spec.searchSpaces, as {min: 0.1, max: 0.2}"),
        ({"spec.hyperparameters": {"epochs": "2-4"}}, "a range belongs in spec.searchSpaces, as {min: 2, max: 4}"),
        ({"spec.hyperparameters": {"epochs": [2, 4]}}, "values to search belong in spec.searchSpaces"),
        ({"spec.hyperparameters": {"pooling": ["Cls", "Mean"]}}, "values to search belong in spec.searchSpaces"),
        ({"spec.hyperparameters": {"maxLength": {"min": 8, "max": 9}}}, "values to search belong in spec.searchSpaces"),
        ({CPU: 0.25}, '; write it in quotes: "0.25", or 250m'),
        ({CPU: 1.5}, '; write it in quotes: "1.5", or 1500m'),
        ({CPU: 0.00025}, '; write it in quotes: "0.00025"'),
        ({MEMORY: "32GB"}, "(got '32GB'); did you mean 32G?"),
        ({MEMORY: "32 GiB"}, "did you mean 32Gi?"),
        ({MEMORY: "500 kb"}, "did you mean 500k?"),
        ({f"{MOMENTUM}.when": {"optimizer": ["sgd"]}}, "(got 'sgd'; did you mean SGD?)"),
        ({f"{MOMENTUM}.when": {"Optimizer": ["SGD"]}}, "did you mean optimizer?"),
        ({f"{MOMENTUM}.when": {"batchSize": 16}}, "momentum.when.batchSize: when may only name hyperparameters whose"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_was_meant_is_said(changes: dict[str, Any], says: str) -> None:
    assert says in told(changes)


def test_metrics_of_other_tasks_are_not_offered() -> None:
    assert "rmse" not in told({"spec.objective.metric": "f1"})
    text = told({"spec.task": "Regression", "spec.objective.metric": "mean_squared_error"})
    assert "must be a metric of Regression: mse, rmse, mae, r2, pearson, spearman, loss" in text


def test_a_file_says_in_which_lines(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    changes = {"spec.budget.n_trials": 8, "spec.searchSpaces.0.batchSize.values": [8, "x"]}
    path.write_text(dump_yaml(changed(VALID, changes)))
    lines = path.read_text().splitlines()
    with pytest.raises(ManifestError) as error:
        read_study(path)
    for problem in error.value.problems:
        assert problem.line is not None
        assert str(problem).endswith(f" (line {problem.line})")
        name = problem.field.rpartition(".")[2]
        assert (name if "[" not in name else "x") in lines[problem.line - 1]
    missing = changed(VALID, {"spec.objective": GONE})
    path.write_text(dump_yaml(missing))
    line = path.read_text().splitlines().index("spec:") + 1
    with pytest.raises(
        ManifestError, match=rf"^spec\.objective: must be given, .* \(line {line}\)$"
    ):
        read_study(path)


def test_numbers_that_a_when_cannot_name_are_told_once(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(changed(VALID, {f"{MOMENTUM}.when": {"batchSize": [16, 32]}})))
    with pytest.raises(ManifestError) as error:
        read_study(path)
    (problem,) = error.value.problems
    assert problem.field == "spec.searchSpaces[0].momentum.when.batchSize"
    assert problem.line == path.read_text().splitlines().index("        batchSize:") + 1


def test_every_hyperparameter_that_a_grid_cannot_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(changed(VALID, {"spec.search.algorithm": "Grid"})))
    with pytest.raises(ManifestError) as error:
        read_study(path)
    named = [problem.field.rpartition(".")[2] for problem in error.value.problems]
    assert named == ["learningRate", "momentum"]
    assert len({problem.line for problem in error.value.problems}) == 2


@pytest.mark.parametrize(
    ("encoding", "says"),
    [("utf-16", "it is UTF-16"), ("latin-1", "line 2 has other bytes")],
)
def test_a_manifest_in_another_encoding_is_refused(
    encoding: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(f"# a study\n# für\n{dump_yaml(VALID)}".encode(encoding))
    with pytest.raises(ManifestError, match=rf"must be UTF-8 text \({says}\)"):
        read_study(path)
    path.write_bytes(dump_yaml(VALID).encode("utf-8-sig"))
    assert read_study(path).spec == parse_study(VALID).spec
