#!/usr/bin/env python3
"""Prepares a release in the checkout, checks that everything names the same version, and prints the release's notes.

    tools/release.py prepare 1.2.3
    tools/release.py check 1.2.3
    tools/release.py notes 1.2.3

The steps around it are in docs/releasing.md. It needs only the standard library, so that CI runs it without an environment.
"""

import argparse
import datetime
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PACKAGE = Path("pyproject.toml")
CHART = Path("charts/finetune-operator/Chart.yaml")
CRD = Path("crds/finetunestudies.yaml")
RELEASED = Path("tests/cluster/released")
"""The CRD of each release, as `<version>.yaml`; upgrades are tested from these."""

CHANGELOG = Path("CHANGELOG.md")
UNRELEASED = "Unreleased"

_NUMBER = r"(?:0|[1-9]\d*)"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}")
_SECTION = re.compile(r"^## \[(.+?)\].*\n?", re.M)
_LINES = {
    PACKAGE: {"version": 'version = "{}"'},
    CHART: {"version": "version: {}", "appVersion": 'appVersion: "{}"'},
}
"""The lines that name the version, by file and field."""


class ReleaseError(Exception):
    """The release cannot be made; the text is one sentence that says why."""


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run one command; 0 if it succeeded, 1 with the reasons on stderr if not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in {
        "prepare": "write the version, the CRD's copy and the changelog's section",
        "check": "check that a prepared version is the same everywhere",
        "notes": "print the changelog's section of a version",
    }.items():
        commands.add_parser(name, help=purpose).add_argument("version", help="for example 1.2.3")
    parsed = parser.parse_args(arguments)
    try:
        match parsed.command:
            case "prepare":
                changed = prepare(root, parsed.version, datetime.date.today())
                print(f"prepared {parsed.version}:", *changed, sep="\n  ")
            case "check":
                check(root, parsed.version)
                print(f"{parsed.version}: package, chart, CRD and changelog agree")
            case "notes":
                print(notes(root, parsed.version))
            case unknown:
                raise ValueError(f"{unknown} has a parser, but no function")
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(root: Path, version: str, today: datetime.date) -> list[Path]:
    """Write what a release needs; returns the files that were written, relative to `root`.

    Raises ReleaseError, and then writes nothing.
    """
    _require_version(version)
    copy = RELEASED / f"{version}.yaml"
    changelog = _read(root, CHANGELOG)
    if (root / copy).exists() or version in sections(changelog):
        where = copy if (root / copy).exists() else CHANGELOG
        raise ReleaseError(f"{version} is already released: it is in {where}")
    written = {path: _with_version(root, path, version) for path in _LINES}
    written[copy] = _read(root, CRD)
    written[CHANGELOG] = _with_section(changelog, version, today)
    for path, text in written.items():
        (root / path).write_text(text, encoding="utf-8")
    return list(written)


def check(root: Path, version: str) -> None:
    """Raise ReleaseError, with everything that is wrong, unless the checkout is that of a prepared `version`.

    It is meant for the tagged commit: after that, the CRD may change again.
    """
    _require_version(version)
    found = {f"{CHART}: {field}": value for field, value in _chart_versions(root).items()}
    found[f"{PACKAGE}: version"] = tomllib.loads(_read(root, PACKAGE))["project"]["version"]
    wrong = [
        f"{place} is {value}, not {version}"
        for place, value in sorted(found.items())
        if value != version
    ]
    copy = RELEASED / f"{version}.yaml"
    if not (root / copy).exists():
        wrong.append(f"{copy} is missing")
    elif _read(root, copy) != _read(root, CRD):
        wrong.append(f"{copy} differs from {CRD}")
    try:
        notes(root, version)
    except ReleaseError as error:
        wrong.append(str(error))
    if wrong:
        raise ReleaseError("; ".join(wrong))


def notes(root: Path, version: str) -> str:
    """The changelog's section of `version`, without its heading. Raises ReleaseError if it has none or an empty one."""
    text = sections(_read(root, CHANGELOG)).get(version)
    if text is None:
        raise ReleaseError(f"{CHANGELOG} has no section [{version}]")
    if _is_empty(text):
        raise ReleaseError(f"the section [{version}] of {CHANGELOG} is empty")
    return text


def sections(changelog: str) -> dict[str, str]:
    """The text of each section of a changelog by version, newest first."""
    headings = list(_SECTION.finditer(changelog))
    ends = [heading.start() for heading in headings[1:]] + [len(changelog)]
    return {
        heading[1]: changelog[heading.end() : end].strip("\n")
        for heading, end in zip(headings, ends, strict=True)
    }


def _require_version(version: str) -> None:
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"a version is three numbers, like 1.2.3 (got {version})")


def _with_version(root: Path, path: Path, version: str) -> str:
    """The text of a file with `version` in each of the lines that name it."""
    text = _read(root, path)
    for line in _LINES[path].values():
        before, after = line.split("{}")
        pattern = rf"^{re.escape(before)}[^\"\n]*{re.escape(after)}$"
        text, count = re.subn(pattern, line.format(version), text, flags=re.M)
        if count != 1:
            raise ReleaseError(f"{path} must have one line `{line.format('...')}` (it has {count})")
    return text


def _with_section(changelog: str, version: str, today: datetime.date) -> str:
    """The changelog with its unreleased changes under `version`."""
    unreleased = sections(changelog).get(UNRELEASED)
    if unreleased is None:
        raise ReleaseError(f"{CHANGELOG} has no section [{UNRELEASED}]")
    if _is_empty(unreleased):
        raise ReleaseError(
            f"the section [{UNRELEASED}] of {CHANGELOG} is empty: nothing to release"
        )
    heading = f"## [{UNRELEASED}]\n"
    return changelog.replace(heading, f"{heading}\n## [{version}] - {today.isoformat()}\n", 1)


def _is_empty(section: str) -> bool:
    """Whether a section has nothing but headings."""
    return all(not line.strip() or line.startswith("#") for line in section.splitlines())


def _chart_versions(root: Path) -> dict[str, str]:
    text = _read(root, CHART)
    found = {field: re.search(rf'^{field}: "?([^"\n]*)"?$', text, re.M) for field in _LINES[CHART]}
    return {field: line[1] if line else "missing" for field, line in found.items()}


def _read(root: Path, path: Path) -> str:
    return (root / path).read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
