"""docs/fields.md has every field of a study, each with what it is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from finetune_api.fields import (
    IGNORED_ON_A_LAPTOP,
    METRIC_DOCS,
    fields_markdown,
    sections,
)
from finetune_api.fixed_and_searched import FixedHyperparameters, SearchSpace
from finetune_api.study import StudySpec
from finetune_api.tasks import ALL_METRICS, TASKS

ROWS = {row.path: row for section in sections() for row in section.rows}
DOCS = Path(__file__).parents[2] / "docs"


def models(annotation: object) -> Iterator[type[BaseModel]]:
    """The models that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models(argument)


def fields(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[tuple[str, str]]:
    """Model and JSON name of every field below `model`, hyperparameters and domains aside."""
    seen.add(model)
    for field in model.model_fields.values():
        yield model.__name__, str(field.alias)
        for inner in models(field.annotation):
            if inner not in seen and inner not in (FixedHyperparameters, SearchSpace):
                yield from fields(inner, seen)


def test_every_field_of_a_study_has_a_row() -> None:
    expected = sorted(name for _, name in fields(StudySpec, set()))
    assert expected == sorted(path.rpartition(".")[2] for path in ROWS if path.startswith("spec."))


@pytest.mark.parametrize("path", ROWS)
def test_no_field_is_without_type_and_meaning(path: str) -> None:
    assert ROWS[path].kind
    assert re.search(r"\w{2}.*\.$", ROWS[path].meaning)


def test_what_a_laptop_ignores_are_fields() -> None:
    assert not set(IGNORED_ON_A_LAPTOP) - set(ROWS)


def test_every_metric_is_explained_and_has_its_tasks() -> None:
    assert tuple(METRIC_DOCS) == ALL_METRICS
    page = fields_markdown()
    for metric in ALL_METRICS:
        (row,) = re.findall(rf"^\| `{metric}` \| (.*)$", page, flags=re.M)
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[: len(TASKS)] == [
            "yes" if metric in task.metrics else "" for task in TASKS.values()
        ]


def test_every_row_of_a_table_has_the_columns_of_its_header() -> None:
    columns = 0
    for line in fields_markdown().splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        found = len(re.findall(r"(?<!\\)\|", line))
        columns = columns or found
        assert found == columns, line


def test_a_long_meaning_with_a_word_for_each_value_is_a_list_below_the_table() -> None:
    page = fields_markdown()
    assert "\n- ASHA promotes the best 1/reductionFactor" in page
    assert "\n- PASHA is ASHA that adds" in page


def test_links_lead_to_headings_and_pages_that_exist() -> None:
    page = fields_markdown()
    headings = re.findall(r"^## (.*)$", page, flags=re.M)
    anchors = {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings}
    written = re.sub(r"`[^`\n]*`", "", page)  # patterns look like links
    for target in re.findall(r"\]\(([^)]+)\)", written):
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert target == "first-study.md" or (DOCS / target).is_file()
