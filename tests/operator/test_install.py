"""What the installer says before it installs anything, and what it takes from the lock."""

import re
import shutil
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tools import install

ROOT = Path(__file__).resolve().parents[2]
LOCK = install.read_lock(install.LOCK)
Usage = namedtuple("Usage", "total used free")  # as of shutil


def refused(capsys: pytest.CaptureFixture[str], venv: Path, *arguments: str) -> str:
    """What it says as it refuses; nothing has been made then."""
    assert install.main(["--venv", str(venv), *arguments]) == 1
    assert not venv.exists()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("install: ")
    assert len(said.err.splitlines()) == 1
    return said.err


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 11, 1), (3, 15, 0)])
def test_a_python_that_is_too_old_or_too_new_is_told(
    version: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    said = refused(capsys, tmp_path / "venv")
    assert "Python 3.11.2 to 3.14 is needed" in said
    assert ".".join(map(str, version)) in said
    assert "PYTHON3=" in said


def test_a_machine_for_which_nothing_is_pinned_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert "this is Linux riscv64" in refused(capsys, tmp_path / "venv")


def test_a_python_without_venv_is_told_which_package_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert "apt install python3-venv" in refused(capsys, tmp_path / "venv")


@pytest.mark.parametrize(("torch", "hint"), [("", True), ("cpu", False)])
def test_a_disk_that_is_too_full_is_told(
    torch: str,
    hint: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def usage(_: str) -> Usage:
        return Usage(0, 0, 3 * install.GIB)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    said = refused(capsys, tmp_path / "venv", "--torch", torch)
    assert f"{install.NEEDED_GIB[torch]} GiB of free disk space are needed in {tmp_path}" in said
    assert ("TORCH=cpu" in said) == hint


def test_an_environment_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    assert not install._has_pip(str(python))
    python.parent.mkdir()
    python.symlink_to("/bin/false")
    assert not install._has_pip(str(python))
    assert install._has_pip(sys.executable)


def test_a_step_that_fails_says_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "print('no such package'); raise SystemExit(3)"]
    for way in (install.run, install.Downloads(1e9).follow):
        with pytest.raises(install.Missing, match=r"(?s)failed:.*no such package$"):
            way(command)
    assert capsys.readouterr().out == ""


NO_NAME = """\
error: Request failed after 3 retries in 6.2s
  cause: Failed to fetch: https://download.pytorch.org/whl/cpu/torch/
  cause: error sending request for url (https://download.pytorch.org/whl/cpu/torch/)
  cause: client error (Connect)
  cause: dns error
"""
"""What uv says where the host is unknown."""


def test_torchs_index_that_cannot_be_reached_ends_with_what_to_do() -> None:
    command = [sys.executable, "-c", f"print({NO_NAME!r}); raise SystemExit(2)"]
    with pytest.raises(install.Missing) as raised:
        install.Downloads(1e9).follow(command)
    *output, last = str(raised.value).splitlines()
    assert "  cause: dns error" in output
    assert "run plain `make demo`, which takes torch with CUDA from PyPI" in last


@pytest.mark.parametrize(
    "output",
    [
        NO_NAME.replace("download.pytorch.org", "pypi.org"),
        "error: there is no torch==9 at https://download.pytorch.org/whl/cpu/torch/",
    ],
)
def test_other_failures_do_not_blame_torchs_index(output: str) -> None:
    assert install.remedy(output) == ""


def test_downloads_are_told_by_quarters_of_what_was_announced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    downloads = install.Downloads(2000 * 2**20)
    small = "print('Downloading e (1.0KiB)'); print(' Downloaded e')"
    for names in ("ab", "cd"):  # two commands, one sum
        sizes = f"for n in {names!r}: print(f'Downloading {{n}} (500.0MiB)')"
        ends = f"for n in {names!r}: print(f' Downloaded {{n}}')"
        downloads.follow([sys.executable, "-c", f"{sizes}\n{ends}\n{small}"])
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["0.5", "1.0", "1.6", "2.1"]
    assert {line.split(maxsplit=1)[1] for line in told} == {"GB downloaded"}


def test_the_readme_says_the_size_that_is_announced() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"{install.DOWNLOAD_GB['']:g} GB to download, 7 GB unpacked" in readme


def test_every_package_is_pinned_with_its_hashes() -> None:
    for name, block in {**LOCK, **install.read_lock(install.PINNED)}.items():
        assert re.match(r"[A-Za-z0-9._-]+==\S+", block), name
        assert block.count("--hash=sha256:") >= 1, name
        assert "://" not in block, name


def test_all_that_the_project_asks_for_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(one for extra in extras for one in extra)]
    for requirement in map(Requirement, wanted):
        pins = re.findall(r"(?m)^\S+==(\S+)", LOCK[requirement.name.lower().replace("_", "-")])
        assert pins, requirement
        assert all(requirement.specifier.contains(pin) for pin in pins), requirement


def test_without_cuda_everything_else_stays() -> None:
    gone = {name for name in LOCK if install._comes_with_torch(name)}
    assert {"torch", "triton", "nvidia-cublas", "cuda-bindings"} <= gone
    assert not [name for name in gone if not re.match(r"torch$|triton$|nvidia-|cuda-", name)]
    assert install._requirement(LOCK["torch"]).startswith("torch==")


def test_uv_is_the_same_in_the_images() -> None:
    version = install._requirement(install.pinned("uv"))
    for folder in ("operator", "trainer_image"):
        assert f" {version} " in (ROOT / folder / "Dockerfile").read_text()
