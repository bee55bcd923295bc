"""The process in each of a study's pods: it keeps Ray running, and on pod 0 the driver.

Pod 0 is Ray's head, the driver's host and a worker. It exits with 0 only when the study is finished,
42 when the user must fix it, 143 when it was told to end; a driver that crashes is restarted in
place. Other pods join the head, and its replacement when there is one, for as long as they live.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType

from finetune_api.cluster import ClusterSpec
from finetune_api.pods import DRAIN_FILE, DRIVER, EXIT_DRAINED, EXIT_FINISHED, EXIT_USER_ERROR
from finetune_trainer.environment import PodEnvironment, WorkerResources

RAY_PORT = 6379
MAX_CRASHES = 5
"""After this many driver crashes within one pod, the pod itself is given up."""

GRACE_SECONDS = 25.0
_RAY = (sys.executable, "-m", "ray.scripts.scripts")

log = logging.getLogger("finetune.supervisor")


class Supervisor:
    """Starts and watches the processes of one pod."""

    def __init__(self, pod: PodEnvironment, cluster: ClusterSpec) -> None:
        self.pod = pod
        self.cluster = cluster
        self.told_to_end = threading.Event()
        self.driver: subprocess.Popen[bytes] | None = None
        self.drain_file = Path(tempfile.gettempdir()) / "finetune-drain"
        self.drain_file.unlink(missing_ok=True)
        os.environ[DRAIN_FILE] = str(self.drain_file)

    def on_sigterm(self, _: int, __: FrameType | None) -> None:
        """Tell the slots on this pod, and the driver if it is here, to save and stop."""
        self.drain_file.touch()
        self.told_to_end.set()
        if self.driver is not None and self.driver.poll() is None:
            self.driver.send_signal(signal.SIGTERM)

    def run(self) -> int:
        """Do what this pod's role requires; returns the pod's exit code."""
        signal.signal(signal.SIGTERM, self.on_sigterm)
        return self._head() if self.pod.index == 0 else self._worker()

    def _ray_start(self, *where: str) -> "subprocess.Popen[bytes]":
        resources = WorkerResources.of(self.cluster)
        command = [
            *_RAY,
            "start",
            *where,
            "--block",
            f"--num-cpus={resources.cpus}",
            f"--num-gpus={resources.gpus}",
            "--disable-usage-stats",
        ]
        if resources.memory_bytes is not None:
            command.append(f"--object-store-memory={_object_store(resources.memory_bytes)}")
        return subprocess.Popen(command)

    def _head(self) -> int:
        ray = self._ray_start("--head", f"--port={RAY_PORT}", "--include-dashboard=false")
        try:
            if not self._wait_for_port("127.0.0.1", ray):
                return EXIT_DRAINED if self.told_to_end.is_set() else 1
            return self._drive(ray)
        finally:
            _stop(ray)

    def _drive(self, ray: "subprocess.Popen[bytes]") -> int:
        crashes = 0
        while not self.told_to_end.is_set():
            self.driver = subprocess.Popen([sys.executable, "-m", DRIVER])
            if self.told_to_end.is_set():  # the signal came before there was a driver to tell
                self.driver.send_signal(signal.SIGTERM)
            code = _wait_either(self.driver, ray)
            if code is None:
                log.error("Ray's head process ended")
                _stop(self.driver)
                return 1
            if code in (EXIT_FINISHED, EXIT_USER_ERROR):
                return code
            if self.told_to_end.is_set():
                break
            crashes += 1
            if crashes >= MAX_CRASHES:
                return 1
            log.warning("the driver ended with %s; restarting it (crash %s)", code, crashes)
            self.told_to_end.wait(min(30.0, 2.0**crashes))
        return EXIT_DRAINED

    def _worker(self) -> int:
        while not self.told_to_end.is_set():
            if not self._wait_for_port(self.pod.head, None):
                break
            ray = self._ray_start(f"--address={self.pod.head}:{RAY_PORT}")
            while ray.poll() is None and not self.told_to_end.wait(0.5):
                pass
            if self.told_to_end.is_set():
                self._let_slots_save(ray)
            _stop(ray)
            self.told_to_end.wait(1.0)
        return EXIT_DRAINED

    def _let_slots_save(self, ray: "subprocess.Popen[bytes]") -> None:
        # Slots on this pod see the drain file themselves. Without a head there is nobody to save for.
        deadline = time.monotonic() + GRACE_SECONDS
        while ray.poll() is None and time.monotonic() < deadline and listens(self.pod.head):
            time.sleep(0.5)

    def _wait_for_port(self, host: str, ray: "subprocess.Popen[bytes] | None") -> bool:
        while not self.told_to_end.is_set() and (ray is None or ray.poll() is None):
            if listens(host):
                return True
            self.told_to_end.wait(0.5)
        return False


def listens(host: str) -> bool:
    """Whether Ray's head answers there; a name that does not resolve yet counts as no answer."""
    try:
        with socket.create_connection((host, RAY_PORT), timeout=2):
            return True
    except OSError:
        return False


def _object_store(memory_bytes: int) -> int:
    # It holds only the data set; it counts against the pod's memory.
    return max(100_000_000, min(2_000_000_000, memory_bytes // 5))


def _wait_either(driver: "subprocess.Popen[bytes]", ray: "subprocess.Popen[bytes]") -> int | None:
    """The driver's exit code, or None if Ray ended first."""
    while (code := driver.poll()) is None:
        if ray.poll() is not None:
            return None
        time.sleep(0.1)
    return code


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> int:
    """Run this pod until it ends; see the module for the exit codes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    pod = PodEnvironment.read()
    return Supervisor(pod, pod.study().spec.cluster).run()


if __name__ == "__main__":
    sys.exit(main())
