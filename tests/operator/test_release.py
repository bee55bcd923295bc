"""tools/release.py on a copy of the files it works on; and the workflows, as far as they can be read without GitHub."""

import datetime
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools import release

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yaml"))
ACTIONS = sorted(GITHUB.glob("actions/*/action.yaml"))

VERSION = "98.7.6"
TODAY = datetime.date(2026, 12, 1)
CHANGELOG = """# Changelog

The format is that of Keep a Changelog.

## [Unreleased]

### Added

- Something new.

### Fixed

- Something old.

## [0.0.1] - 2026-01-02

### Added

- The first thing.
"""
NOTES = "### Added\n\n- Something new.\n\n### Fixed\n\n- Something old."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with what a release changes."""
    for path in (release.PACKAGE, release.CHART, release.CRD):
        (tmp_path / path.parent).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    (tmp_path / release.RELEASED).mkdir(parents=True)
    (tmp_path / release.CHANGELOG).write_text(CHANGELOG)
    return tmp_path


def contents(root: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in root.rglob("*") if path.is_file()}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_prepared_release_passes_its_check(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main(["check", VERSION], root) == 1
    assert release.main(["prepare", VERSION], root) == 0
    assert release.main(["check", VERSION], root) == 0
    said = capsys.readouterr().out
    assert f"{release.RELEASED}/{VERSION}.yaml" in said
    assert said.endswith(f"{VERSION}: package, chart, CRD and changelog agree\n")


def test_preparing_changes_the_lines_with_the_version_alone(root: Path) -> None:
    before = contents(root)
    written = release.prepare(root, VERSION, TODAY)
    changed = {
        path.relative_to(root): set(text.splitlines()) - set(before.get(path, "").splitlines())
        for path, text in contents(root).items()
        if text != before.get(path)
    }
    assert set(changed) == set(written)
    assert changed[release.PACKAGE] == {f'version = "{VERSION}"'}
    assert changed[release.CHART] == {f"version: {VERSION}", f'appVersion: "{VERSION}"'}
    copy = root / release.RELEASED / f"{VERSION}.yaml"
    assert copy.read_text() == (root / release.CRD).read_text()


def test_what_was_unreleased_becomes_the_section_of_the_version(root: Path) -> None:
    release.prepare(root, VERSION, TODAY)
    text = (root / release.CHANGELOG).read_text()
    assert f"## [Unreleased]\n\n## [{VERSION}] - 2026-12-01\n\n### Added\n\n- Something n" in text
    assert release.sections(text) == {
        "Unreleased": "",
        VERSION: NOTES,
        "0.0.1": "### Added\n\n- The first thing.",
    }


def test_notes_are_the_section_of_the_version(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release.prepare(root, VERSION, TODAY)
    assert release.main(["notes", VERSION], root) == 0
    assert capsys.readouterr().out == f"{NOTES}\n"
    assert release.notes(root, "0.0.1") == "### Added\n\n- The first thing."


def test_the_next_release_needs_something_new(root: Path) -> None:
    release.prepare(root, VERSION, TODAY)
    with pytest.raises(release.ReleaseError, match="empty: nothing to release"):
        release.prepare(root, "98.7.7", TODAY)
    edit(root / release.CHANGELOG, "## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n\n- More.\n")
    release.prepare(root, "98.7.7", TODAY)
    release.check(root, "98.7.7")
    assert release.notes(root, VERSION) == NOTES


@pytest.mark.parametrize(
    ("version", "file", "old", "new", "why"),
    [
        ("v1.2.3", None, "", "", "a version is three numbers, like 1.2.3 (got v1.2.3)"),
        ("1.2", None, "", "", "(got 1.2)"),
        ("1.02.3", None, "", "", "(got 1.02.3)"),
        ("1.2.3-rc.1", None, "", "", "(got 1.2.3-rc.1)"),
        ("../1.2.3", None, "", "", "(got ../1.2.3)"),
        ("0.0.1", None, "", "", "0.0.1 is already released: it is in CHANGELOG.md"),
        (VERSION, release.CHANGELOG, "[Unreleased]", "[Next]", "has no section [Unreleased]"),
        (VERSION, release.CHANGELOG, "- Something", "### Something", "[Unreleased] of CHANGELOG"),
        (VERSION, release.PACKAGE, "\nversion = ", "\nversion=", '`version = "..."` (it has 0)'),
        (VERSION, release.CHART, "appVersion:", "app:", '`appVersion: "..."` (it has 0)'),
    ],
)
def test_what_cannot_be_released_is_refused_and_nothing_written(
    version: str,
    file: Path | None,
    old: str,
    new: str,
    why: str,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if file is not None:
        edit(root / file, old, new)
    before = contents(root)
    assert release.main(["prepare", version], root) == 1
    told = capsys.readouterr().err
    assert why in told
    assert told.count("\n") == 1
    assert contents(root) == before


def test_a_version_is_released_once(root: Path) -> None:
    (root / release.RELEASED / f"{VERSION}.yaml").touch()
    with pytest.raises(release.ReleaseError, match=f"already released: it is in .*{VERSION}.yaml"):
        release.prepare(root, VERSION, TODAY)


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        (release.PACKAGE, VERSION, "1.2.3", "pyproject.toml: version is 1.2.3, not 98.7.6"),
        (release.CHART, f"version: {VERSION}", "version: 1.2.3", "Chart.yaml: version is 1.2.3"),
        (release.CHART, f'"{VERSION}"', '"1.2.3"', "Chart.yaml: appVersion is 1.2.3"),
        (release.CHART, "appVersion:", "app:", "Chart.yaml: appVersion is missing"),
        (release.CRD, "kind: ", "kind:  ", "98.7.6.yaml differs from crds/finetunestudies.yaml"),
        (release.CHANGELOG, VERSION, "1.2.3", "CHANGELOG.md has no section [98.7.6]"),
        (release.CHANGELOG, "- Something", "### Some", "section [98.7.6] of CHANGELOG.md is empty"),
    ],
)
def test_the_check_says_what_differs(
    file: Path, old: str, new: str, why: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release.prepare(root, VERSION, TODAY)
    edit(root / file, old, new)
    assert release.main(["check", VERSION], root) == 1
    assert why in capsys.readouterr().err


def test_the_check_says_everything_that_differs(root: Path) -> None:
    with pytest.raises(release.ReleaseError) as refused:
        release.check(root, VERSION)
    assert str(refused.value).count("; ") == 4


def test_what_was_released_has_a_section_in_the_changelog() -> None:
    released = {path.stem for path in (ROOT / release.RELEASED).glob("*.yaml")} - {"preview"}
    assert released <= set(release.sections((ROOT / release.CHANGELOG).read_text()))


def loaded(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = loaded(path)["jobs"]
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """All steps of a workflow, or of an action of ours."""
    for part in [loaded(path)["runs"]] if path in ACTIONS else jobs(path).values():
        yield from part.get("steps", [part])


def stages_of(*paths: Path) -> set[str]:
    """The stages of .ci/run that workflows run."""
    runs = [step.get("run", "") for path in paths for step in steps(path)]
    named = re.findall(r"\.ci/run\b(.*)", "\n".join(runs))
    assert all(stages.strip() for stages in named), "without a stage, .ci/run runs all"
    return {stage for stages in named for stage in stages.split()}


def test_workflows_run_stages_that_there_are() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    body = re.search(r"^run\(\) \{\n(.*?)^\}", script, flags=re.M | re.S)
    usual = re.search(r"stages=\((\w[^)]*)\)", script)
    assert body is not None
    assert usual is not None
    known = set(re.findall(r"^ +(\w+)\)", body[1], flags=re.M))
    assert "install" in known
    assert stages_of(*WORKFLOWS) <= known
    assert stages_of(GITHUB / "workflows" / "ci.yaml") == set(usual[1].split())
    assert stages_of(GITHUB / "workflows" / "extended.yaml") == {"extended"}


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_or_our_own(path: Path) -> None:
    used = [step["uses"] for step in steps(path) if "uses" in step]
    for action in used:
        if action.startswith("./"):
            ours = ROOT / action
            assert ours.is_file() or (ours / "action.yaml").is_file(), action
        else:
            assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40}", action), action
    # Beside each commit stands the version, for the reader.
    assert len(re.findall(r"@[0-9a-f]{40} # v\d", path.read_text())) == sum("@" in a for a in used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_may_read_and_end(path: Path) -> None:
    assert loaded(path)["permissions"] == {"contents": "read"}
    for name, job in jobs(path).items():
        assert "uses" in job or job["timeout-minutes"] <= 360, name


RELEASE = GITHUB / "workflows" / "release.yaml"
IDENTITY = ".github/workflows/release.yaml@refs/tags/v$VERSION"


def test_what_is_pushed_is_signed_by_digest_in_the_same_job() -> None:
    pushing = {}
    for name, job in jobs(RELEASE).items():
        script = "\n".join(step.get("run", "") for step in job.get("steps", []))
        built = any(step.get("with", {}).get("push") for step in job.get("steps", []))
        if built or "helm push" in script:
            pushing[name] = re.findall(r"^ *cosign sign .*$", script, flags=re.M)
        # Whoever has this right can sign as the workflow.
        assert (job.get("permissions", {}).get("id-token") == "write") is (name in pushing)
    assert pushing.keys() == {"images", "release"}
    for signed in pushing.values():
        (line,) = signed
        assert re.search(r'cosign sign --yes "\$[^:]+@\$(DIGEST|\{digest:\?.*\})"$', line), line


def test_the_image_that_is_signed_is_the_one_that_was_built() -> None:
    steps_of = jobs(RELEASE)["images"]["steps"]
    (build,) = (step for step in steps_of if step.get("with", {}).get("push"))
    (sign,) = (step for step in steps_of if "cosign sign" in step.get("run", ""))
    assert sign["env"]["DIGEST"] == f"${{{{ steps.{build['id']}.outputs.digest }}}}"
    assert build["with"]["tags"] == f"{sign['env']['IMAGE']}:${{{{ needs.names.outputs.version }}}}"


def test_the_chart_is_pushed_with_the_registry_of_its_images() -> None:
    script = "\n".join(step.get("run", "") for step in jobs(RELEASE)["release"]["steps"])
    assert 'helm push "finetune-operator-$VERSION.tgz" "oci://$REGISTRY/charts"' in script
    (path,) = re.findall(r"yq -i '\.([\w.]+) = strenv\(REGISTRY\)' (\S+)", script)
    values = yaml.safe_load((ROOT / path[1]).read_text())
    for name in path[0].split("."):
        values = values[name]
    assert values == "", "the value is there, and empty in the checkout"
    assert script.index("yq -i") < script.index("helm package") < script.index("helm push")


def test_signatures_are_verified_before_the_release_and_as_users_are_told() -> None:
    names = [step.get("run", "") for step in jobs(RELEASE)["release"]["steps"]]
    (verified,) = (at for at, run in enumerate(names) if "cosign verify" in run)
    (released,) = (at for at, run in enumerate(names) if "gh release create" in run)
    assert verified < released
    page = (ROOT / "docs" / "releasing.md").read_text()
    for text in (names[verified], page):
        assert IDENTITY in text
        assert "https://token.actions.githubusercontent.com" in text
        assert "for what in finetune-operator finetune-trainer charts/finetune-operator" in text


def test_the_page_of_releases_names_what_there_is() -> None:
    page = (ROOT / "docs" / "releasing.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"^make ([a-z-]+)", page, flags=re.M)) <= targets
    assert set(re.findall(r"release\.py (\w+)", page)) == {"prepare", "check", "notes"}
    for path in re.findall(r"\]\((?!http)([^)#]+)", page):
        assert (ROOT / "docs" / path).exists(), path
