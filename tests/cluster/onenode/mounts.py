"""What is mounted below a folder, and taking it off."""

import subprocess
from pathlib import Path

from tests.cluster.onenode.packages import tool


def unmount_below(folder: Path) -> None:
    """Unmount everything at or below `folder`, innermost first."""
    for point in _mounts(folder):
        subprocess.run([tool("umount"), "--lazy", point], check=True)


def _mounts(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in reversed(points) if Path(point).is_relative_to(folder)]
