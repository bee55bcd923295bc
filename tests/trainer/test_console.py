"""What a person sees of a study on a terminal."""

import io
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finetune_api.combinations import Params
from finetune_api.conditions import status_of
from finetune_api.manifest import dump_yaml, parse_study
from finetune_api.status import Findings, StudyProgress, TrialCounts, TrialResult
from finetune_api.study import FineTuneStudy
from finetune_trainer.cli import main
from finetune_trainer.console import _screen, duration, trials_table
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.records.log import RecordLog
from finetune_trainer.runtime.local_sink import LocalSink
from finetune_trainer.search.items import AtWork
from finetune_trainer.storage.folder import Storage
from tests.api.wrong_manifests import VALID, changed
from tests.trainer.search_studies import epoch_done
from tests.trainer.test_search_state import Desk

PARAMS = {
    "learningRate": 0.000123, "optimizer": "AdamW", "batchSize": 32, "weightDecay": 0.01,
    "warmupRatio": 0.06, "lrSchedule": "CosineWithRestarts", "hiddenDropout": 0.1, "pooling": "Mean",
}  # fmt: skip


def study(**changes: Any) -> FineTuneStudy:
    return parse_study(changed(VALID, changes))


def trials(count: int) -> list[TrialResult]:
    """Trials that differ in the learning rate and the pooling."""
    found = []
    for number in range(count):
        varied = {"learningRate": 1e-4 * (number + 1), "pooling": ("Mean", "Cls")[number % 2]}
        values = {
            "trial": number,
            "value": 0.9 - number / 100,
            "epoch": 3,
            "params": {**PARAMS, **varied},
        }
        found.append(TrialResult.model_validate(values))
    return found


def shown(width: int, found: list[TrialResult]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False)
    console.print(trials_table(study(), found, "Best trials", width))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_a_table_never_cuts_the_objective_and_names_what_has_no_room(width: int) -> None:
    text = shown(width, trials(5))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    metric = study().spec.objective.metric
    assert metric in lines[2]
    assert all(f"{trial.value:.4f}" in text for trial in trials(5))
    left_out = (
        text.rpartition("not shown: ")[2].replace("\n", " ").split(", ")
        if "not shown" in text
        else []
    )
    there = [name for name in PARAMS if name in lines[2]]
    assert sorted([*there, *(name.strip() for name in left_out)]) == sorted(PARAMS)
    assert {"learningRate", "pooling"} <= set(there), "what varies comes first"
    assert (width < 160) == bool(left_out)


def test_without_trials_there_is_an_empty_table() -> None:
    assert "best epoch" in shown(80, [])


def finished(folder: Path, **changes: Any) -> FineTuneStudy:
    """A study whose result is in `folder / "run"`, its manifest beside that."""
    made = study(**changes)
    (folder / "study.yaml").write_text(dump_yaml(made.to_json()))
    best = trials(2)
    counts = TrialCounts(planned=2, completed=1, paused=1)
    progress = StudyProgress(
        study_uid="local", job_uid="local", term=1, phase="Finished", reason="SearchFinished",
        message="all 2 trials ended", time=datetime.now(UTC),
        findings=Findings(trials=counts, best=best[0], top_trials=best),
    )  # fmt: skip
    status = status_of(made, progress, datetime.now(UTC))
    (folder / "run").mkdir()
    done = made.model_copy(update={"status": status})
    (folder / "run" / "study.yaml").write_text(dump_yaml(done.to_json()))
    return made


def test_a_finished_study_is_told_again_without_starting_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "finetune_trainer.driver", None)  # importing it would raise
    finished(tmp_path)
    run = ["run", str(tmp_path / "study.yaml"), "--into", str(tmp_path / "run")]
    assert main(run) == 0
    told = capsys.readouterr().out
    assert "best parameters (trial 0): learningRate=0.0001" in told
    assert "Finished: all 2 trials ended: 1 trained to the end, 1 paused" in told
    assert "1 paused" in told
    assert "…" not in told, "a file is wider than a terminal"
    assert study().spec.objective.metric in told


def test_telling_it_again_needs_neither_ray_nor_torch(tmp_path: Path) -> None:
    finished(tmp_path)
    program = (
        "import sys; from finetune_trainer.cli import main; code = main(sys.argv[1:]);"
        "assert not {'ray', 'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    run = ["run", str(tmp_path / "study.yaml"), "--into", str(tmp_path / "run")]
    command = [sys.executable, "-c", program, *run]
    told = subprocess.run(command, check=False, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert "best parameters" in told.stdout


def test_a_study_that_was_changed_since_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path)
    other = study(**{"spec.refit": False})
    (tmp_path / "study.yaml").write_text(dump_yaml(other.to_json()))
    monkeypatch.setitem(sys.modules, "finetune_trainer.driver", None)
    with pytest.raises(ImportError):
        main(["run", str(tmp_path / "study.yaml"), "--into", str(tmp_path / "run")])


def ended(folder: Path, trials: int) -> None:
    """The records of a search in `folder / "run"` that has ended after so many trials."""
    events: list[ev.Event] = []
    for trial in range(trials):
        params: Params = {"learningRate": 1e-4 + trial / 1e5}
        metrics = {"accuracy": 0.5, "f1_macro": 0.5}
        events += [
            ev.Proposed(1.0, trial=trial, params=params),
            ev.Started(1.0, trial=trial, slot="worker/slot", to_epoch=9),
            ev.EpochDone(
                2.0,
                trial=trial,
                epoch=9,
                value=0.5,
                metrics=metrics,
                train_loss=0.1,
                seconds=1.0,
                gpu_seconds=0.0,
            ),
            ev.Reached(2.0, trial=trial, finished=True),
        ]
    log, _ = RecordLog.start(Storage.open(str(folder / "run")), 1, 0.0)
    log.append([*events, ev.SearchEnded(3.0, reason="SearchFinished")])


def test_a_limit_that_is_loosened_lets_a_search_that_has_ended_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path, **{"spec.budget": {"maxTrials": 2}})
    ended(tmp_path, 2)
    more = study(**{"spec.budget": {"maxTrials": 3}})
    (tmp_path / "study.yaml").write_text(dump_yaml(more.to_json()))
    monkeypatch.setitem(sys.modules, "finetune_trainer.driver", None)
    with pytest.raises(ImportError):
        main(["run", str(tmp_path / "study.yaml"), "--into", str(tmp_path / "run")])


def test_a_changed_budget_by_which_the_search_is_over_as_well_is_told_to_have_no_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path, **{"spec.budget": {"maxTrials": 2}})
    ended(tmp_path, 2)
    less = study(**{"spec.budget": {"maxTrials": 1}})
    (tmp_path / "study.yaml").write_text(dump_yaml(less.to_json()))
    assert main(["run", str(tmp_path / "study.yaml"), "--into", str(tmp_path / "run")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "over by the changed budget and target as well, so they have no effect" in told
    assert "loosen the limit that ended it (SearchFinished)" in told
    assert f"search.warmStart: [{{uri: {tmp_path / 'run'}}}]" in told


def test_a_manifest_that_is_not_there_is_told_with_its_whole_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "nothere.yaml"]) == 2
    told = capsys.readouterr().err
    assert told == f"finetune: {tmp_path / 'nothere.yaml'}: No such file or directory\n"


def test_a_refused_run_changes_nothing_and_says_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = finished(tmp_path)
    claim(Storage.open(str(tmp_path / "run")), parts_of(made.spec))
    before = (tmp_path / "run" / "study.yaml").read_text()
    other = study(**{"spec.search.seed": 8})
    (tmp_path / "study.yaml").write_text(dump_yaml(other.to_json()))
    monkeypatch.setitem(sys.modules, "finetune_trainer.driver", None)
    assert main(["run", str(tmp_path / "study.yaml"), "--into", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert f"spec.search.seed: must be {made.spec.search.seed}, as when" in told
    assert "(got 8)" in told
    assert (tmp_path / "run" / "study.yaml").read_text() == before


def test_the_second_process_on_a_folder_is_told_who_has_it(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from finetune_trainer.runtime.local_sink import LocalSink;"
        "sink = LocalSink(Path(sys.argv[1])); print(sink.claim_term(), flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "1\n"
        with pytest.raises(BlockingIOError, match=rf"is used by process {other.pid} on ") as error:
            LocalSink(tmp_path).claim_term()
        assert error.value.filename == str(tmp_path)
        other.kill()
    sink = LocalSink(tmp_path)
    assert sink.claim_term() == 2
    sink.release()


@pytest.mark.parametrize(
    ("workers", "says"), [(1, "worst-case hours: "), (4, "4 trials at a time")]
)
def test_a_plan_without_a_gpu_has_hours(
    workers: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(study(**{"spec.cluster": {"workers": workers}}).to_json()))
    assert main(["plan", str(path), "--manifest-only", "--seconds-per-epoch", "60"]) == 0
    assert says in capsys.readouterr().out


def planned_with(given: dict[str, Any], folder: Path, **changes: Any) -> int:
    """The exit code of a plan of the study with that class."""
    path, of_class = folder / "study.yaml", folder / "class.yaml"
    path.write_text(dump_yaml(study(**changes).to_json()))
    kind = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneClass"}
    of_class.write_text(dump_yaml({**kind, "metadata": {"name": "gpu"}, "spec": given}))
    return main(["plan", str(path), "--manifest-only", "--class", str(of_class)])


def test_a_plan_with_a_class_has_its_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = {"spec.budget": {"maxDurationSeconds": 60}}
    assert planned_with({"limits": {"trials": 7}}, tmp_path, **budget) == 0
    assert "7 trials" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "changes", "says"),
    [
        ({"limits": {"workers": 2}}, {"spec.cluster.workers": 3}, "workers: must be at most 2 in"),
        ({"limits": {"wrkers": 2}}, {}, "class.yaml: spec.limits.wrkers: must be a known field"),
        ({}, {"spec.className": "cpu"}, "spec.className: must be gpu"),
    ],
    ids=["what it denies", "a mistake in it", "another class"],
)
def test_a_plan_with_a_class_says_what_is_wrong(
    given: dict[str, Any],
    changes: dict[str, Any],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert planned_with(given, tmp_path, **changes) == 2
    assert says in capsys.readouterr().err


def test_a_class_that_a_laptop_ignores_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(dump_yaml(study(**{"spec.className": "gpu"}).to_json()))
    assert main(["plan", str(path), "--manifest-only"]) == 0
    assert "className gpu is ignored here" in capsys.readouterr().out


def test_the_screen_has_what_trains_and_how_long_it_will_take() -> None:
    counts = TrialCounts(planned=8, completed=2, running=2, summary="2/8")
    found = Findings(trials=counts, best=trials(1)[0], top_trials=trials(2))
    busy = (AtWork(3, 0, 1, 3), AtWork(12, 1, 0.5, 9, "frozen layers: 1 of 9 rows"))
    for width in (80, 160):
        out = io.StringIO()
        screen = _screen(study(), "Searching", found, busy, 754.0, width)
        Console(file=out, width=width).print(screen)
        assert max(map(len, out.getvalue().splitlines())) <= width
        text = " ".join(out.getvalue().split())
        assert "2/8 trials, 2 running, 0 paused, best" in text
        assert "about 13 min left" in text
        assert "in training: trial 3: 1 of 3 epochs, trial 12: 0.5 of 9 epochs (frozen" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (59, "59 s"), (61, "1 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_in_the_unit_that_matters(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_what_slots_are_busy_with_follows_from_the_records() -> None:
    desk = Desk(search={"algorithm": "Random", "scheduler": {"type": "ASHA"}})
    first, second = desk.start(), desk.start()
    desk.state.apply(epoch_done(first.trial, 1, 0.5))
    found = {one.trial: (one.epochs, one.to_epoch) for one in desk.state.at_work()}
    assert found == {first.trial: (1, first.to_epoch), second.trial: (0, second.to_epoch)}
    desk.train(first, 0.5)
    assert [one.trial for one in desk.state.at_work()] == [second.trial]
