"""docs/techniques.md names tests that exist and hyperparameters that there are."""

import re
from pathlib import Path

from finetune_api.hyperparameters import JSON_NAMES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "techniques.md"


def rows() -> list[list[str]]:
    """The cells of each technique."""
    lines = PAGE.read_text().partition("## On real data")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in cells if row[0] != "technique" and not row[0].startswith("---")]


def test_every_technique_names_tests_that_exist() -> None:
    named = 0
    for technique, _, tests in rows():
        for module, names in re.findall(r"(test_\w+)(?:: ([\w, ]+))?", tests):
            text = (ROOT / "tests" / "trainer" / f"{module}.py").read_text()
            for name in filter(None, names.split(", ")):
                assert f"def test_{name}(" in text, f"{technique}: {module} has no test_{name}"
                named += 1
    assert named > 50


def test_every_hyperparameter_that_is_a_technique_is_on_the_page() -> None:
    plain = {
        "epochs",
        "batchSize",
        "maxLength",
        "learningRate",
        "adamBeta1",
        "adamBeta2",
        "adamEpsilon",
    }
    text = PAGE.read_text()
    assert not {name for name in JSON_NAMES if name not in text} - plain
