"""A batch that the memory does not hold is computed in parts: the same step, only slower."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_trainer.data import PreparedData, prepare
from tests.trainer.conftest import MakeSpec

TRAIN = """
import json, pickle, resource, sys
import torch
from pathlib import Path
from finetune_api.hyperparameters import Hyperparameters
from finetune_api.objective import Objective
from finetune_trainer.errors import TrialFailure
from finetune_trainer.training import Pretrained, TrialRun
torch.set_num_threads(1)
data = pickle.loads(Path(sys.argv[1]).read_bytes())
config = Hyperparameters(
    epochs=1, batch_size=256, max_length=128, learning_rate=1e-3, warmup_ratio=0.0,
    hidden_dropout=0.0, attention_dropout=0.0, classifier_dropout=0.0,
)
pretrained = Pretrained.load(data.model, data.task, data.label_names)
run = TrialRun(pretrained, data, config, 5, Objective(metric="loss"))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
room = int(sys.argv[2])
if room:
    resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20), resource.RLIM_INFINITY))
try:
    result = run.train_to(1)
    print(json.dumps({"split": result.split, "loss": result.train_loss, "after": result.metrics["loss"]}))
except TrialFailure as failure:
    print(json.dumps({"failure": failure.failure_class, "message": failure.message}))
"""


@pytest.fixture(scope="module")
def rows(make_spec: MakeSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 long rows to train on, as one batch of them needs gigabytes."""
    data: PreparedData = prepare(make_spec(), Path("/"))
    every = np.concatenate([data.train, data.validation, data.test])
    long = every[np.argsort(-data.lengths(every, 128), kind="stable")][:256]
    data = replace(data, train=np.sort(long), validation=data.validation[:16])
    path = tmp_path_factory.mktemp("rows") / "data"
    path.write_bytes(pickle.dumps(replace(data, fingerprint=data.digest())))
    return path


def train(rows: Path, room: int) -> dict[str, Any]:
    """What one epoch of one step shows in a process with `room` MiB more than it begins with; 0 is no limit."""
    command = [sys.executable, "-c", TRAIN, str(rows), str(room)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_split_with_the_same_outcome(rows: Path) -> None:
    whole, split = train(rows, 0), train(rows, 1500)
    assert whole["split"] == 1
    assert split["split"] > 1
    assert split["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert split["after"] == pytest.approx(whole["after"], rel=1e-3)


# It depends on the room who notices: PyTorch or oneDNN, forward or backward.
@pytest.mark.slow
@pytest.mark.parametrize("room", [20, 60, 80])
def test_what_does_not_fit_even_row_by_row_is_out_of_memory(rows: Path, room: int) -> None:
    found = train(rows, room)
    assert found["failure"] == "OutOfMemory"
    assert "batchSize 256, maxLength 128" in found["message"]
