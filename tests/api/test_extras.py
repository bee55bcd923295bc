"""Installed without its extras, each command says which one it needs."""

import subprocess
import sys

import pytest

from finetune_trainer.cli import COMMANDS

LACKING = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # as if it were not installed
from {module} import main
sys.argv = ["finetune", *sys.argv[2:]]
sys.exit(main())
"""
TRAINER = "rich,ray,torch,transformers,pyarrow,pandas,numpy,optuna,plotly,jinja2,starlette,uvicorn,kubernetes,argcomplete"
ARGUMENTS = {
    "init": ["data.csv"],
    "predict": ["model", "file.csv"],
    "evaluate": ["model", "file.csv"],
    "export": ["folder", "--csv", "x.csv"],
    "completion": ["bash"],
    "compare": ["a", "b"],
    "ls": [],
    "ui": [],
    "explain": ["spec.search"],
    "schema": [],
}


def said(module: str, lacking: str, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", LACKING.format(module=module), lacking, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_a_command_names_the_extra_that_it_needs(command: str) -> None:
    code, told = said("finetune_trainer.cli", TRAINER, command, *ARGUMENTS.get(command, ["x"]))
    assert code == 2, told
    assert told.count("\n") == 1, told
    assert "is not installed: pip install 'finetune-operator[trainer]'" in told


def test_help_needs_none() -> None:
    assert said("finetune_trainer.cli", TRAINER, "--help") == (0, "")


@pytest.mark.parametrize("lacking", ["rich", "kubernetes", "kubernetes,rich,pandas"])
def test_the_plugin_names_its_extra(lacking: str) -> None:
    code, told = said("finetune_client.command", lacking, "ls")
    assert code == 2
    assert told.count("\n") == 1
    assert "pip install 'finetune-operator[client]'" in told
