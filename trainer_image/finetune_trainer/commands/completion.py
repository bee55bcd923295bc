"""`finetune completion`: what a shell needs to complete the words and options of `finetune`."""

import argparse

from rich.console import Console

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand after `finetune completion`."""
    parser.add_argument("shell", choices=SHELLS, help="the shell to complete in")


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Print a script that the shell reads at its start; 0.

    It asks `finetune` itself how a word goes on, so that it fits later versions too.
    """
    from argcomplete.shell_integration import shellcode

    print(shellcode(["finetune"], shell=parsed.shell))
    return 0
