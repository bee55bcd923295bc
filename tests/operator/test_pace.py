"""Who has progress to tell gets a turn: at once if the operator is idle, in good order if it is not."""

from collections import deque

import pytest

from finetune_operator.pace import PROGRESS_SECONDS, Pace


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def tell(pace: Pace, study: str) -> None:
    pace.looked(study)
    pace.told(study)


def test_first_progress_is_due_at_once_and_the_next_two_seconds_after_the_status() -> None:
    clock = Clock()
    pace = Pace(50, clock)
    assert pace.wait("a") == 0
    tell(pace, "a")
    clock.now += 0.5
    assert pace.wait("a") == pytest.approx(PROGRESS_SECONDS - 0.5)
    clock.now += 0.5  # more progress does not move the turn
    assert pace.wait("a") == pytest.approx(PROGRESS_SECONDS - 1.0)
    clock.now += 5
    assert pace.wait("a") == 0


def test_study_that_was_looked_at_before_its_turn_keeps_it_and_after_its_turn_needs_another() -> (
    None
):
    clock = Clock()
    pace = Pace(1, clock)
    for study in ("a", "b", "c"):
        pace.wait(study)
    pace.looked("b")
    assert pace.wait("b") == pytest.approx(1.0)
    clock.now += 2.5
    pace.looked("b")
    assert pace.wait("c") == 0
    assert pace.wait("b") == pytest.approx(0.5)


def test_study_that_always_has_something_else_too_does_not_take_the_turns_of_others() -> None:
    clock = Clock()
    pace = Pace(50, clock)
    for _ in range(10_000):
        clock.now += 0.001
        pace.wait("hostile")
        tell(pace, "hostile")
    assert pace.wait("other") <= 2 / 50


def test_study_that_is_gone_leaves_nothing_behind_for_one_of_its_name() -> None:
    clock = Clock()
    pace = Pace(50, clock)
    tell(pace, "a")
    pace.wait("a")
    pace.forget("a")
    clock.now += 0.1
    assert pace.wait("a") == 0
    pace.forget("a")
    assert pace.wait("a") > 0  # its turn was not this one's


@pytest.mark.parametrize("studies", [20, 100, 200, 500])
def test_all_together_have_so_many_turns_a_second_and_each_waits_no_longer_than_it_must(
    studies: int,
) -> None:
    clock = Clock()
    rate, tick = 50.0, 0.01
    pace = Pace(rate, clock)
    due: dict[int, float] = {}
    last = dict.fromkeys(range(studies), clock.now)
    recent: deque[float] = deque()
    most = longest = 0.0
    for step in range(6000):
        clock.now += tick
        for study in range(studies):
            if step % 100 == study % 100:  # each tells something once a second
                due[study] = clock.now + pace.wait(study)
        for study in [study for study, at in due.items() if at <= clock.now + 1e-9]:
            del due[study]
            pace.looked(study)
            pace.told(study)
            recent.append(clock.now)
            if step > 3000:
                longest = max(longest, clock.now - last[study])
            last[study] = clock.now
        while recent and recent[0] <= clock.now - 5:
            recent.popleft()
        if step > 3000:
            most = max(most, len(recent) / 5)
    assert most <= rate * 1.1
    fair = max(PROGRESS_SECONDS, studies / rate)
    assert fair - 0.1 <= longest <= fair + 1.2
