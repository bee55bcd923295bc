"""Azurite, Microsoft's own stand-in for Azure's storage, as npm has it."""

import shutil
import subprocess
from pathlib import Path

from tests.cluster.onenode.build import installed
from tests.needs import ToolMissing

VERSION = "3.37.0"
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The account that every Azurite has, and its key; both are in its documentation."""


def command(folder: Path, host: str, port: int) -> list[str]:
    """What starts it, with its blobs in `folder`; installed into the cache if it is not there.

    Raises ToolMissing if it cannot be had.
    """
    return [
        _node(),
        str(_program()),
        f"--location={folder}",
        f"--blobHost={host}",
        f"--blobPort={port}",
        "--skipApiVersionCheck",
        "--silent",
    ]


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        raise ToolMissing("Node.js", "Azurite runs on it (no node on the PATH)")
    return node


def _program() -> Path:
    folder = installed("azurite", VERSION, _install)
    return folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


def _install(folder: Path) -> None:
    options = ("--no-audit", "--no-fund", "--omit=dev", "--ignore-scripts")
    try:
        subprocess.run(
            ["npm", "install", "--prefix", folder, *options, f"azurite@{VERSION}"],
            check=True,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError as error:
        raise ToolMissing("Node.js", "npm installs Azurite (no npm on the PATH)") from error
    except subprocess.CalledProcessError as error:
        raise ToolMissing("Azurite", f"{VERSION} cannot be installed: {error.stderr}") from error
