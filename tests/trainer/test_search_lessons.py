"""What models learn from: one rung, deep enough, with enough results; and every trial once."""

from typing import Any

import pytest

from finetune_trainer.search.generations import generations, with_results
from finetune_trainer.search.lessons import RANDOM_SHARE, draws_at_random, lesson
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.trials import Evaluation, Trial
from tests.trainer.search_studies import CONTINUOUS, study_spec
from tests.trainer.test_search_state import Desk

TWO = {**CONTINUOUS, "weightDecay": {"min": 0.0, "max": 0.1}}


def problem(scheduler: str = "ASHA", epochs: int = 27, **more: Any) -> Problem:
    search = {"algorithm": "TPE", "seed": 7, "scheduler": {"type": scheduler, **more}}
    spec = study_spec(searchSpaces=[TWO], search=search, hyperparameters={"epochs": epochs})
    return Problem.of(spec)


def trial(number: int, *values: float, status: Any = "Paused") -> Trial:
    """A trial with these values at the first rungs; its best was seen before the last of them."""
    made = Trial(number, {"learningRate": 1e-3 + number / 1e4, "weightDecay": 0.01}, status)
    made.rung_values = dict(enumerate(values))
    made.arrived = {level: number + 100 * level for level in made.rung_values}
    if values:
        made.best = Evaluation(1, max(values), {})
    return made


def test_a_model_learns_at_the_highest_rung_with_enough_results_by_their_values_there() -> None:
    found = [trial(n, 0.1, 0.9 - n / 100, 0.5 + n / 100) for n in range(5)]
    found += [trial(n, 0.2, 0.8) for n in range(5, 20)]
    learned = lesson(problem(epochs=28), found)
    assert learned is not None
    assert learned.level == 2, "two hyperparameters and three results more are five"
    assert [(t.number, score) for t, score in learned.results] == [
        (n, 0.5 + n / 100) for n in range(5)
    ]
    learned = lesson(problem(epochs=28), found[1:])
    assert learned is None, "four are too few, and the rung below is 3 of 28 epochs"


def test_a_gaussian_process_needs_five_results_at_a_rung() -> None:
    search = {"algorithm": "GP", "scheduler": {"type": "ASHA"}}
    spec = study_spec(searchSpaces=[TWO], search=search, hyperparameters={"epochs": 28})
    there = [trial(n, 0.1, 0.2, 0.5) for n in range(5)]
    assert lesson(Problem.of(spec), there[1:]) is None
    assert lesson(Problem.of(spec), there) is not None


@pytest.mark.parametrize(
    ("scheduler", "epochs", "lowest"),
    [
        ({"scheduler": "ASHA"}, 52, 9),
        ({"scheduler": "ASHA"}, 27, 3),
        ({"scheduler": "Hyperband"}, 9, 1),
        ({"scheduler": "ASHA", "reductionFactor": 4}, 64, 4),
        ({"scheduler": "ASHA"}, 3, 1),
        ({"scheduler": "ASHA"}, 100, 27),
        ({"scheduler": "None"}, 9, 9),
    ],
)
def test_nothing_is_learned_from_rungs_far_from_a_whole_training(
    scheduler: dict[str, Any], epochs: int, lowest: float
) -> None:
    of = problem(epochs=epochs, **scheduler)
    level = of.resources.index(lowest)
    there = [trial(n, *([0.5] * (level + 1)), status="Completed") for n in range(30)]
    learned = lesson(of, there)
    assert learned is not None
    if level:
        below = [trial(n, *([0.5] * level)) for n in range(30)]
        assert lesson(of, below) is None


def test_without_rungs_five_whole_trials_are_enough() -> None:
    whole = [trial(n, n / 10, status="Completed") for n in range(5)]
    assert lesson(problem("None"), whole[:4]) is None
    learned = lesson(problem("None"), whole)
    assert learned is not None
    assert len(learned.results) == 5


def test_each_space_needs_results_for_its_own_hyperparameters() -> None:
    spaces = [{"learningRate": {"values": [1e-4, 1e-3]}}, TWO]
    search = {"algorithm": "TPE", "scheduler": {"type": "ASHA"}}
    of = Problem.of(study_spec(searchSpaces=spaces, search=search))
    small = [Trial(n, {"learningRate": 1e-3}, "Completed") for n in range(4)]
    large = [
        Trial(4 + n, {"learningRate": 2e-3, "weightDecay": 0.1}, "Completed") for n in range(4)
    ]
    for made in (*small, *large):
        made.rung_values = {0: 0.1, 1: 0.2}
    assert lesson(of, large) is None, "five, for two hyperparameters"
    assert lesson(of, small[:3]) is None
    assert lesson(of, [*small[:3], *large]) is None, "seven in all are enough for neither"
    assert lesson(of, small) is not None


def test_failures_are_told_apart_from_results() -> None:
    found = [trial(n, 0.1, 0.2, 0.3) for n in range(6)]
    found += [trial(6, 0.1, 0.2, status="Diverged"), trial(7, status="Failed")]
    found.append(trial(8, 0.1, 0.2, 0.9, status="Diverged"))
    learned = lesson(problem(), found)
    assert learned is not None
    assert [t.number for t in learned.failed] == [6, 7]
    assert learned.results[-1][0].number == 8, "it diverged on the way to the next rung"


def test_a_share_of_the_trials_is_drawn_at_random_where_there_are_rungs() -> None:
    drawn = sum(draws_at_random(problem(), number) for number in range(3000))
    assert drawn / 3000 == pytest.approx(RANDOM_SHARE, abs=0.03)
    assert not any(draws_at_random(problem("None"), number) for number in range(100))


def test_a_trial_that_comes_late_is_in_the_next_generation_and_closed_ones_stay() -> None:
    desk = Desk(
        search={"algorithm": "Evolution", "seed": 7, "populationSize": 4},
        budget={"maxTrials": 40},
    )
    at_work = [desk.start() for _ in range(4)]
    slow = at_work.pop(0)
    closed: list[list[int]] = []
    for step in range(20):  # one of four workers trains a single trial all the time
        desk.train(at_work.pop(0), step / 100)
        at_work.append(desk.start())
        now = [[t.number for t in g] for g in generations(with_results(desk.state.trials), 4)]
        assert now[: len(closed)] == closed
        closed = now
    desk.train(slow, 0.9)
    for item in at_work:
        desk.train(item, 0.5)
    told = [t.number for g in generations(with_results(desk.state.trials), 4) for t in g]
    assert told[:20] == [n for g in closed for n in g]
    assert slow.trial in told
    assert sorted(told) == list(range(24)), "each once"
