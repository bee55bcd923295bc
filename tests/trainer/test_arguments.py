"""What `Study` is given is checked at once, with the argument, the value and what would be right; no Ray starts."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_trainer import Study, cli
from finetune_trainer.errors import SpecError
from finetune_trainer.records import events as ev
from finetune_trainer.runtime.local_sink import FolderInUse, LocalSink
from finetune_trainer.search.items import TrainItem
from finetune_trainer.worker.function_worker import Functions, FunctionWorker

X = {"x": {"min": 0.0, "max": 1.0}}
Y = {"min": 0.1, "max": 1.0}
KIND = {"kind": {"values": ["a", "b"]}}


def study(folder: Path, **changes: Any) -> Study:
    settings = {"spaces": X, "budget": {"maxTrials": 2}, **changes}
    return Study(lambda config, resource, checkpoint: 0.5, into=folder, **settings)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 0}, r"^epochs: must be a whole number of at least 1 \(got 0\)"),
        ({"epochs": "3"}, r"^epochs: .*got '3'"),
        ({"epochs": 2.5}, r"^epochs: .*got 2\.5"),
        ({"epochs": True}, r"^epochs: .*got True"),
        ({"folds": 0}, r"^folds: .*got 0"),
        ({"repeats": -1}, r"^repeats: .*got -1"),
        ({"rows": 0}, r"^rows: .*got 0"),
        ({"slots": 0}, r"^slots: .*got 0"),
        ({"gpus": -0.5}, r"^gpus: must be a finite number of at least 0 \(got -0\.5"),
        ({"target": "0.9"}, r"^target: must be a finite number \(got '0\.9'"),
        ({"target": float("nan")}, r"^target: .*got nan"),
        ({"metric": ""}, r"^metric: must be a name \(got ''"),
        ({"metric": None}, r"^metric: .*got None"),
        ({"goal": "max"}, r"^goal: must be one of Maximize, Minimize \(got 'max'"),
        ({"goal": "maximize"}, r"^goal: "),
        ({"points": {"x": 0.5}}, r"^points: must be a list of configurations"),
        ({"points": [{"x": "0.25"}]}, r"^points\[0\]\.x: must be a number \(got '0\.25'\)$"),
        ({"points": [{"x": True}]}, r"^points\[0\]\.x: must be a number \(got True\)$"),
        ({"points": [{}, {"x": None}]}, r"^points\[1\]\.x: must be a number, text, .*got None"),
        ({"points": [{"x": [0.25]}]}, r"^points\[0\]\.x: must be a number, text, .*got \[0\.25\]"),
        ({"points": [{}, "x"]}, r"^points\[1\]: must be a mapping of names to values \(got 'x'\)$"),
        ({"points": [None]}, r"^points\[0\]: must be a mapping .*got None"),
        ({"points": [{7: 0.25}]}, r"^points\[0\]: must have names that are text \(got 7\)$"),
        ({"points": [{"y": 1}]}, r"^points\[0\]\.y: must be searched \(the space has x\)$"),
        ({"points": [{"x": 2}]}, r"^points\[0\]\.x: must be in its domain .*got 2"),
        ({"spaces": KIND, "points": [{"kind": 1}]}, r"^points\[0\]\.kind: must be in its domain"),
        (
            {"points": [{"x": 0.25}], "search": {"constraints": ["x > 0.5"]}},
            r"^points\[0\]: must fulfil search\.constraints \(got ",
        ),
        ({"search": {"constraints": ["y > 0.5"]}}, r"^search\.constraints\[0\]: must name only"),
        ({"search": {"algorithm": "Grid"}}, r"^spaces\[0\]\.x: must have values or step with"),
        ({"points": [{"x": 2**70}]}, r"^points\[0\]\.x: must be a 64-bit integer"),
        (
            {"spaces": {"x": {"values": [1, 2**63]}}},
            r"^spaces\.x\.values\[1\]: .*got 9223372036854775808",
        ),
        (
            {"spaces": {"x": {"values": []}}},
            r"^spaces\[0\]\.x\.values: must have at least one value",
        ),
        (
            {"spaces": {**KIND, "y": {**Y, "when": {"kind": ["c"]}}}},
            r"^spaces\[0\]\.y\.when: .*'c'",
        ),
        ({"spaces": {**KIND, "y": {**Y, "when": {"sort": ["a"]}}}}, r"^spaces\[0\]\.y\.when: "),
        ({"spaces": {**X, "y": {**Y, "when": {"x": ["0.5"]}}}}, r"^spaces\[0\]\.y\.when: "),
        ({"budget": {"maxTrials": 0}}, r"^budget\.maxTrials: must be at least 1 \(got 0"),
        ({"budget": {"trials": 3}}, r"^budget\.trials: must be a known field"),
        ({"search": {"algorithm": "Best"}}, r"^search\.algorithm: must be one of "),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=says):
        study(tmp_path, **changes)


@pytest.mark.parametrize(
    ("space", "same"),
    [
        ({"values": np.logspace(-2, 0, 3)}, {"values": [0.01, 0.1, 1.0]}),
        ({"values": list(np.arange(3))}, {"values": [0, 1, 2]}),
        ({"values": np.array(["a", "b"])}, {"values": ["a", "b"]}),
        ({"min": np.float64(0.1), "max": np.float32(1)}, {"min": 0.1, "max": 1.0}),
        ({"min": np.int64(1), "max": np.int8(9)}, {"min": 1, "max": 9}),
    ],
    ids=str,
)
def test_numpys_values_mean_what_pythons_do(
    space: dict[str, Any], same: dict[str, Any], tmp_path: Path
) -> None:
    ours = study(tmp_path, spaces={"x": space}, epochs=np.int64(3), target=np.float64(0.5))
    theirs = study(tmp_path, spaces={"x": same}, epochs=3, target=0.5)
    assert ours._problem == theirs._problem
    assert ours._parts == theirs._parts


class Listens:
    """Hears nothing, and never asks for a pause."""

    slot = "slot"

    def should_pause(self) -> bool:
        return False

    def say(self, *events: ev.Event) -> None:
        """Nothing."""

    def waits(self, message: str) -> None:
        """Nothing."""

    def progress(self, message: str) -> None:
        """Nothing."""


@pytest.mark.parametrize("code", [1, "no such file", None])
def test_a_function_that_exits_fails_its_trial_and_not_its_process(
    code: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def leaves(*_: Any) -> float:
        raise SystemExit(code)

    functions = Functions(leaves, None, str(tmp_path), "score", 1, None, 0.0)
    item = TrainItem(trial=0, params={"x": 1}, to_epoch=1.0, checkpoint=None, seed=0)
    with caplog.at_level(logging.CRITICAL):
        (event,) = FunctionWorker(functions).work(item, Listens())
    assert isinstance(event, ev.Failed)
    assert event.time <= time.time()
    assert (event.failure_class, event.message) == ("UserError", f"SystemExit: {code}")


def test_a_process_that_ray_ends_is_no_failure_of_its_trial(tmp_path: Path) -> None:
    def told(*_: Any) -> float:
        error = SystemExit(1)
        error.ray_terminate_msg = "The process receives a SIGTERM."  # type: ignore[attr-defined]  # as Ray does
        raise error

    functions = Functions(told, None, str(tmp_path), "score", 1, None, 0.0)
    item = TrainItem(trial=0, params={"x": 1}, to_epoch=1.0, checkpoint=None, seed=0)
    with pytest.raises(SystemExit):
        FunctionWorker(functions).work(item, Listens())


@pytest.mark.parametrize("nothing", [float("nan"), float("inf"), np.float32("nan")])
def test_a_metric_that_is_no_number_is_a_missing_one(nothing: Any, tmp_path: Path) -> None:
    item = TrainItem(trial=0, params={"x": 1}, to_epoch=1.0, checkpoint=None, seed=0)

    def told(**metrics: Any) -> list[ev.Event]:
        functions = Functions(lambda *_: metrics, None, str(tmp_path), "score", 1, None, 0.0)
        return FunctionWorker(functions).work(item, Listens())

    done, _ = told(score=0.5, other=nothing, third=1)
    assert isinstance(done, ev.EpochDone)
    assert done.metrics == {"score": 0.5, "third": 1.0}
    (failed,) = told(score=nothing)
    assert isinstance(failed, ev.Failed)
    assert failed.failure_class == "Diverged"


@pytest.mark.parametrize("option", ["--into", "into"])
def test_who_uses_a_folder_is_told_in_words(option: str, tmp_path: Path) -> None:
    first = LocalSink(tmp_path)
    first.claim_term()
    with pytest.raises(FolderInUse) as error:
        LocalSink(tmp_path, option).claim_term()
    told = str(error.value)
    assert told.startswith(f"{tmp_path} is used by process {os.getpid()} on ")
    assert told.endswith(f": end it, or choose another folder with {option}")
    first.release()


def test_the_command_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("finetune 0.")
