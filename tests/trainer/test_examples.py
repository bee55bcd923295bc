"""The examples run to their end, as a newcomer runs them; a module of its own, so that they run beside the driver's."""

import json
import math
from pathlib import Path

import pytest

from finetune_api.manifest import dump_yaml, load_yaml
from tests.trainer.conftest import ROOT
from tests.trainer.test_driver import start


@pytest.mark.slow  # test_reproduce has a whole run among the quick ones
@pytest.mark.parametrize(("name", "metric"), [("parameters", "f1_micro"), ("regression", "rmse")])
def test_example_runs_to_its_end(name: str, metric: str, examples: Path, tmp_path: Path) -> None:
    manifest = load_yaml((ROOT / "examples" / f"{name}.yaml").read_text())
    manifest["spec"]["hyperparameters"]["epochs"] = 1
    path = examples / f"{name}.yaml"
    path.write_text(dump_yaml(manifest))
    run = start(path, tmp_path / "run")
    assert run.wait(timeout=900) == 0, (tmp_path / "log.txt").read_text()
    status = load_yaml((tmp_path / "run" / "study.yaml").read_text())["status"]
    trials = status["trials"]
    assert trials["completed"] == trials["planned"] > 1
    test, constant = status["final"]["testMetrics"][metric], status["final"]["baseline"][metric]
    assert math.isfinite(test)
    assert constant > 0
    data = json.loads((tmp_path / "run" / "results" / "data.json").read_text())
    assert data["steps"][0]["rows_in"] == sum(part["rows"] for part in data["parts"].values())
