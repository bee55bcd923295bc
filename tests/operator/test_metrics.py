"""Series of studies: they follow the status and go with the study; and how lost watches are told."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY

from finetune_api.conditions import with_condition
from finetune_api.status import Spending, State, StudyPlan, StudyStatus, TrialCounts, TrialResult
from finetune_api.study import ObjectMeta
from finetune_operator.metrics import Listings, StudyMetrics
from tests.operator.studies import NOW

META = ObjectMeta(name="tickets", namespace="nlp", creation_timestamp=NOW)
STUDY = {"namespace": "nlp", "name": "tickets"}


@pytest.fixture
def shown() -> Iterator[StudyMetrics]:
    studies = StudyMetrics()
    yield studies
    studies.clear()


def status(state: State, **more: Any) -> StudyStatus:
    """A status of that state, as the operator writes it."""
    conditions = with_condition([], "Complete", state == "Complete", "Running", "", 1, NOW)
    conditions = with_condition(conditions, "Failed", state == "Failed", "Running", "", 1, NOW)
    waits = state in ("Pending", "Queued", "Starting")
    since = more.pop("since", NOW)
    conditions = with_condition(conditions, "Reconciling", waits, "Running", "", 1, since)
    return StudyStatus(state=state, conditions=conditions, observed_generation=1, **more)


def value(series: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(series, labels)


def series() -> list[str]:
    """Names of the series that there are of the study."""
    return [
        sample.name
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.labels.get("name") == "tickets"
    ]


def test_series_follow_the_status(shown: StudyMetrics) -> None:
    best = TrialResult(trial=1, value=0.75, epoch=3)
    top = [best, TrialResult(trial=2, value=0.5, epoch=9)]
    running = status(
        "Running",
        trials=TrialCounts(planned=8, running=2, completed=3),
        best=best,
        top_trials=top,
        plan=StudyPlan(expected_epochs=20),
        spending=Spending(epochs=12, epochs_saved=4, price=1.5),
        gpu_seconds=360,
    )
    shown.show(META, status("Starting"), running, NOW)
    assert value("finetune_study_state", state="Running", **STUDY) == 1
    assert value("finetune_study_trials", state="completed", **STUDY) == 3
    gauges = {
        "planned_trials": 8,
        "best_objective": 0.75,
        "highest_epoch": 9,
        "epochs": 12,
        "expected_epochs": 20,
        "epochs_saved": 4,
        "price": 1.5,
        "gpu_seconds": 360,
        "stalled": 0,
    }
    assert {name: value(f"finetune_study_{name}", **STUDY) for name in gauges} == gauges
    assert len(series()) == 16  # what docs/operations.md says


def test_a_study_is_in_one_state(shown: StudyMetrics) -> None:
    for state in ("Pending", "Queued", "Starting", "Running"):
        shown.show(META, StudyStatus(), status(state), NOW)
    assert value("finetune_study_state", state="Running", **STUDY) == 1
    assert series().count("finetune_study_state") == 1


def test_what_the_status_loses_is_not_shown_any_more(shown: StudyMetrics) -> None:
    priced = status("Running", spending=Spending(epochs=1, price=2))
    shown.show(META, StudyStatus(), priced, NOW)
    shown.show(META, priced, status("Running", spending=Spending(epochs=2)), NOW)
    assert value("finetune_study_price", **STUDY) is None
    assert value("finetune_study_epochs", **STUDY) == 2


def test_series_go_when_the_study_ends(shown: StudyMetrics) -> None:
    before = value("finetune_studies_finished_total", state="Complete") or 0
    running, complete = status("Running"), status("Complete")
    shown.show(META, StudyStatus(), running, NOW)
    shown.show(META, running, complete, NOW)
    shown.show(META, running, complete, NOW)  # the write failed and is tried again
    shown.show(META, complete, complete, NOW)
    assert series() == []
    assert value("finetune_studies", state="Complete") == 1
    assert value("finetune_studies_finished_total", state="Complete") == before + 1


def test_study_that_had_ended_before_the_operator_started_is_not_counted_again(
    shown: StudyMetrics,
) -> None:
    before = value("finetune_studies_finished_total", state="Failed")
    shown.show(META, status("Failed"), status("Failed"), NOW)
    assert value("finetune_studies_finished_total", state="Failed") == before


def test_series_go_with_the_study(shown: StudyMetrics) -> None:
    shown.show(META, StudyStatus(), status("Running"), NOW)
    shown.remove(("nlp", "tickets"))
    assert series() == []
    assert value("finetune_studies", state="Running") == 0


@pytest.mark.parametrize(
    ("begun", "old", "waited"),
    [
        ("from its creation", StudyStatus(), 60),
        ("from when it waited, to an operator that has started since", status("Queued"), 30),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_wait_is_measured(shown: StudyMetrics, begun: str, old: StudyStatus, waited: int) -> None:
    queued = status("Queued", since=NOW + timedelta(seconds=30))
    later = NOW + timedelta(seconds=60)
    count, total = waits()
    shown.show(META, old, queued, NOW + timedelta(seconds=31))
    shown.show(META, queued, status("Starting", since=NOW + timedelta(seconds=30)), later)
    shown.show(META, queued, status("Running"), later)
    shown.show(META, status("Running"), status("Running"), later + timedelta(hours=1))
    assert waits() == (count + 1, total + waited)


def test_wait_whose_beginning_nobody_knows_is_not_measured(shown: StudyMetrics) -> None:
    before = waits()
    shown.show(META, status("Running"), status("Running"), NOW)
    assert waits() == before


def test_wait_that_ends_otherwise_is_not_measured(shown: StudyMetrics) -> None:
    before = waits()
    for state in ("Pending", "Suspending", "Suspended", "Running"):
        shown.show(META, StudyStatus(), status(state), NOW)
    assert waits() == before


def waits() -> tuple[float, float]:
    """How many waits were measured, and their seconds in all."""
    name = "finetune_study_queue_wait_seconds"
    return value(f"{name}_count") or 0, value(f"{name}_sum") or 0


def event(kind: str | None, uid: str) -> dict[str, Any]:
    return {"type": kind, "object": {"kind": "Job", "metadata": {"uid": uid}}}


def restarts() -> float:
    return value("finetune_watch_restarts_total", kind="Job") or 0


def test_each_listing_after_the_first_is_one_restart() -> None:
    listings = Listings(by_namespace=False)
    before = restarts()
    for listing in range(3):
        for uid in "abc":
            listings.note("nlp", event(None, uid))
        assert restarts() == before + listing


def test_first_event_of_another_listing_is_noticed() -> None:
    listings = Listings(by_namespace=False)
    listing = [listings.note("nlp", event(None, uid)) for uid in "abc"]
    listings.note("nlp", event("MODIFIED", "a"))
    again = [listings.note("nlp", event(None, uid)) for uid in "bc"]  # a went meanwhile
    third = [listings.note("nlp", event(None, uid)) for uid in "bc"]
    assert (listing, again, third) == ([False] * 3, [True, False], [True, False])


def test_objects_that_came_by_the_watch_are_listed_again_too() -> None:
    listings = Listings(by_namespace=False)
    before = restarts()
    for kind in ("ADDED", "MODIFIED", None):
        listings.note("nlp", event(kind, "a"))
    assert restarts() == before + 1


def test_late_events_and_new_objects_are_no_restarts() -> None:
    listings = Listings(by_namespace=False)
    before = restarts()
    listings.note("nlp", event(None, "a"))
    listings.note("nlp", event("DELETED", "a"))
    listings.note("nlp", event("ADDED", "b"))
    listings.note("search", event(None, "a"))  # listed before it was deleted
    assert restarts() == before


def test_each_namespace_has_its_own_watch_where_they_are_named() -> None:
    listings = Listings(by_namespace=True)
    before = restarts()
    for namespace in ("nlp", "search", "nlp"):
        listings.note(namespace, event(None, namespace))
    assert restarts() == before + 1
