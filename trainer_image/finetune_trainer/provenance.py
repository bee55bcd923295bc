"""What a process trains with: all that its metrics depend on apart from the study, the data and the seeds."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from finetune_api.cluster import Compute
from finetune_api.pods import IMAGE

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "datasets",
    "scikit-learn",
    "ray",
    "numpy",
    "finetune-operator",
)
"""Distributions whose versions are recorded."""


def setting(device: str, compute: Compute) -> dict[str, str]:
    """Versions, machine, threads and precision of this process on `device`, by name.

    It has the image where that is known, and the commit where the code runs from a checkout.
    """
    found = {"python": platform.python_version()}
    found |= {name: version(name) for name in PACKAGES}
    found["torch"] = str(torch.__version__)  # with the CUDA that it was built for
    found |= {"cpu": _cpu(), "threads": str(torch.get_num_threads())}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    found["precision"] = f"{compute.precision}{', compiled' if compute.compile else ''}"
    origin = {"image": os.environ.get(IMAGE), "commit": _commit()}
    return found | {name: value for name, value in origin.items() if value}


def differences(then: dict[str, str], now: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Where two settings differ: name → (then, now); "unknown" where one has no value."""
    names = dict.fromkeys((*then, *now))
    pairs = {name: (then.get(name, "unknown"), now.get(name, "unknown")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _cpu() -> str:
    """The processor, and the instruction set that torch uses on it: both decide how sums are rounded."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, with `-dirty` if it has been changed since."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(root), "describe"]
    command += ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # a machine without git
        return None
    return found.stdout.strip() or None
