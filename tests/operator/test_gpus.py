"""GPUs that studies hold: from the first pod with a node to the last that is gone."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from prometheus_client import REGISTRY

from finetune_operator import names
from finetune_operator.gpus import GPUS_ALLOCATED, allocated
from finetune_operator.observe import Key, PodView
from finetune_operator.store import Store

CLASSES = {("nlp", "a"): "large"}


def pod(
    name: str,
    study: str = "a",
    node: str = "n1",
    phase: str = "Running",
    version: int = 1,
    gpus: Mapping[str, int | str] = MappingProxyType({"nvidia.com/gpu": "2"}),
) -> dict[str, Any]:
    """A pod of an attempt, as the API serves it, with these limits of its containers."""
    limits = {"cpu": "4", **gpus}
    owner = {"kind": "Job", "name": f"{study}-1", "uid": "job", "controller": True}
    owner["apiVersion"] = "batch/v1"
    return {
        "metadata": {
            "name": name,
            "namespace": "nlp",
            "uid": name,
            "resourceVersion": str(version),
            "labels": {names.STUDY_LABEL: study, names.UID_LABEL: "uid"},
            "ownerReferences": [owner],
        },
        "spec": {
            **({"nodeName": node} if node else {}),
            "containers": [{"name": "trainer", "resources": {"limits": limits}}, {"name": "side"}],
        },
        "status": {"phase": phase},
    }


def class_of(key: Key) -> str:
    return CLASSES.get(key, "")


def held(store: Store) -> dict[tuple[str, str], int]:
    return dict(allocated(store.pods(), class_of))


@pytest.mark.parametrize(
    ("body", "gpus"),
    [
        (pod("p"), 2),
        (pod("p", phase="Pending"), 2),  # it pulls its image, and nobody else can have them
        (pod("p", node="", phase="Pending"), 0),
        (pod("p", phase="Succeeded"), 0),
        (pod("p", phase="Failed"), 0),
        (pod("p", gpus={}), 0),
        (pod("p", gpus={"amd.com/gpu": 1, "nvidia.com/mig-1g.5gb": "3"}), 4),
    ],
)
def test_a_pod_holds_gpus_while_it_has_a_node(body: dict[str, Any], gpus: int) -> None:
    assert PodView.of(body).gpus == gpus


def test_containers_that_run_before_the_others_take_turns_with_them() -> None:
    body = pod("p")
    body["spec"]["initContainers"] = [
        {"name": "fetch"},
        {"name": "probe", "resources": {"limits": {"nvidia.com/gpu": "3"}}},
    ]
    assert PodView.of(body).gpus == 3


def test_they_are_counted_from_the_first_bound_pod_to_the_last_that_is_gone() -> None:
    store = Store()
    steps: list[Callable[[], object]] = [
        lambda: store.put("nlp", PodView, pod("p0", node="", phase="Pending")),
        lambda: store.put("nlp", PodView, pod("p0", phase="Pending", version=2)),
        lambda: store.put("nlp", PodView, pod("p1", version=3)),
        lambda: store.put("nlp", PodView, pod("p0", phase="Succeeded", version=4)),
        lambda: store.remove("nlp", PodView, pod("p1", version=5)),
    ]
    told = []
    for step in steps:
        step()
        told.append(held(store))
    large = ("nlp", "large")
    assert told == [{}, {large: 2}, {large: 4}, {large: 2}, {}]


def test_classes_are_told_apart_and_strangers_are_not_counted() -> None:
    store = Store()
    stranger = pod("p2")
    del stranger["metadata"]["ownerReferences"]
    for body in (pod("p0"), pod("p1", study="b"), stranger):
        store.put("nlp", PodView, body)
    assert held(store) == {("nlp", "large"): 2, ("nlp", ""): 2}


def test_the_series_is_what_its_source_says_when_it_is_asked() -> None:
    def shown() -> float | None:
        return REGISTRY.get_sample_value(
            "finetune_gpus_allocated", {"namespace": "nlp", "class": "large"}
        )

    assert shown() is None
    GPUS_ALLOCATED.source = lambda: {("nlp", "large"): 6}
    assert shown() == 6
    GPUS_ALLOCATED.source = dict
    assert shown() is None
