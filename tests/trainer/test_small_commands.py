"""`finetune explain`, `schema` and `completion`, as they are called."""

import argparse
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune_api.editor_schema import STUDY_SCHEMA
from finetune_trainer import cli
from finetune_trainer.commands.completion import SHELLS
from tests.trainer.conftest import ROOT

Captured = pytest.CaptureFixture[str]


def test_explain_prints_type_default_bounds_and_fields(capsys: Captured) -> None:
    assert cli.main(["explain", "dataset.split"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("spec.dataset.split: object\n")
    assert "  validation: number, above 0, below 1, default 0.1\n" in out
    assert "what must hold:\n  - validation and test must leave rows" in out


def test_explain_gives_the_same_as_one_json_document(capsys: Captured) -> None:
    assert cli.main(["explain", "learningRate", "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == "spec.hyperparameters.learningRate"
    assert found["fields"][0]["path"].startswith("spec.searchSpaces[].learningRate.")


def test_explain_of_no_field_is_an_error_of_one_line(capsys: Captured) -> None:
    assert cli.main(["explain", "dataset.splt"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("finetune: spec.dataset.splt: must be a known field; did you mean")
    assert said.err.count("\n") == 1


def test_schema_prints_the_file_that_the_examples_name(capsys: Captured) -> None:
    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == (ROOT / "crds" / STUDY_SCHEMA).read_text()
    assert cli.main(["schema", "--class"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "FineTuneClass"


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_has_a_script_for_each_shell(shell: str, capsys: Captured) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "finetune" in script
    assert "_ARGCOMPLETE" in script


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("finetune expl", "explain"),
        ("finetune plan --manif", "--manifest-only"),
        ("finetune init rows.csv --task Reg", "Regression"),
        ("finetune run my-st", "my-study.yaml"),
    ],
)
def test_bash_completes_a_word(typed: str, completed: str, tmp_path: Path) -> None:
    script = tmp_path / "finetune.bash"
    cli_script = [sys.executable, "-m", "finetune_trainer.cli", "completion", "bash"]
    script.write_bytes(subprocess.run(cli_script, check=True, capture_output=True).stdout)
    (tmp_path / "my-study.yaml").touch()
    shown = in_bash(f"source {script}\n", f"{typed}\t", tmp_path, completed)
    assert completed in shown


def in_bash(first: str, typed: str, folder: Path, until: str) -> str:
    """What a bash at a terminal shows once `typed` is typed, up to `until`."""
    terminal, inner = pty.openpty()
    bash = subprocess.Popen(
        ["bash", "--norc", "-i"],
        cwd=folder,
        env={
            **os.environ,
            "PS1": "> ",
            "TERM": "dumb",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    try:
        read(terminal, "> ")
        os.write(terminal, first.encode())
        read(terminal, "> ")
        os.write(terminal, typed.encode())
        return read(terminal, until)
    finally:
        bash.kill()
        bash.wait()
        os.close(terminal)


def read(terminal: int, until: str) -> str:
    """What a terminal shows, up to `until`, for at most a minute."""
    shown, end = "", time.monotonic() + 60
    while until not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            shown += re.sub("\x1b\\[[?0-9;]*[a-z]", "", os.read(terminal, 4096).decode())
    return shown


def test_the_page_of_commands_has_every_command_and_option() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    for command in cli.COMMANDS:
        _, _, section = page.partition(f"\n## {command.name}\n")
        section = section.partition("\n## ")[0]
        assert f"finetune {command.name}" in section, command.name
        for option in options_of(command):
            assert f"{option}" in section, (command.name, option)


def options_of(command: cli.Command) -> list[str]:
    """The options of a command, but for its help."""
    parser = argparse.ArgumentParser(add_help=False)
    cli.module_of(command).add_arguments(parser)
    return [action.option_strings[0] for action in parser._actions if action.option_strings]
