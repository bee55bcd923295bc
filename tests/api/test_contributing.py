"""CONTRIBUTING.md names files, commands and modules that are there, and what its recipes say of all holds of all."""

import re
from pathlib import Path
from typing import get_args

import pytest

from finetune_api.hyperparameters import JSON_NAMES
from finetune_api.search import SchedulerType
from finetune_api.tasks import TASKS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = {
    title: body.split("\n## ")[0]
    for title, body in (part.split("\n", 1) for part in PAGE.split("\n## ")[1:])
}


def files(recipe: str) -> list[str]:
    return [name for name in re.findall(r"`([\w./-]+)`", recipe) if "/" in name]


def test_each_named_file_command_and_link_is_there() -> None:
    named = files(PAGE)
    assert len(named) > 30
    assert [name for name in named if not (ROOT / name).exists()] == []
    targets = (ROOT / "Makefile").read_text()
    commands = re.findall(r"`make ([\w-]+)`", PAGE)
    assert [name for name in commands if f"\n{name}:" not in targets] == []
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_decisions_are_listed_and_there() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\(([^)]+)\)", (folder / "README.md").read_text())
    there = [path.name for path in folder.glob("*.md") if path.name != "README.md"]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("name", sorted(JSON_NAMES))
def test_each_hyperparameter_is_where_its_recipe_says(name: str) -> None:
    generated = ("crds/finetunestudies.yaml", "docs/hyperparameters.md")
    for file in (*generated, "charts/finetune-operator/files/crd.yaml"):
        assert name in (ROOT / file).read_text(), file


@pytest.mark.parametrize("name", [name for name in get_args(SchedulerType) if name != "Auto"])
def test_each_scheduler_is_where_its_recipe_says(name: str) -> None:
    for file in files(RECIPES["A scheduler"]):
        if file.endswith((".py", ".md")) and file not in (
            "crds/finetune_api/rungs.py",
            "trainer_image/finetune_trainer/search/brackets.py",
        ):
            assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), file


@pytest.mark.parametrize("name", sorted(TASKS))
def test_each_task_is_where_its_recipe_says(name: str) -> None:
    for file in ("tests/trainer/test_tasks.py", "tests/trainer/test_training_pairs.py"):
        assert file in files(RECIPES["A task"])
        assert f'"{name}"' in (ROOT / file).read_text(), file
    modules = (ROOT / "trainer_image/finetune_trainer/tasks").glob("*.py")
    assert any(f'name = "{name}"' in path.read_text() for path in modules)
