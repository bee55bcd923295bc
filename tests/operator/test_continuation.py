"""A study that has ended goes on when the limit that ended it is loosened, or when it is asked to; at nothing else."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from finetune_api.classes import FineTuneClass
from finetune_api.limits import limits_of
from finetune_api.search import Budget
from finetune_api.status import (
    FinalModel,
    Findings,
    JudgedBy,
    LastEnd,
    Limits,
    StudyStatus,
    TrialCounts,
    TrialResult,
)
from finetune_api.study import FineTuneStudy
from finetune_operator import names
from finetune_operator.continuation import continuation
from finetune_operator.decide import decide, unremembered
from finetune_operator.decision import Decision, Deletion
from finetune_operator.observe import JobView, Observed, PodView
from finetune_operator.platform import Platform
from tests.operator.studies import (
    JOB_UID,
    NOW,
    SETTINGS,
    job,
    kuberay_job,
    later,
    observed,
    pod,
    progress,
    study,
)

BUDGET: dict[str, Any] = {
    "maxTrials": 4,
    "maxFailedTrials": 1,
    "maxDurationSeconds": 60,
    "maxGpuHours": 0.5,
    "pricePerGpuHour": 2.0,
    "maxPrice": 1.0,
    "maxTrialsWithoutImprovement": 2,
}
TARGET = {"metric": "f1_macro", "target": 0.7}
FOUND = Findings(
    trials=TrialCounts(planned=4, completed=4, summary="4/4"),
    best=TrialResult(trial=3, value=0.75, params={"epochs": 2}),
    final=FinalModel(model_uri="s3://bucket/model"),
)
ENDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "trials": ("SearchFinished", "all 4 trials ended", ("maxTrials",)),
    "seconds": (
        "BudgetSpent",
        "spec.budget.maxDurationSeconds = 60 passed",
        ("maxDurationSeconds",),
    ),
    "hours": ("BudgetSpent", "spec.budget.maxGpuHours = 0.5 passed", ("maxGpuHours",)),
    "price": ("BudgetSpent", "spec.budget.maxPrice = 1 passed", ("maxPrice", "pricePerGpuHour")),
    "of a driver with other words": (
        "BudgetSpent",
        "the time is over",
        ("maxDurationSeconds", "maxGpuHours", "maxPrice", "pricePerGpuHour"),
    ),
    "without improvement": (
        "NoImprovement",
        "2 trials in a row were no better",
        ("maxTrialsWithoutImprovement",),
    ),
    "target": ("TargetReached", "f1_macro reached 0.7", ("target",)),
    "failed": (
        "TooManyFailedTrials",
        "2 trials failed, more than spec.budget.maxFailedTrials = 1; trial 1: Internal: x",
        ("maxFailedTrials",),
    ),
    "failed alike": ("TooManyFailedTrials", "the first 3 trials failed alike; trial 0: x", ()),
    "no value": ("NoSuccessfulTrial", "none of 4 trials has a value (Diverged)", ("maxTrials",)),
    "no value in time": (
        "NoSuccessfulTrial",
        "spec.budget.maxDurationSeconds = 60 passed before a trial had a value",
        ("maxDurationSeconds",),
    ),
    "refit": ("RefitFailed", "CUDA error", ()),
    "data": ("DataError", "spec.dataset.labelColumn: must name a column", ()),
}
FAILED = ("TooManyFailedTrials", "NoSuccessfulTrial", "RefitFailed", "DataError")
LOOSER: dict[str, list[Any]] = {
    "maxTrials": [5, 400],
    "maxFailedTrials": [2],
    "maxDurationSeconds": [61, None],
    "maxGpuHours": [0.51, None],
    "maxPrice": [1.5, None],
    "pricePerGpuHour": [1.0],
    "maxTrialsWithoutImprovement": [3, None],
    "target": [0.9, None],
}
TIGHTER: dict[str, Any] = {
    "maxTrials": 3,
    "maxFailedTrials": 0,
    "maxDurationSeconds": 59,
    "maxGpuHours": 0.4,
    "maxPrice": 0.5,
    "pricePerGpuHour": 3.0,
    "maxTrialsWithoutImprovement": 1,
    "target": 0.5,
    "maxParallelTrials": 1,
}


def limited(status: StudyStatus | None = None, **edits: Any) -> FineTuneStudy:
    """A study with every limit; `edits` are of these, of other parts of its spec, or of its metadata."""
    target = {**TARGET, "target": edits.pop("target", TARGET["target"])}
    fields = ("generation", "annotations")
    meta: dict[str, Any] = {name: edits.pop(name) for name in fields if name in edits}
    known = (*BUDGET, "maxParallelTrials")
    budget = {**BUDGET, **{name: edits.pop(name) for name in known if name in edits}}
    made = study(
        status,
        budget={name: value for name, value in budget.items() if value is not None},
        objective={name: value for name, value in target.items() if value is not None},
        **edits,
    )
    return made.model_copy(update={"metadata": made.metadata.model_copy(update=meta)})


def seen_ending(end: str, **more: Any) -> Observed:
    reason, message, _ = ENDS[end]
    failed = reason in FAILED
    says = progress(
        "Failed" if failed else "Finished", reason=reason, message=message, findings=FOUND
    )
    made = job(**({"failed": "exit 42"} if failed else {"succeeded": True}), **more)
    return observed(made, document=says)


def ended(end: str = "trials", **edits: Any) -> StudyStatus:
    """The status of a study that has ended like that."""
    before = decide(limited(**edits), Observed(), SETTINGS, NOW).status
    done = decide(limited(before, **edits), seen_ending(end), SETTINGS, later(60)).status
    assert done.finished
    assert done.last_end is not None
    return done


def of_before(status: StudyStatus) -> StudyStatus:
    """The status as an earlier version would have written it."""
    return status.model_copy(update={"last_end": None, "winner": None})


def look(made: FineTuneStudy, seen: Observed | None = None, at: datetime | None = None) -> Decision:
    return decide(made, seen or Observed(), SETTINGS, at or later(999), confirmed=True)


def goes_on(decision: Decision) -> bool:
    """Whether it does; nothing of the next attempt begins with the same decision."""
    assert (decision.create, decision.apply) == ((), ())
    return not decision.status.finished


@pytest.mark.parametrize("old", [False, True], ids=["", "ended under an earlier version"])
@pytest.mark.parametrize("end", ENDS)
def test_only_the_limit_that_ended_a_study_lets_it_go_on(end: str, old: bool) -> None:
    status = ended(end)
    status = of_before(status) if old else status
    for name, values in LOOSER.items():
        for value in values:
            edited = limited(status, generation=2, **{name: value})
            decision = look(edited)
            helps = name in ENDS[end][2]
            if old and (name == "pricePerGpuHour" or end == "of a driver with other words"):
                continue  # nobody knows what the limits were
            if old and name == "target" and not value:
                assert goes_on(decision) == helps
                continue
            assert goes_on(decision) == helps, (name, value)
            reasons = [event.reason for event in decision.events]
            assert reasons == (["Reopened"] if helps else ["NoEffect"]), (name, value)
            again = look(limited(decision.status, generation=2, **{name: value}))
            assert helps or (again.status, again.events) == (decision.status, ())


@pytest.mark.parametrize("end", ENDS)
def test_limits_that_are_tightened_or_end_nothing_are_told_once_and_change_nothing(
    end: str,
) -> None:
    status = ended(end)
    for name, value in TIGHTER.items():
        edited = limited(status, generation=2, **{name: value})
        decision = look(edited)
        assert not goes_on(decision)
        (event,) = decision.events
        assert (event.type, event.reason) == ("Warning", "NoEffect")
        where = "objective" if name == "target" else "budget"
        assert event.message.startswith(f"spec.{where}.{name} has no effect: the study has ended (")
        assert names.RETRY in event.message
        same = limited(decision.status, generation=2, **{name: value})
        assert look(same).events == ()
        back = look(limited(decision.status, generation=3))
        assert not goes_on(back)
        assert back.events == () or status.is_true("Failed")
    told = look(limited(status, generation=2, maxParallelTrials=1)).status
    assert told.message == status.message
    assert [c for c in told.conditions if c.status == "True"] == [
        c for c in status.conditions if c.status == "True"
    ]


@pytest.mark.parametrize(
    "edits",
    [
        {},
        {"ttlSecondsAfterFinished": 10**6},
        {"suspend": True},
        {"annotations": {"team": "nlp"}},
        {"cluster": {"workers": 3}},
    ],
    ids=["nothing", "ttl", "suspend", "another annotation", "cluster"],
)
@pytest.mark.parametrize("end", ENDS)
def test_nothing_else_begins_paid_work(end: str, edits: dict[str, Any]) -> None:
    for status in (ended(end), of_before(ended(end))):
        for generation in (1, 2):
            made = limited(status, generation=generation, **edits)
            for seen in (Observed(), seen_ending(end)):
                decision = look(made, seen)
                assert not goes_on(decision)
                assert decision.delete == ()
                if edits.get("suspend"):
                    assert "spec.suspend" in decision.events[0].message
                assert look(made.model_copy(update={"status": decision.status})).events == ()


@pytest.mark.parametrize("old", [False, True], ids=["", "ended under an earlier version"])
@pytest.mark.parametrize("end", ENDS)
def test_new_value_of_the_annotation_begins_any_study_again_and_only_once(
    end: str, old: bool
) -> None:
    status = of_before(ended(end)) if old else ended(end)
    asked = {"annotations": {names.RETRY: "1"}}
    decision = look(limited(status, **asked))
    assert goes_on(decision)
    assert decision.status.retry == "1"
    on = look(limited(decision.status, **asked))
    assert on.status.attempts == 2
    done = job(2, uid="2", succeeded=True)
    says = progress("Finished", reason="SearchFinished", findings=FOUND)
    over = look(limited(on.status, **asked), observed(done, document=says))
    assert over.status.finished
    assert not goes_on(look(limited(over.status, **asked)))
    gone = look(limited(over.status))
    assert not goes_on(gone)
    assert gone.status.retry is None
    assert goes_on(look(limited(gone.status, **asked)))
    assert goes_on(look(limited(over.status, annotations={names.RETRY: "2"})))


def test_study_that_is_suspended_goes_on_when_it_is_resumed() -> None:
    for wish in ({"maxTrials": 8}, {"annotations": {names.RETRY: "1"}}):
        edits: dict[str, Any] = {**wish, "generation": 2, "suspend": True}
        waits = look(limited(ended(), **edits))
        assert not goes_on(waits)
        assert "as soon as spec.suspend is false" in waits.events[0].message
        assert look(limited(waits.status, **edits)).events == ()
        assert goes_on(look(limited(waits.status, **{**edits, "suspend": False})))


def test_walked_grid_has_no_more_trials_whatever_the_budget_allows() -> None:
    grid: dict[str, Any] = {
        "search": {"algorithm": "Grid"},
        "searchSpaces": [{"batchSize": {"values": [8, 16]}, "epochs": {"values": [1, 2]}}],
    }
    status = ended(**grid)
    decision = look(limited(status, generation=2, maxTrials=9, **grid))
    assert not goes_on(decision)
    assert "No combination of the search space is left to try" in decision.events[0].message
    fewer = ended(maxTrials=3, **grid)
    assert goes_on(look(limited(fewer, generation=2, maxTrials=4, **grid)))


def test_smaller_is_harder_where_the_objective_is_minimized() -> None:
    loss: dict[str, Any] = {"metric": "loss"}

    def made(target: float, status: StudyStatus | None = None) -> FineTuneStudy:
        return study(status, objective={**loss, "target": target})

    before = decide(made(0.5), Observed(), SETTINGS, NOW).status
    done = decide(made(0.5, before), seen_ending("target"), SETTINGS, later(60)).status
    assert continuation(made(0.4, done)).why
    assert not continuation(made(0.6, done)).why


# -- the attempt that follows


def test_next_attempt_begins_when_nothing_is_left_of_the_last_and_keeps_what_was_found() -> None:
    status = ended()
    edited = limited(status, generation=2, maxTrials=8)
    first = decide(edited, seen_ending("trials"), SETTINGS, later(99))
    assert first.confirm
    decision = look(edited, seen_ending("trials"))
    assert decision.delete == (Deletion("Job", "tickets-1", JOB_UID),)
    on = decision.status
    assert (on.state, on.completion_time, on.attempts) == ("Pending", None, 1)
    assert {c.type: (c.status, c.reason) for c in on.conditions} == {
        "Complete": ("False", "Reopened"),
        "Failed": ("False", "Reopened"),
        "Reconciling": ("True", "Reopened"),
        "Running": ("False", "Reopened"),
        "Stalled": ("False", "Reopened"),
        "Suspended": ("False", "Reopened"),
    }
    assert on.message == "the study goes on after its end: spec.budget.maxTrials is 8 now"
    assert (on.best, on.final, on.trials) == (status.best, status.final, status.trials)

    def again(*left: JobView | PodView) -> Decision:
        made = limited(on, generation=2, maxTrials=8)
        return look(made, observed(*left, document=progress("Finished", findings=FOUND)))

    for left in (
        (job(succeeded=True),),
        (job(succeeded=True, deleting=True),),
        (job(succeeded=True, deleting=True), pod()),
        (pod(),),
    ):
        waits = again(*left)
        assert (waits.create, waits.status.state) == ((), "Pending")
        assert not waits.status.finished, "the last attempt is not judged again"
    assert again(job(succeeded=True)).delete == (Deletion("Job", "tickets-1", JOB_UID),)
    begins = again()
    assert [made["metadata"]["name"] for made in begins.create if made["kind"] == "Job"] == [
        "tickets-2"
    ]
    assert begins.status.attempts == 2
    assert begins.status.best == status.best


def test_failures_of_the_time_before_the_end_are_forgotten() -> None:
    tired = limited(StudyStatus(attempts=5, failed_attempts=4))
    gone = look(tired, observed(job(5, failed="BackoffLimitExceeded")))
    assert gone.status.is_true("Failed")
    on = look(limited(gone.status, annotations={names.RETRY: "1"}))
    assert on.status.failed_attempts == 0


def test_each_end_has_a_winner_of_its_own() -> None:
    status, found = ended(), []
    for generation, attempt in ((1, 1), (2, 2), (3, 3)):
        found.append(status.winner)
        trials = {"generation": generation + 1, "maxTrials": 4 + attempt}
        on = look(limited(status, **trials)).status
        assert on.winner == status.winner, "it is the last until there is another"
        on = look(limited(on, **trials)).status
        done = job(attempt + 1, succeeded=True, made_for=f"{generation + 1}/x")
        says = progress("Finished", reason="SearchFinished", findings=FOUND)
        decision = look(limited(on, **trials), observed(done, document=says))
        (winner,) = decision.create
        assert winner["metadata"]["name"] == decision.status.winner
        status = decision.status
    assert found == ["tickets-winner", "tickets-winner-2", "tickets-winner-3"]
    before = look(limited(of_before(ended()), generation=2, maxTrials=8)).status
    assert before.winner == "tickets-winner"


# -- what the end was decided with


def with_limits(seen: Observed, limits: Limits, term: int = 1) -> Observed:
    progress_of = names.progress_config("tickets")
    said = JudgedBy(term=term, limits=limits).model_dump_json()
    view = replace(seen.configs[progress_of], limits=said)
    return replace(seen, configs={**seen.configs, progress_of: view})


@pytest.mark.parametrize("engine", [job, kuberay_job])
def test_edit_that_the_driver_had_not_heard_of_is_not_lost(engine: Any) -> None:
    """The winner of four trials is trained again for an hour; meanwhile somebody raises `maxTrials`."""
    old, edited = limited(), limited(generation=2, maxTrials=8)
    then = limits_of(old.spec.budget, old.spec.objective.target)
    made = engine(succeeded=True, made_for=names.made_for(old))
    says = progress("Finished", reason="SearchFinished", findings=FOUND, job_uid=made.run_id)
    seen = with_limits(observed(made, document=says), then)
    done = look(edited, seen)
    assert done.status.is_true("Complete")
    assert goes_on(look(limited(done.status, generation=2, maxTrials=8), seen))
    for stale in (with_limits(seen, then, term=2), observed(made, document=says)):
        done = look(edited, stale)
        assert done.status.last_end is not None
        assert done.status.last_end.limits == limits_of(edited.spec.budget, 0.7)


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("later_limit", [10, 99, None])
def test_a_class_that_allows_more_lets_no_ended_study_go_on_but_an_edit_of_the_study_does(
    edited: bool, later_limit: int | None
) -> None:
    """A driver decides within the limits of the study's class; the study's own stay what its edits are compared with."""

    def with_class(limit: int | None) -> Platform:
        spec = {"limits": {"trials": limit}, "pricePerGpuHour": 3}
        given = FineTuneClass.model_validate(
            {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "FineTuneClass",
                "metadata": {"name": "gpu"},
                "spec": {**spec, "default": True},
            }
        )
        return Platform({"gpu": given})

    own = {"budget": {"maxDurationSeconds": 600}}
    first = study(None, **own)
    now = {"generation": 2} if edited else {}
    after = first.model_copy(update={"metadata": first.metadata.model_copy(update=now)})
    made = job(succeeded=True, made_for=names.made_for(first))
    says = progress("Finished", reason="SearchFinished", findings=FOUND)
    told = Limits(
        max_trials=10, max_duration_seconds=600, price_per_gpu_hour=3, max_failed_trials=3
    )
    seen = replace(with_limits(observed(made, document=says), told), platform=with_class(10))
    done = look(after, seen).status
    assert done.is_true("Complete")
    assert done.last_end is not None
    assert done.last_end.limits == limits_of(after.spec.budget, None)
    ended_study = after.model_copy(update={"status": done})
    assert not goes_on(look(ended_study, replace(seen, platform=with_class(later_limit))))
    loosened = study(done, budget={"maxTrials": 20})
    meta = loosened.metadata.model_copy(update={"generation": 3})
    tried = look(loosened.model_copy(update={"metadata": meta}), seen)
    assert not goes_on(tried)  # from no limit of its own to 20: no looser
    assert "no effect" in "".join(event.message for event in tried.events)


def test_driver_cannot_make_a_study_go_on_for_ever() -> None:
    """It says that it decided with limits that the study had not: they count only where it was edited meanwhile."""
    made = job(succeeded=True, made_for=names.made_for(limited()))
    says = progress("Finished", reason="SearchFinished", findings=FOUND)
    seen = with_limits(observed(made, document=says), Limits(max_trials=1))
    done = look(limited(), seen)
    assert not goes_on(look(limited(done.status), seen))


def test_limits_have_every_part_of_a_budget() -> None:
    assert {*Limits.model_fields} == {*Budget.model_fields, "target"}
    everything = dict.fromkeys(Budget.model_fields, 2)
    assert limits_of(Budget(**everything), 2) == Limits(**everything, target=2)


# -- what is asked for in vain


def test_retry_that_is_asked_of_a_study_that_has_not_ended_is_told_once() -> None:
    running = look(limited(), observed(job(), pod(), document=progress())).status
    asked = limited(running, annotations={names.RETRY: "1"})
    seen = observed(job(), pod(), document=progress())
    decision = look(asked, seen)
    assert [event.reason for event in decision.events] == ["NoEffect"]
    assert look(asked.model_copy(update={"status": decision.status}), seen).events == ()
    first = look(limited(annotations={names.RETRY: "1"}))
    assert "NoEffect" not in [event.reason for event in first.events]


def test_study_under_an_older_crd_stays_ended_and_says_so() -> None:
    made = limited(of_before(ended()), generation=2, maxTrials=8)
    decision = unremembered(made, Observed(), later(999))
    assert decision.status.finished
    assert decision.status.last_end is None
    assert [event.reason for event in decision.events] == ["NoEffect"]
    same = made.model_copy(update={"status": decision.status})
    assert unremembered(same, Observed(), later(999)).events == ()
    assert not goes_on(look(same))


def test_last_end_is_kept_while_the_study_goes_on() -> None:
    on = look(limited(ended(), generation=2, maxTrials=8)).status
    for seen in (observed(), observed(job(2), pod(), document=progress())):
        on = look(limited(on, generation=2, maxTrials=8), seen).status
        assert on.last_end == LastEnd(attempt=1, limits=limits_of(limited().spec.budget, 0.7))
