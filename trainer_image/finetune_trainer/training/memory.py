"""How much memory a process may still take: of the machine, and of its container."""

import os
import re
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def available() -> int:
    """Bytes that can be taken before the machine or the container (cgroup v2 or v1) has none left.

    Cached files count as free: they count towards the container's limit, but are given back on demand.
    """
    return max(0, min([_of_machine(), *_of_container()]))


def _of_machine() -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    if found is not None:
        return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_container() -> list[int]:
    """What remains under each limit; empty without any."""
    left = []
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, taken = _number(CGROUP / limit), _number(CGROUP / used)
        if most is None or taken is None:
            continue
        left.append(most - taken + _cached((CGROUP / limit).with_name("memory.stat"), cached))
    return left


def _number(path: Path) -> int | None:
    """The number in a file; None if it has none, for example the limit `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _cached(path: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name} (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
