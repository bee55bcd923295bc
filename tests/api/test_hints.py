"""What is wrong with a manifest is said with what was probably meant, and where it stands."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest import ManifestError, dump_yaml, parse_study, read_study
from tests.api.wrong_manifests import GONE, VALID, changed


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
    with pytest.raises(ManifestError, match=r"^spec\.objective: must be given$"):
        read_study(path)


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
