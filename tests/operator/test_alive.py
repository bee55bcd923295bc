"""Which watches are open, and when an operator counts as blind."""

import pytest
from prometheus_client import REGISTRY

from finetune_operator.alive import BLIND_SECONDS, Watches

STUDY = "FineTuneStudy"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watches(clock: Clock) -> Watches:
    made = Watches(clock)
    made.expect(STUDY, None)
    return made


def shown() -> float | None:
    return REGISTRY.get_sample_value("finetune_watch_silent_seconds", {"kind": STUDY})


def test_who_has_never_had_a_watch_hears_nothing(watches: Watches, clock: Clock) -> None:
    assert not watches.hears(STUDY)
    clock.now += 5
    assert watches.silence(STUDY) == shown() == 5


def test_an_open_watch_is_not_silent_however_little_happens(watches: Watches, clock: Clock) -> None:
    watches.opened(STUDY, None)
    clock.now += 10_000
    assert watches.hears(STUDY)
    assert watches.silence(STUDY) == shown() == 0


def test_a_watch_that_ends_may_be_opened_again_within_a_minute(
    watches: Watches, clock: Clock
) -> None:
    watches.opened(STUDY, None)
    clock.now += 500
    watches.ended(STUDY, None)
    clock.now += BLIND_SECONDS - 1
    assert watches.hears(STUDY)
    clock.now += 1
    assert not watches.hears(STUDY)
    assert shown() == BLIND_SECONDS
    watches.opened(STUDY, None)
    assert watches.hears(STUDY)


def test_a_watch_that_was_closed_without_a_word_is_noticed_by_whoever_looks(
    watches: Watches, clock: Clock
) -> None:
    closed = False
    watches.opened(STUDY, None, lambda: closed)
    clock.now += 30
    assert watches.silence(STUDY) == 0
    closed = True
    clock.now += BLIND_SECONDS
    assert not watches.hears(STUDY)
    watches.ended(STUDY, None)  # kopf tries again: that is no sign of life
    assert not watches.hears(STUDY)


def test_the_watch_of_each_namespace_counts(clock: Clock) -> None:
    watches = Watches(clock)
    for place in ("nlp", "search"):
        watches.expect(STUDY, place)
    watches.opened(STUDY, "nlp")
    assert not watches.hears(STUDY)
    watches.opened(STUDY, "search")
    assert watches.hears(STUDY)
    watches.ended(STUDY, "nlp")
    clock.now += BLIND_SECONDS
    assert not watches.hears(STUDY)


def test_what_is_expected_again_is_not_forgiven(watches: Watches, clock: Clock) -> None:
    clock.now += BLIND_SECONDS
    watches.expect(STUDY, None)  # kopf starts again
    assert watches.silence(STUDY) == BLIND_SECONDS


def test_a_kind_that_is_not_served_is_not_missed(watches: Watches, clock: Clock) -> None:
    watches.expect("RayJob", None)
    watches.opened(STUDY, None)
    clock.now += 5
    assert watches.silence("RayJob") == 5
    watches.forget("RayJob", None)
    assert watches.silence("RayJob") == 0
    assert watches.hears(STUDY)


def test_following_notes_the_end_of_whatever_came_of_it(watches: Watches, clock: Clock) -> None:
    def broken() -> None:
        with watches.following(STUDY, None) as opened:
            opened()
            clock.now += 5
            raise ConnectionError

    with pytest.raises(ConnectionError):
        broken()
    clock.now += 7
    assert watches.silence(STUDY) == 7
