"""The processes that tests have started and not ended: however a run ends, it leaves none."""

import psutil

RUN = "FINETUNE_TEST_RUN"
"""The folder of a run of tests; its processes, and all that they start, have it in their environment."""

_GRACE = 10.0
"""Seconds from SIGTERM to SIGKILL."""


def end_leftovers(run: str) -> list[str]:
    """End every process of that run but this one and those above it; the names of what was still there."""
    own = psutil.Process()
    spared = {own.pid, *(parent.pid for parent in own.parents())}
    names: list[str] = []
    while True:  # some start others while they end
        all_others = [process for process in psutil.process_iter() if process.pid not in spared]
        left = [process for process in all_others if _run_of(process) == run]
        if not left:
            return sorted(name for name in names if name)
        names += [_name(process) for process in left]
        for process in left:
            _signal(process, kill=False)
        _, alive = psutil.wait_procs(left, timeout=_GRACE)
        for process in alive:
            _signal(process, kill=True)
        psutil.wait_procs(alive, timeout=_GRACE)


def _run_of(process: psutil.Process) -> str:
    try:
        return process.environ().get(RUN, "")
    except (psutil.Error, OSError):  # gone, another user's, or a zombie
        return ""


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _signal(process: psutil.Process, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.Error:  # it ended by itself
        return
