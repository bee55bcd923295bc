"""Long-running programs with a log and a pid file, which another process can find again and end."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.leftovers import RUN


def state_folder() -> Path:
    """Where the cluster lives: `$FINETUNE_CLUSTER_DIR`, or a folder under /var/tmp."""
    return Path(os.environ.get("FINETUNE_CLUSTER_DIR") or "/var/tmp/finetune-cluster")


class ClusterError(RuntimeError):
    """Something of the cluster did not start, or did not do what it was asked; the text says what."""


@dataclass
class Service:
    """A program that runs until it is told to end.

    The pid file holds the pid and the kernel's start time of the process, so that `stop` never
    ends a stranger that was given the same number later.
    """

    name: str
    command: Sequence[str]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where the program's output goes; each start appends."""
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pids" / self.name

    @property
    def pid(self) -> int | None:
        """The pid of the running program, or None."""
        return running_pid(self._pid_file)

    @property
    def running(self) -> bool:
        """Whether the program runs now, whoever started it."""
        return self.pid is not None

    def start(self) -> None:
        """Start the program unless it runs."""
        if self.running:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._pid_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log, open(os.devnull, "rb") as nothing:
            # Not a Popen, which complains about a process that outlives it, as these do.
            pid = os.posix_spawn(
                self.command[0],
                list(self.command),
                self._environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
                ],
                setsid=True,
            )
        self._pid_file.write_text(f"{pid} {_start_time(pid)}")

    def _environment(self) -> dict[str, str]:
        """A cluster's programs belong to no run of tests: it may be kept for the next one."""
        ours = {**os.environ, **self.env}
        if self.folder.is_relative_to(state_folder()):
            ours.pop(RUN, None)
        return ours

    def stop(self, grace: float = 15.0) -> None:
        """End the program with SIGTERM, and with SIGKILL if it is still there after `grace` seconds."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            if not self._wait_for_end(grace):
                os.kill(pid, signal.SIGKILL)
                self._wait_for_end(grace)
        self._pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """End the program with SIGKILL, as a crash would; `start` brings it back."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            self._wait_for_end(15.0)

    def wait_until(self, ready: Callable[[], bool], timeout: float = 240.0) -> None:
        """Return when `ready()` is true; raise ClusterError with the log's end if that never happens."""
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.running:
                raise ClusterError(f"{self.name} ended while starting:\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{self.name} is not ready after {timeout:.0f} s:\n{self.log_end()}"
                )
            time.sleep(0.1)

    def log_end(self, lines: int = 25) -> str:
        """The last lines of the log."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _wait_for_end(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def running_pid(pid_file: Path) -> int | None:
    """The pid in a pid file if that very process still runs, else None."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        pid, started = pid_file.read_text().split()
        if _start_time(int(pid)) == started:
            return int(pid)
        with contextlib.suppress(ChildProcessError):  # another process's child, or reaped already
            os.waitpid(int(pid), os.WNOHANG)
    return None


def _start_time(pid: int) -> str:
    """The kernel's start time of a process; empty if it is gone or only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()
    # A killed process's first thread can be dead while another still holds its ports.
    dead = fields[0] in ("Z", "X") and threads <= 1
    return "" if dead else fields[19]
