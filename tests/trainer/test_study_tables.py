"""`finetune show`, `trials` and `compare`: studies in tables, and the same for programs."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_reports.document import Final, Report
from finetune_trainer.cli import main
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import claim, parts_of
from finetune_trainer.records.log import RecordLog
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.glance import write_progress
from tests.reports.studies import report, searched
from tests.trainer.search_studies import ASHA, Clock, Driver, study_spec
from tests.trainer.test_listing import ABOUT, said

pytestmark = pytest.mark.in_memory

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as in a file; pytest-xdist sets the width of its terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


def measured(folder: Path, found: Sequence[dict[str, float]], **changes: Any) -> Path:
    """A study whose trials have these metrics, in their order."""
    spec, storage = study_spec(refit=False, **changes), Storage.open(str(folder))
    claim(storage, parts_of(spec))
    events: list[ev.Event] = []
    for trial, metrics in enumerate(found):
        events += [
            ev.Proposed(1.0, trial=trial, params={"learningRate": 1e-4 + trial / 1e5}),
            ev.Started(1.0, trial=trial, slot="worker/slot", to_epoch=9),
            ev.EpochDone(
                2.0,
                trial=trial,
                epoch=9,
                value=metrics[spec.objective.metric],
                metrics=metrics,
                train_loss=0.1,
                seconds=1.0,
                gpu_seconds=0.0,
            ),
            ev.Reached(2.0, trial=trial, finished=True),
        ]
    log, _ = RecordLog.start(storage, 1, 0.0)
    log.append([*events, ev.SearchEnded(3.0, reason="SearchFinished")])
    return folder


MEASURED = (
    {"accuracy": 0.7, "loss": 0.2, "mae": 0.6},
    {"accuracy": 0.9, "loss": 0.3},
    {"accuracy": 0.8, "loss": 0.1, "mae": 0.4},
)


def rows(folder: Path, capsys: Captured, *options: str) -> list[dict[str, Any]]:
    """What `finetune trials --output json` prints."""
    assert main(["trials", str(folder), "--output", "json", *options]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ((), [1, 2, 0]),
        (("--sort", "accuracy"), [1, 2, 0]),
        (("--sort", "loss"), [2, 0, 1]),
        (("--sort", "mae"), [2, 0, 1]),
        (("--limit", "2"), [1, 2]),
        (("--sort", "loss", "--limit", "1"), [2]),
        (("--limit", "99"), [1, 2, 0]),
    ],
)
def test_trials_come_best_first(
    options: Sequence[str], order: list[int], tmp_path: Path, capsys: Captured
) -> None:
    folder = measured(tmp_path / "study", MEASURED)
    assert [row["trial"] for row in rows(folder, capsys, *options)] == order


def test_the_goal_of_an_objective_comes_before_what_its_metric_is_usually_for(
    tmp_path: Path, capsys: Captured
) -> None:
    lowest = {"metric": "accuracy", "goal": "Minimize"}
    folder = measured(tmp_path / "study", MEASURED, objective=lowest)
    for options in ((), ("--sort", "accuracy")):
        assert [row["trial"] for row in rows(folder, capsys, *options)] == [0, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--sort", "lss"),
            "--sort: must be a metric of the trials: accuracy, loss, mae (got lss)",
        ),
        (("--limit", "0"), "--limit: must be at least 1 (got 0)"),
    ],
)
def test_a_wrong_option_of_trials_is_told_with_what_would_be_right(
    options: Sequence[str], message: str, tmp_path: Path, capsys: Captured
) -> None:
    folder = measured(tmp_path / "study", MEASURED)
    assert main(["trials", str(folder), *options]) == 2
    assert capsys.readouterr() == ("", f"finetune: {message}\n")


def test_trials_that_have_no_value_come_last_and_say_why(tmp_path: Path, capsys: Captured) -> None:
    folder = searched(tmp_path / "study")
    found = rows(folder, capsys)
    assert len(found) == 12
    assert found[0]["value"] == max(row["value"] for row in found[:-1])
    last = found[-1]
    assert (last["trial"], last["state"], last["value"]) == (3, "Failed", None)
    assert last["message"] == "no GPU 3"
    assert main(["trials", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("no GPU 3")


def test_trials_as_csv_have_a_column_for_each_parameter_and_metric(
    tmp_path: Path, capsys: Captured
) -> None:
    folder = measured(tmp_path / "study", MEASURED)
    assert main(["trials", str(folder), "--output", "csv"]) == 0
    first, second, _ = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [*first] == [
        *("trial", "value", "standardError", "state", "epochs", "learningRate"),
        *("metric accuracy", "metric loss", "metric mae", "message"),
    ]
    assert (first["trial"], first["metric loss"], first["metric mae"]) == ("1", "0.3", "")
    assert float(second["learningRate"]) == pytest.approx(1.2e-4)


def function_study(folder: Path, **changes: Any) -> Report:
    """The document of a study of a Python function, which has ended in a folder."""
    made = report(searched(folder)).model_copy(update={"task": "Function", "model": "", **changes})
    (folder / "records" / "study.json").write_text("{}")
    (folder / "results").mkdir()
    (folder / "results" / "report.json").write_text(made.to_json())
    return made


def test_parameters_of_a_function_may_be_called_as_a_column_is(
    tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "study"
    params = {"epochs": 7, "message": "hinge", "accuracy": 0.5, "rate": 0.1}
    trial = report(searched(tmp_path / "other")).ranked[0].model_copy(update={"params": params})
    function_study(folder, trials=[trial])
    assert main(["trials", str(folder), "--output", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["param epochs"], row["param message"], row["rate"]) == ("7", "hinge", "0.1")
    assert (row["epochs"], row["message"]) == ("9.0", "")
    assert main(["show", str(folder)]) == 0
    heading, _, line = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert " ".join(heading.split()) == "trial accuracy best epoch epochs message accuracy rate"
    assert line.split() == ["1", f"{trial.value:.4g}", "9", "7", "hinge", "0.5", "0.1"]


SPACES = [
    {
        "learningRate": {"min": 1e-5, "max": 1e-1, "scale": "Log"},
        "optimizer": {"values": ["AdamW", "Adafactor"]},
        "batchSize": {"values": [16, 32]},
        "weightDecay": {"min": 0.0, "max": 0.1},
        "warmupRatio": {"min": 0.0, "max": 0.2},
        "lrSchedule": {"values": ["Cosine", "Linear"]},
        "hiddenDropout": {"min": 0.0, "max": 0.3},
        "pooling": {"values": ["Mean", "Cls"]},
    }
]


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("command", [["show"], ["trials", "--sort", "f1_macro"]])
def test_columns_without_room_are_named_below_the_table(
    command: list[str],
    width: int,
    tmp_path: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    folder = searched(tmp_path / "study", searchSpaces=SPACES)
    assert main([*command, str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rule = next(place for place, line in enumerate(lines) if set(line.strip()) == {"─"})
    heading, rows = lines[rule - 1], lines[rule + 1 : rule + 6]
    assert max(map(len, (heading, *rows))) <= width
    assert {"trial", "accuracy"} <= set(heading.split())
    assert all(row.split()[0].isdecimal() for row in rows), "a line a trial"
    (left_out,) = [
        line.removeprefix("not shown: ").partition(" (")[0].split(", ")
        for line in lines
        if line.startswith("not shown: ")
    ] or [[]]
    for name in SPACES[0]:
        assert (name in heading.split()) != (name in left_out), name
    assert "f1_macro" in heading or command == ["show"]


def test_a_table_of_trials_says_how_many_there_are_more(tmp_path: Path, capsys: Captured) -> None:
    folder = searched(tmp_path / "study")
    assert main(["trials", str(folder), "--limit", "2"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "10 more: --limit 12"


def test_a_study_without_trials_says_so(tmp_path: Path, capsys: Captured) -> None:
    folder = searched(tmp_path / "study", items=0)
    assert main(["trials", str(folder)]) == 0
    assert capsys.readouterr().out == "no trials yet\n"
    assert main(["trials", str(folder), "--sort", "accuracy"]) == 2
    assert "no trial has one yet (got accuracy)" in capsys.readouterr().err


def finished(folder: Path) -> Path:
    """A study with a final model, and its test in detail."""
    spec, storage = study_spec(search=ASHA), Storage.open(str(folder))
    claim(storage, parts_of(spec))
    Driver(spec, storage, 1, Clock(1000.0)).run()
    (folder / "results").mkdir(exist_ok=True)
    detail = {"intervals": {"accuracy": [0.44, 0.56]}}
    (folder / "results" / "test_report.json").write_text(json.dumps(detail))
    return folder


def shown(folder: Path, capsys: Captured) -> dict[str, Any]:
    """What `finetune show --output json` prints."""
    assert main(["show", str(folder), "--output", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_study_is_shown_with_its_best_trials_and_its_test(
    tmp_path: Path, capsys: Captured
) -> None:
    folder = finished(tmp_path / "study")
    write_progress(
        folder, {**ABOUT, "metric": "accuracy"}, said("Finished", "SearchFinished").to_json()
    )
    best = report(folder).best
    assert best is not None
    assert main(["show", str(folder)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "study: study (SingleLabel, none)",
        "state: Complete (SearchFinished)",
        "search: Random, ASHA, maximize accuracy",
        f"best: {best.value:.4g}, trial {best.number}",
        f"parameters: epochs=9, learningRate={best.params['learningRate']:.4g}",
        "test: accuracy 0.5 (95 %: 0.44 to 0.56)",
        f"model: {folder / 'model'}",
        "trial accuracy best epoch learningRate",
    ):
        assert line in lines
    found = shown(folder, capsys)
    assert found["state"] == "Complete"
    assert found["bestTrial"] == best.number == found["topTrials"][0]["trial"]
    assert found["bestParams"] == {"epochs": 9, **best.params}
    assert found["testMetrics"] == {"accuracy": 0.5}
    assert found["testInterval"] == [0.44, 0.56]
    assert found["modelUri"] == str(folder / "model")
    assert found["spending"]["gpuSeconds"] > 0
    assert len(found["topTrials"]) == 5


def test_a_study_without_a_value_is_shown_too(tmp_path: Path, capsys: Captured) -> None:
    folder = searched(tmp_path / "study", items=2)
    assert main(["show", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "state: Stopped" in " ".join(text.split())
    assert "best:" not in text
    assert "learningRate" not in text
    found = shown(folder, capsys)
    assert (found["state"], found["trials"]) == ("Stopped", 2)
    nothing = ("best", "bestTrial", "test", "testInterval", "testMetrics", "baseline", "modelUri")
    assert {found[name] for name in nothing} == {None}
    assert found["topTrials"] == []
    assert found["bestParams"] == {"epochs": 9}


def test_texts_of_a_study_steer_no_terminal(tmp_path: Path, capsys: Captured) -> None:
    one = report(searched(tmp_path / "other")).ranked[0]
    trial = one.model_copy(update={"params": {"[bold]x": "\x1b[31mred"}, "message": "\x1b[2J"})
    final = Final(trial=1, params={}, model_uri="\x1b]0;t\x07", test={"accuracy": 0.5})
    names = {"name": "[red]a\x1b[1m", "warnings": ["[/x]\x1b[5m"], "final": final}
    function_study(tmp_path / "study", trials=[trial], **names)
    folder = str(tmp_path / "study")
    for command in (["show", folder], ["trials", folder], ["compare", folder, folder]):
        assert main(command) == 0
        text = capsys.readouterr().out
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "[bold]x" in text or command[0] == "compare"
        assert "[red]a\\x1b[1m" in text or command[0] == "trials"


@pytest.mark.parametrize("command", ["show", "trials"])
def test_a_folder_that_is_no_study_is_told(command: str, tmp_path: Path, capsys: Captured) -> None:
    assert main([command, str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "must be the folder of a study, with records/study.json in it" in err
    assert err.count("\n") == 1


def compared(capsys: Captured, *folders: Path) -> str:
    assert main(["compare", *map(str, folders)]) == 0
    return capsys.readouterr().out


def with_data(folder: Path, fingerprint: str) -> Path:
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / "data.json").write_text(json.dumps({"fingerprint": fingerprint}))
    return folder


DATA_DIFFER = "Their data differ"
OBJECTIVES_DIFFER = "Their objectives differ"
SAME = "Their best configurations are the same"


def test_studies_of_the_same_data_are_compared_without_a_warning(
    tmp_path: Path, capsys: Captured
) -> None:
    folders = [
        with_data(searched(tmp_path / "one"), "abc"),
        with_data(searched(tmp_path / "two", search={"algorithm": "Random", "seed": 8}), "abc"),
    ]
    text = compared(capsys, *folders)
    assert DATA_DIFFER not in text
    assert OBJECTIVES_DIFFER not in text
    assert SAME not in text
    best = [found.best for found in map(report, folders)]
    rates = [f"{each.params['learningRate']:.4g}" for each in best if each is not None]
    assert ["learningRate", *rates] in [line.split() for line in text.splitlines()]


def test_a_study_is_the_same_as_itself(tmp_path: Path, capsys: Captured) -> None:
    one = searched(tmp_path / "one")
    assert SAME in compared(capsys, one, one)


def test_studies_without_a_value_are_not_called_the_same(tmp_path: Path, capsys: Captured) -> None:
    one, two = (searched(tmp_path / name, items=1) for name in ("one", "two"))
    assert SAME not in compared(capsys, one, two)


@pytest.mark.parametrize(("other", "warned"), [("abc", False), ("xyz", True), (None, False)])
def test_data_that_differ_are_told_where_they_are_known(
    other: str | None, warned: bool, tmp_path: Path, capsys: Captured
) -> None:
    one, two = with_data(searched(tmp_path / "one"), "abc"), searched(tmp_path / "two")
    if other is not None:
        with_data(two, other)
    assert (DATA_DIFFER in compared(capsys, one, two)) == warned


@pytest.mark.parametrize(
    "objective", [{"metric": "loss"}, {"metric": "accuracy", "goal": "Minimize"}]
)
def test_objectives_that_differ_are_told(
    objective: dict[str, str], tmp_path: Path, capsys: Captured
) -> None:
    one = measured(tmp_path / "one", MEASURED)
    two = measured(tmp_path / "two", MEASURED, objective=objective)
    assert OBJECTIVES_DIFFER in compared(capsys, one, two)
    assert OBJECTIVES_DIFFER not in compared(capsys, one, one)


def test_a_comparison_for_programs_has_a_row_a_study(tmp_path: Path, capsys: Captured) -> None:
    one, two = with_data(finished(tmp_path / "one"), "abc"), searched(tmp_path / "two", items=4)
    assert main(["compare", str(one), str(two), "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["studies"]
    assert (first["study"], first["test"], first["testInterval"]) == ("one", 0.5, [0.44, 0.56])
    assert (first["dataFingerprint"], second["dataFingerprint"]) == ("abc", None)
    assert (second["study"], second["best"], second["trials"]) == ("two", None, 4)
    best = report(one).best
    assert best is not None
    assert found["differing"] == {"learningRate": [best.params["learningRate"], None]}


def test_a_number_is_the_same_with_and_without_a_point(tmp_path: Path, capsys: Captured) -> None:
    one = report(searched(tmp_path / "other")).ranked[0]
    values = [{"x": 1, "y": 1, "z": 0}, {"x": 1.0, "y": True, "z": 0.5}]
    for place, params in enumerate(values):
        trial = one.model_copy(update={"params": params})
        function_study(tmp_path / str(place), trials=[trial])
    folders = [str(tmp_path / name) for name in ("0", "1")]
    assert main(["compare", *folders, "--output", "json"]) == 0
    differing = json.loads(capsys.readouterr().out)["differing"]
    assert differing == {"y": [1, True], "z": [0, 0.5]}


def test_a_comparison_needs_two_folders_of_studies(tmp_path: Path, capsys: Captured) -> None:
    one, empty = searched(tmp_path / "one"), tmp_path / "empty"
    empty.mkdir()
    assert main(["compare", str(one)]) == 2
    message = "finetune: FOLDER: must be given for at least two studies (got 1)\n"
    assert capsys.readouterr() == ("", message)
    assert main(["compare", str(one), str(empty)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"must be the folder of a study, with records/study.json in it (got {empty})" in err


@pytest.mark.parametrize("command", ["show", "trials", "report"])
@pytest.mark.parametrize("broken", ["{}", "[]", "null", '{"task": 1}'])
def test_records_that_cannot_be_read_are_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, broken: str
) -> None:
    folder = searched(tmp_path / "study", items=1)
    (folder / "records" / "study.json").write_text(broken)
    assert main([command, str(folder)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert str(folder) in said[0]
