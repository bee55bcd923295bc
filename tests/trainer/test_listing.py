"""`finetune ls`, and the small files that say where a study stands and who works on it."""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune_api.conditions import status_of
from finetune_api.manifest import dump_yaml
from finetune_api.status import Findings, StudyProgress, TrialCounts, TrialResult
from finetune_api.texts import plain
from finetune_trainer.cli import main
from finetune_trainer.runtime.local_sink import LocalSink
from finetune_trainer.storage.glance import (
    DEPTH,
    State,
    age,
    glance,
    is_held,
    studies_below,
    write_progress,
)
from tests.trainer.test_console import study

pytestmark = pytest.mark.in_memory

Captured = pytest.CaptureFixture[str]

HERE = socket.gethostname()
NOBODY = 65534

ABOUT = {"name": "tickets", "task": "SingleLabel", "metric": "f1_macro"}


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as in a file; pytest-xdist sets the width of its terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


def begun(folder: Path) -> Path:
    """A study of which nothing is known but that it has begun."""
    (folder / "records").mkdir(parents=True)
    (folder / "records" / "study.json").write_text("{}")
    return folder


def said(phase: str, reason: str = "Running", message: str = "") -> StudyProgress:
    """A progress document with a best trial and a test."""
    best = TrialResult(trial=2, value=0.9, params={"learningRate": 1e-4})
    found = Findings.model_validate(
        {
            "trials": TrialCounts(planned=24, completed=7, summary="7/24"),
            "best": best,
            "final": {"model_uri": "model", "params": {}, "test_metrics": {"f1_macro": 0.8}},
        }
    )
    values = {"phase": phase, "reason": reason, "message": message, "findings": found}
    fence = {"study_uid": "local", "job_uid": "local", "term": 1, "time": datetime.now(UTC)}
    return StudyProgress.model_validate({**fence, **values})


def told(folder: Path, phase: str, reason: str = "Running", **about: str) -> Path:
    """A study that has said so much."""
    write_progress(begun(folder), {**ABOUT, **about}, said(phase, reason).to_json())
    return folder


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


HOLDERS = {"alive": True, "dead": False, "elsewhere": True, "none": False}
"""Who is named in `holder`, and whether somebody works on the study then."""


def hold(folder: Path, who: str, dead: int) -> None:
    names = {"alive": (os.getpid(), HERE), "dead": (dead, HERE), "elsewhere": (dead, f"not-{HERE}")}
    if who in names:
        (folder / "holder").write_text("process {} on {}\n".format(*names[who]))


@pytest.mark.parametrize("who", HOLDERS)
@pytest.mark.parametrize(
    ("phase", "state"),
    [
        ("Preparing", "Starting"),
        ("Searching", "Running"),
        ("Refitting", "Refitting"),
        ("Drained", "Stopped"),
        ("Finished", "Complete"),
        ("Failed", "Failed"),
    ],
)
def test_a_study_is_under_way_only_while_somebody_works_on_it(
    phase: str, state: State, who: str, dead: int, tmp_path: Path
) -> None:
    folder = told(tmp_path / "study", phase)
    hold(folder, who, dead)
    seen = glance(folder)
    under_way = phase in ("Preparing", "Searching", "Refitting")
    assert seen.state == ("Stopped" if under_way and not HOLDERS[who] else state)
    assert seen.is_running == (under_way and HOLDERS[who])
    assert seen.is_over == (phase in ("Finished", "Failed"))
    assert (seen.name, seen.task, seen.metric) == ("tickets", "SingleLabel", "f1_macro")
    assert (seen.trials, seen.best, seen.test) == ("7/24", 0.9, 0.8)


def test_a_study_that_was_killed_does_not_say_that_it_runs(tmp_path: Path) -> None:
    assert glance(told(tmp_path / "killed", "Searching")).reason == ""
    assert glance(told(tmp_path / "broken", "Preparing", "AttemptFailed")).reason == "AttemptFailed"


@pytest.mark.parametrize("who", HOLDERS)
def test_of_a_folder_from_before_progress_documents_the_holder_is_known(
    who: str, dead: int, tmp_path: Path
) -> None:
    folder = begun(tmp_path / "study")
    hold(folder, who, dead)
    seen = glance(folder)
    assert (seen.name, seen.state) == ("study", "Running" if HOLDERS[who] else "Stopped")
    assert (seen.trials, seen.metric, seen.best) == ("", "", None)


@pytest.mark.parametrize(
    ("phase", "reason", "state"),
    [
        ("Finished", "SearchFinished", "Complete"),
        ("Failed", "DataError", "Failed"),
        ("Drained", "SuspendRequested", "Stopped"),
    ],
)
def test_the_result_of_an_earlier_version_says_as_much_as_a_progress_document(
    phase: str, reason: str, state: State, tmp_path: Path
) -> None:
    folder, made = begun(tmp_path / "study"), study()
    status = status_of(made, said(phase, reason, "because"), datetime.now(UTC))
    (folder / "study.yaml").write_text(
        dump_yaml(made.model_copy(update={"status": status}).to_json())
    )
    seen = glance(folder)
    assert (seen.name, seen.state, seen.reason) == ("tickets", state, reason)
    assert (seen.task, seen.metric, seen.message) == ("SingleLabel", "f1_macro", "because")
    assert (seen.trials, seen.best, seen.test) == ("7/24", 0.9, 0.8)


def test_a_manifest_in_the_folder_of_its_study_says_no_state(tmp_path: Path) -> None:
    folder = begun(tmp_path / "study")
    (folder / "study.yaml").write_text(dump_yaml(study().to_json()))
    seen = glance(folder)
    assert (seen.name, seen.metric, seen.state) == ("tickets", "f1_macro", "Stopped")


@pytest.mark.parametrize("left", [b"", bytes(64), b'{"name": "tick', b"\xff\xfe", b"a: [", b"text"])
def test_files_that_a_power_cut_has_left_broken_hide_no_study(left: bytes, tmp_path: Path) -> None:
    folder = told(tmp_path / "study", "Finished")
    for name in ("progress.json", "study.yaml"):
        (folder / name).write_bytes(left)
    assert glance(folder).name == "study"
    assert glance(folder).state == "Stopped"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study, for tests with many examples."""
    return begun(tmp_path_factory.mktemp("listing") / "study")


@given(st.binary(max_size=80) | st.text(max_size=40).map(lambda text: text.encode("utf-8")))
@example(b"process 0 on " + HERE.encode())
@example(b"process -1 on " + HERE.encode())
@example(b"process 99999999999999999999 on " + HERE.encode())
@example(b"process 1 on \n" + HERE.encode())
@example(b"process \xff on " + HERE.encode())
@example(b"another process")
def test_what_names_no_process_holds_nothing(one: Path, content: bytes) -> None:
    (one / "holder").write_bytes(content)
    assert not is_held(one)


def test_studies_are_found_in_and_below_the_folders_in_order(tmp_path: Path) -> None:
    names = ("b", "a/two", "a/one", "c/d/e")
    made = {name: begun(tmp_path / "runs" / name) for name in names}
    assert studies_below([tmp_path / "runs"]) == [made[name] for name in sorted(names)]
    assert studies_below([made["b"]]) == [made["b"]]
    assert studies_below([tmp_path / "runs" / "c", made["b"]]) == [made["c/d/e"], made["b"]]


def test_a_study_is_found_once_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "runs" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    ways = [Path("runs"), Path("runs/a"), tmp_path / "runs", Path("runs/../runs"), Path("link")]
    assert studies_below(ways) == [Path("runs/a")]
    assert studies_below([Path("link")]) == [Path("link/a")], "as it was named"


@given(st.integers(0, DEPTH + 2))
def test_studies_are_looked_for_so_deep(depth: int) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = begun(Path(made, *"abcdefgh"[:depth]))
        assert studies_below([Path(made)]) == ([folder] if depth <= DEPTH else [])


def test_nothing_is_looked_for_in_studies_hidden_folders_and_behind_links(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    outer = begun(runs / "outer")
    begun(outer / "inner")
    begun(runs / ".hidden")
    begun(tmp_path / "elsewhere")
    (runs / "link").symlink_to(tmp_path / "elsewhere")
    (runs / "loop").symlink_to(runs)
    (runs / "notes.txt").touch()
    assert studies_below([runs]) == [outer]


def test_a_folder_that_may_not_be_read_hides_no_other() -> None:
    with tempfile.TemporaryDirectory() as made:
        runs = Path(made)
        runs.chmod(0o755)
        closed, found = begun(runs / "closed"), begun(runs / "open")
        closed.chmod(0)
        with not_root():
            assert studies_below([runs]) == [found]
        closed.chmod(0o755)


@contextmanager
def not_root() -> Iterator[None]:
    """Root may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["nothere", "file"])
def test_what_is_no_folder_is_an_error_of_one_line(
    name: str, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    assert main(["ls", str(path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"finetune: {path} must be a folder: of a study, or with studies in it\n"


def test_a_list_without_studies_says_where_there_are_none(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == "no studies in runs\n"
    assert main(["ls", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_study_that_changed_last_comes_first(tmp_path: Path, capsys: Captured) -> None:
    changes = {"old": 1000.0, "new": 3000.0, "middle": 2000.0}
    for name, seconds in changes.items():
        folder = told(tmp_path / name, "Finished", name=name)
        os.utime(folder / "progress.json", (seconds, seconds))
    assert main(["ls", str(tmp_path), "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["changed"]) for each in found] == [
        ("new", 3000.0), ("middle", 2000.0), ("old", 1000.0)
    ]  # fmt: skip
    assert main(["ls", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "new", "middle", "old"]


def test_a_list_has_a_line_a_study(tmp_path: Path, capsys: Captured) -> None:
    folder = told(tmp_path / "runs" / "tickets", "Finished", "SearchFinished")
    assert main(["ls", str(folder.parent)]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == [
        "NAME",
        "STATE",
        "TRIALS",
        "METRIC",
        "BEST",
        "TEST",
        "CHANGED",
        "FOLDER",
    ]
    assert line.split()[:6] == ["tickets", "Complete", "7/24", "f1_macro", "0.9", "0.8"]
    assert line.split()[-1] == str(folder)
    assert main(["ls", str(folder), "--output", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("name", "state", "reason", "folder", "best")} == {
        "name": "tickets",
        "state": "Complete",
        "reason": "SearchFinished",
        "folder": str(folder),
        "best": 0.9,
    }


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("[bold]loud[/bold]", "[bold]loud[/bold]"),
        ("[/nothing]", "[/nothing]"),
        (":smile:", ":smile:"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\u202etxet", "\\u202etxet"),
        ("Bücher 本", "Bücher 本"),
    ],
)
def test_names_are_shown_as_text(name: str, shown: str, tmp_path: Path, capsys: Captured) -> None:
    folder = told(tmp_path / "study", "Finished", name=name)
    assert main(["ls", str(folder)]) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{shown} ")
    assert main(["ls", str(folder), "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == name


def test_a_folder_whose_name_is_no_text_is_listed(tmp_path: Path, capsys: Captured) -> None:
    begun(tmp_path / os.fsdecode(b"\xff"))
    assert main(["ls", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("\\udcff ")
    assert main(["ls", str(tmp_path), "--output", "json"]) == 0
    assert os.fsencode(json.loads(capsys.readouterr().out)[0]["name"]) == b"\xff"


@given(st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_texts_of_others_are_one_line_that_steers_no_terminal(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert plain(shown) == shown
    assert shown == text or not text.isprintable()


def test_a_list_of_studies_loads_no_models(tmp_path: Path) -> None:
    told(tmp_path / "tickets", "Searching")
    program = (
        "import sys; from finetune_trainer.cli import main; code = main(sys.argv[1:]);"
        "print(sorted({'pydantic', 'pyarrow', 'torch', 'ray', 'yaml'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, "ls", str(tmp_path)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert shown.splitlines()[1].startswith("tickets  Stopped")
    assert shown.splitlines()[-1] == "[]"


@given(st.integers(0, 10**7))
def test_ages_are_in_the_unit_that_matters(seconds: int) -> None:
    number, unit = age(datetime.now().timestamp() - seconds).split()
    length = {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]
    assert abs(int(number) * length - seconds) <= length / 2 + 2
    assert int(number) >= 2 or unit == "s"


def test_a_sink_says_where_the_study_stands_and_who_works_on_it(tmp_path: Path) -> None:
    folder = begun(tmp_path / "study")
    sink = LocalSink(folder, about=ABOUT)
    sink.claim_term()
    assert (folder / "holder").read_text() == f"process {os.getpid()} on {HERE}\n"
    sink.publish(said("Searching"))
    assert json.loads((folder / "progress.json").read_text()) == {
        **ABOUT,
        "progress": sink.latest.to_json() if sink.latest else None,
    }
    assert glance(folder).state == "Running"
    sink.release()
    assert not (folder / "holder").exists()
    assert glance(folder).state == "Stopped"


def test_a_study_that_does_not_say_its_name_has_that_of_its_folder(tmp_path: Path) -> None:
    folder = begun(tmp_path / "study")
    sink = LocalSink(folder, "into", {"metric": "score"})
    sink.claim_term()
    sink.publish(said("Searching"))
    sink.release()
    seen = glance(folder)
    assert (seen.name, seen.task, seen.metric) == ("study", "", "score")


def test_readers_see_all_of_a_progress_document_or_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path / "study")
    sink = LocalSink(folder, about=ABOUT)
    sink.claim_term()
    documents = [said("Searching", message="m" * length) for length in (1, 1000)]
    sink.publish(documents[0])

    def publish() -> None:
        for turn in range(200):
            sink.publish(documents[turn % 2])

    writing = threading.Thread(target=publish)
    writing.start()
    lengths = set()
    while writing.is_alive():
        lengths.add(len(json.loads((folder / "progress.json").read_bytes())["progress"]["message"]))
    writing.join()
    sink.release()
    assert lengths <= {1, 1000}
    assert [each.name for each in folder.glob(".progress*")] == []


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_sink_outlives_a_full_disk_and_leaves_what_was_there(tmp_path: Path) -> None:
    folder = begun(tmp_path / "study")
    sink = LocalSink(folder, about=ABOUT)
    sink.claim_term()
    sink.publish(said("Preparing"))
    before = (folder / "progress.json").read_bytes()
    latest = said("Searching")
    with full_disk():
        sink.publish(latest)
    assert sink.latest is latest
    assert (folder / "progress.json").read_bytes() == before
    assert [each.name for each in folder.glob(".progress*")] == []
    sink.publish(latest)
    sink.release()
    assert (folder / "progress.json").read_bytes() != before


def test_nothing_is_written_where_a_disk_was_mounted(tmp_path: Path) -> None:
    folder = begun(tmp_path / "study")
    sink = LocalSink(folder, about=ABOUT)
    sink.claim_term()
    folder.rename(tmp_path / "away")
    sink.publish(said("Searching"))
    folder.mkdir()
    sink.publish(said("Searching"))
    sink.release()
    assert [*folder.iterdir()] == []


def test_before_the_first_study_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 0
    assert "no studies in runs" in capsys.readouterr().out
