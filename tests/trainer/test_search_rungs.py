"""Promotion: the best 1/η of a rung go on, decided one result at a time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.rungs import rung_resources
from finetune_api.search import Scheduler
from finetune_trainer.search.rungs import Rung


def test_rungs_grow_by_the_factor_and_end_at_the_last_epoch() -> None:
    asha = Scheduler(type="ASHA", min_resource=2, reduction_factor=3)
    assert rung_resources(asha, 40) == (2, 6, 18, 40)
    assert rung_resources(asha, 2) == (2,)
    assert rung_resources(Scheduler(type="None"), 30) == (30,)


def test_no_rung_lies_just_below_a_whole_training() -> None:
    asha = Scheduler(type="ASHA")
    assert rung_resources(asha, 10) == (1, 3, 10)
    assert rung_resources(asha, 10, rule="Share") == (1, 3, 9, 10)
    assert rung_resources(asha, 16) == (1, 3, 9, 16)  # 16 / 9 is more than √3
    assert rung_resources(Scheduler(type="ASHA", min_resource=8), 9) == (8, 9), "as was asked for"


def test_the_first_is_promoted_when_the_factor_is_reached() -> None:
    rung = Rung(lambda results: results // 3)
    for trial, score in enumerate((0.1, 0.3)):
        rung.report(trial, score)
        assert rung.promotable() is None
    rung.report(2, 0.2)
    assert rung.promotable() == 1


def test_of_equal_trials_the_earlier_goes_on() -> None:
    rung = Rung(lambda results: results // 2)
    for trial in (1, 0, 2, 3):
        rung.report(trial, 0.5)
    assert rung.promotable() == 0


def test_a_finished_trial_keeps_its_place_but_is_not_promoted() -> None:
    rung = Rung(lambda results: results // 2)
    rung.finish(0)
    for trial, score in enumerate((0.9, 0.5, 0.4)):
        rung.report(trial, score)
    assert rung.promotable() is None
    rung.report(3, 0.1)
    assert rung.promotable() == 1


def test_a_trial_pushed_out_of_the_top_comes_back_when_the_rung_grows() -> None:
    rung = Rung(lambda results: results // 2)
    rung.report(0, 0.5)
    rung.report(1, 0.1)
    rung.report(2, 0.9)
    assert rung.promotable() == 2
    rung.promote(2)
    assert rung.promotable() is None
    rung.report(3, 0.2)
    assert rung.promotable() == 0


def test_a_stopped_trial_leaves_its_place_to_others() -> None:
    rung = Rung(lambda results: results // 2)
    for trial, score in enumerate((0.9, 0.5, 0.4, 0.3)):
        rung.report(trial, score)
    rung.stop(0)
    assert rung.promotable() == 1
    rung.promote(1)
    assert rung.promotable() == 2
    assert rung.going_on == 2


def _reference(
    results: list[tuple[int, float]], gone: set[int], stopped: set[int], factor: int
) -> int | None:
    ranked = sorted(results, key=lambda result: (-result[1], result[0]))
    ranked = [result for result in ranked if result[0] not in stopped]
    top = [trial for trial, _ in ranked[: len(results) // factor]]
    return next((trial for trial in top if trial not in gone), None)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 5),
    st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from(["", "promote", "finish", "stop"])),
        max_size=60,
    ),
)
def test_every_decision_is_that_of_a_sorted_list(
    factor: int, reports: list[tuple[int, str]]
) -> None:
    rung = Rung(lambda results: results // factor)
    results: list[tuple[int, float]] = []
    gone: set[int] = set()
    stopped: set[int] = set()
    for trial, (score, then) in enumerate(reports):
        results.append((trial, float(score)))
        rung.report(trial, float(score))
        chosen = rung.promotable()
        assert chosen == _reference(results, gone, stopped, factor)
        leaves = chosen if then == "promote" else trial
        if then and leaves is not None:
            getattr(rung, then)(leaves)
            gone.add(leaves)
        if then == "stop":
            stopped.add(trial)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.lists(st.integers(0, 20), min_size=1, max_size=40))
def test_what_is_out_of_reach_is_never_promoted(factor: int, scores: list[int]) -> None:
    rung = Rung(lambda results: results // factor)
    out: set[int] = set()
    promoted: set[int] = set()
    for trial, score in enumerate(scores):
        rung.report(trial, float(score))
        found = rung.out_of_reach(len(scores))
        assert not out.intersection(found), "named twice"
        out.update(found)
        while (chosen := rung.promotable()) is not None:
            assert chosen not in out
            rung.promote(chosen)
            promoted.add(chosen)
    assert out | promoted == set(range(len(scores)))
