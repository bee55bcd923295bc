"""docs/operations.md speaks of what there is."""

import re
from typing import get_args

import yaml
from prometheus_client import REGISTRY

from finetune_api.status import ConditionType, Reason
from finetune_operator import gpus, metrics  # noqa: F401 (they register the metrics)
from tests.chart.helm import CHART, ROOT


def test_it_lists_the_operators_metrics() -> None:
    there = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in REGISTRY.collect()
        if family.name.startswith("finetune_")
    }
    assert first_column("Metrics") == there


def test_it_lists_the_alerts() -> None:
    text = (CHART / "files" / "alerts.yaml").read_text()
    groups = yaml.safe_load(text)["groups"]
    assert first_column("Alerts") == {alert["alert"] for g in groups for alert in g["rules"]}


def test_it_lists_conditions_and_reasons_of_the_contract() -> None:
    words = first_column("Conditions")
    assert words >= set(get_args(ConditionType))
    assert words <= {*get_args(ConditionType), *get_args(Reason)}


def first_column(section: str) -> set[str]:
    """What stands in the first column of the tables of a section."""
    text = (ROOT / "docs" / "operations.md").read_text()
    (body,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    return set(re.findall(r"^\| `(\w+)` \|", body, flags=re.M))
