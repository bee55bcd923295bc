"""The command `finetune`. Each of its words is a module of `commands`, imported when it is used: `--help` loads none."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:  # it takes longer to import than `--help` to print
    from rich.console import Console

PACKAGE = "finetune-operator"
"""The distribution that this module belongs to."""


@dataclass(frozen=True)
class Command:
    """A word after `finetune`, and the module that carries it out."""

    name: str
    help: str
    module: str
    """In `finetune_trainer.commands`, or a whole path."""


COMMANDS = (
    Command("init", "write the manifest of a first study from a data file", "init"),
    Command("plan", "check the study and say what it will cost", "plan"),
    Command("run", "run the study on this machine", "run"),
    Command("ls", "list the studies on this machine", "ls"),
    Command("show", "show where a study stands and what it found", "show"),
    Command("trials", "list the trials of a study, the best first", "trials"),
    Command("compare", "compare studies in a table", "compare"),
    Command("report", "draw the report of a study, or of several side by side", "report"),
    Command("ui", "follow studies in a browser while they run", "finetune_ui.command"),
    Command("predict", "say what a model predicts for each row of a file", "predict"),
    Command("evaluate", "measure how well a model predicts the rows of a file", "evaluate"),
    Command("export", "write a model as ONNX, or the trials of a study for other tools", "export"),
    Command("explain", "say what a field of a study is", "explain"),
    Command("schema", "print the JSON schema of manifests, for editors", "schema"),
    Command("completion", "print what a shell needs to complete these words", "completion"),
)


class Module(Protocol):
    """What a module of `commands` offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments after the word."""

    def run(self, parsed: argparse.Namespace, console: "Console") -> int:
        """Do it; returns the exit code. Errors of `reported` become one line and exit code 2."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if it succeeded, 1 if what was asked for failed, 2 if what was given is wrong, 130 if interrupted.

    With `run --trial`, 1 means that the trial did not come out the same.
    """
    try:
        return _main(list(sys.argv[1:] if arguments is None else arguments))
    except ModuleNotFoundError as error:
        if str(error.name).startswith("finetune_"):
            raise
        install = f"pip install '{PACKAGE}[trainer]'"
        print(f"finetune: the package {error.name} is not installed: {install}", file=sys.stderr)
        return 2


def _main(given: Sequence[str]) -> int:
    if "_ARGCOMPLETE" in os.environ:  # a shell asks how a word goes on
        _complete(os.environ.get("COMP_LINE", ""))
    parser = parser_of([command for command in COMMANDS if command.name in given[:1]])
    parsed = parser.parse_args(given)
    command = next(each for each in COMMANDS if each.name == parsed.command)
    about = f"{parsed.study}: " if "study" in parsed else ""
    try:
        return module_of(command).run(parsed, _console())
    except reported() as error:
        print(f"finetune: {about}{error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"finetune: {os_error(error)}", file=sys.stderr)
        return 2
    except failed() as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        on = "; run the same command to go on from what is saved" if command.name == "run" else ""
        print(f"finetune: stopped{on}", file=sys.stderr)
        return 130


def parser_of(used: Sequence[Command] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of those that are used; importing the others takes time."""
    parser = argparse.ArgumentParser(
        prog="finetune",
        description="Tunes the hyperparameters of a FineTuneStudy.",
        epilog="Exit codes: 0 done, 1 what was asked for failed, 2 what was given is wrong, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"finetune {version(PACKAGE)}")
    words = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        word = words.add_parser(command.name, help=command.help, description=command.help)
        if command in used:
            module_of(command).add_arguments(word)
    return parser


def _complete(line: str) -> None:
    """Answer the shell about the line that is being typed, and exit."""
    import argcomplete

    words = line.split()
    argcomplete.autocomplete(parser_of([each for each in COMMANDS if each.name in words[1:2]]))


def module_of(command: Command) -> Module:
    """The module that carries a command out."""
    own = "" if "." in command.module else "finetune_trainer.commands."
    return cast(Module, import_module(f"{own}{command.module}"))


def reported() -> tuple[type[Exception], ...]:
    """What is the fault of what was given. (Python asks only when there is an error to compare.)"""
    from finetune_api.expressions import ExpressionError
    from finetune_api.manifest import ManifestError
    from finetune_trainer.errors import StudyError

    return ManifestError, ExpressionError, StudyError


def failed() -> type[Exception]:
    """What is the machine's fault."""
    from finetune_trainer.errors import RayUnavailable

    return RayUnavailable


def os_error(error: OSError) -> str:
    """What an error of the operating system says, without its number."""
    if isinstance(error, BlockingIOError) or not (error.filename and error.strerror):
        return str(error)
    return f"{os.path.abspath(error.filename)}: {error.strerror}"


def _console() -> "Console":
    from rich.console import Console

    shown = sys.stdout.isatty()
    # A file has no width: its tables need not be cut to that of a terminal.
    wide = None if shown or "COLUMNS" in os.environ else 160
    return Console(soft_wrap=not shown, width=wide)


if __name__ == "__main__":
    sys.exit(main())
