"""A real MLflow server on this machine, in a Python environment of its own: its libraries are at odds with ours."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.cluster.onenode.build import installed
from tests.needs import ToolMissing

VERSION = "3.17.2"


def program() -> Path:
    """The server's program, installed into the cache if it is not there. Raises ToolMissing if it cannot be."""
    return installed("mlflow", VERSION, _install) / "bin" / "mlflow"


def _install(folder: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    python = folder / "bin" / "python"
    for arguments in (
        ["venv", "--clear", "--python", sys.executable, str(folder)],
        ["pip", "install", "--compile-bytecode", "--python", str(python), f"mlflow=={VERSION}"],
    ):
        try:
            subprocess.run([uv, *arguments], check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise ToolMissing("uv", f"it must be installed beside Python (no {uv})") from error
        except subprocess.CalledProcessError as error:
            raise ToolMissing("MLflow", f"{VERSION} cannot be installed: {error.stderr}") from error


class MlflowServer:
    """A server with its database in `folder`, not started yet; each start is at the same address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = program()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        self._command = [
            str(self._program),
            "server",
            f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
            f"--artifacts-destination={folder}/artifacts",
            "--host=127.0.0.1",
            f"--port={port}",
            "--workers=1",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 120) -> None:
        """Return when it answers, whether or not it ran. Raises AssertionError with its log if it does not."""
        if self._process is not None:
            return
        log = self._folder / "log.txt"
        env = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, env=env, start_new_session=True
            )
        deadline = time.monotonic() + seconds
        while not self._answers():
            ended = self._process.poll() is not None
            assert not ended, f"the server ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"the server does not answer:\n{log.read_text()}"
            time.sleep(0.2)

    def stop(self) -> None:
        """End it with all its processes."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
