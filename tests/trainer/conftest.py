"""Real text, a real pretrained encoder, and studies of them, made once for all tests of the trainer."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported

from finetune_api.study import StudySpec
from finetune_trainer.tracking import clients

clients.settle()  # as the tracker's process does before it imports them

ROOT = Path(__file__).parents[2]

MakeSpec = Callable[..., StudySpec]


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and the model of the examples, as a user would prepare it."""
    folder = tmp_path_factory.mktemp("examples")
    command = [sys.executable, str(ROOT / "examples" / "prepare.py"), "--into", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def shallow(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two of the pretrained encoder's six layers: for tests in which weights do not matter."""
    from transformers import AutoModel  # slow, and few tests need it

    folder = tmp_path_factory.mktemp("shallow") / "MiniLM-2"
    whole = examples / "models" / "all-MiniLM-L6-v2"
    shutil.copytree(whole, folder)
    model = AutoModel.from_pretrained(whole)
    model.encoder.layer = model.encoder.layer[:2]
    model.config.num_hidden_layers = 2
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_spec(examples: Path) -> MakeSpec:
    """A study of the example data: `make_spec(dataset={...}, objective={...}, task=...)`."""

    def make(**changes: Any) -> StudySpec:
        document: dict[str, Any] = {
            "task": "SingleLabel",
            "model": {"name": str(examples / "models" / "all-MiniLM-L6-v2")},
            "objective": {"metric": "f1_macro", "additionalMetrics": ["accuracy"]},
            "searchSpaces": [{"learningRate": {"values": [1e-4]}}],
            "search": {"algorithm": "Grid"},
        }
        dataset = {
            "files": {"train": str(examples / "data" / "library.csv")},
            "textColumns": ["text"],
            "labelColumn": "library",
        }
        document["dataset"] = {**dataset, **changes.pop("dataset", {})}
        return StudySpec.model_validate({**document, **changes})

    return make


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The usual one, or for tests marked `in_memory` one in memory: a disk is much slower over records."""
    memory = Path("/dev/shm")
    wanted = request.node.get_closest_marker("in_memory") is not None
    if not wanted or not memory.is_dir() or shutil.disk_usage(memory).free < 1 << 30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="finetune-tests-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: sums of several come out in other orders."""
    import torch  # slow, and few tests need it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
