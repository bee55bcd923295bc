"""What README.md and docs/first-study.md show is right."""

import re
from pathlib import Path

import pytest

from finetune_api.fields import IGNORED_ON_A_LAPTOP
from finetune_api.hints import dotted
from finetune_api.manifest import load_yaml, parse_study

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/first-study.md")


def manifest(page: str) -> str:
    """The study that a page shows."""
    (text,) = re.findall(r"```yaml\n(apiVersion.*?)```", (ROOT / page).read_text(), flags=re.S)
    return str(text)


@pytest.mark.parametrize("page", PAGES)
def test_the_study_of_a_page_is_valid(page: str) -> None:
    parse_study(load_yaml(manifest(page)))


@pytest.mark.parametrize("page", [*PAGES, "docs/commands.md"])
def test_links_of_a_page_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert "://" in target or ((ROOT / page).parent / target).exists(), target


def test_the_guide_names_what_a_laptop_ignores_in_the_study_of_the_readme() -> None:
    document = load_yaml(manifest("README.md"))

    def paths(value: object, at: tuple[str, ...]) -> set[str]:
        here = {dotted(at)} if at else set()
        if isinstance(value, dict):
            return here.union(*(paths(child, (*at, name)) for name, child in value.items()))
        return here

    ignored = paths(document, ()) & set(IGNORED_ON_A_LAPTOP)
    (sentence,) = re.findall(
        r"a laptop uses all but ([^;]*);", (ROOT / "docs/first-study.md").read_text()
    )
    assert {path.removeprefix("spec.") for path in ignored} == set(
        re.findall(r"`([^`]+)`", sentence)
    )


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_make_demo_ends_with_the_way_to_data_of_ones_own() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    assert "docs/first-study.md" in recipe.splitlines()[-1]
