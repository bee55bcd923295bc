"""As a search drains: how many slots it can still use, and what cannot be promoted any more, whatever comes."""

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.search import Budget
from finetune_api.study import StudySpec
from finetune_trainer.records import events as ev
from finetune_trainer.search.decisions import most_at_work, next_item, search_ending, starting
from finetune_trainer.search.items import End, RefitItem, TrainItem, Wait
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState
from tests.trainer.search_studies import ASHA, ROWS, epoch_done, study_spec
from tests.trainer.test_search_state import Desk

SLOTS = 6
KINDS: dict[str, dict[str, Any]] = {
    "None": {},
    "ASHA": {"scheduler": {"type": "ASHA"}},
    "ASHA in brackets": {"scheduler": {"type": "ASHA", "brackets": 2}},
    "SuccessiveHalving": {"scheduler": {"type": "SuccessiveHalving"}},
    "Hyperband": {"scheduler": {"type": "Hyperband"}},
    "MedianStop": {"scheduler": {"type": "MedianStop", "minResource": 3}},
    "PASHA": {"scheduler": {"type": "PASHA"}},
    "Samples": {"scheduler": {"type": "ASHA", "resource": "Samples", "minResource": 10}},
    "Folds": {"scheduler": {"type": "ASHA", "resource": "Folds"}},
    "PBT": {"algorithm": "PBT", "populationSize": 4, "perturbationInterval": 3},
}


class Logged(StudyState):
    """Keeps the events."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.events: list[ev.Event] = []

    def apply(self, event: ev.Event) -> None:
        self.events.append(event)
        super().apply(event)


class Cluster:
    """A study on many slots, of which now one and now another has something to tell, and not always a good thing."""

    def __init__(self, spec: StudySpec, seed: int) -> None:
        self.spec = spec
        self.state = StudyState(Problem.of(spec))
        self.unaware = StudyState(Problem.of(spec))
        """The same, but nobody has told it what is out of reach."""

        self.rng = random.Random(seed)
        self.harm = self.rng.choice([0.1, 0.2, 0.6])
        self.at_work: list[TrainItem | RefitItem] = []
        self.apply(ev.TermStarted(0.0, term=1))

    def apply(self, *events: ev.Event) -> None:
        for event in events:
            self.state.apply(event)
            if not isinstance(event, ev.Stopped):
                self.unaware.apply(event)

    def ask(self) -> bool:
        """Give a free slot something to do; whether there was anything."""
        budget = self.spec.budget
        if search_ending(self.state, budget, 0.0) is not None:
            self.apply(ev.SearchEnded(0.0, reason="SearchFinished", message=""))
        decision = next_item(self.state, budget, 0.0)
        assert decision == next_item(self.unaware, budget, 0.0)
        match decision:
            case TrainItem():
                self.apply(*starting(self.state, budget, decision, "slot/1", 0.0))
            case RefitItem():
                self.apply(ev.RefitStarted(0.0, trial=decision.trial, slot="slot/1"))
            case _:
                self.apply(*(ev.Stopped(0.0, trial=n) for n in self.state.out_of_reach(budget)))
                return False
        self.at_work.append(decision)
        return True

    def tell(self) -> None:
        """Let one of the slots come to an end, well or not."""
        item = self.at_work.pop(self.rng.randrange(len(self.at_work)))
        if isinstance(item, RefitItem):
            self.apply(ev.RefitDone(0.0, trial=item.trial, path="model", test_metrics={}))
            return
        fate = self.rng.random()
        if fate < 0.05:
            self.apply(ev.Requeued(0.0, trial=item.trial, lost=True, run=item.run))
        elif fate < self.harm:
            kind = self.rng.choice(["Internal", "OutOfMemory", "Diverged", "UserError"])
            self.apply(
                ev.Failed(0.0, trial=item.trial, failure_class=kind, message="why", run=item.run)
            )
        else:
            last = self.state.last_epoch(self.state.trials[item.trial])
            whole = item.to_epoch >= last and (item.rows is None or item.rows >= ROWS)
            self.apply(
                epoch_done(item.trial, item.to_epoch, self.rng.random(), 0.0, item.run),
                ev.Saved(0.0, trial=item.trial, epoch=item.to_epoch, path="path", run=item.run),
                ev.Reached(0.0, trial=item.trial, finished=whole, run=item.run),
            )

    def run(self) -> Iterator[int]:
        """Live to the end; yields each time how many slots are at work."""
        while True:
            while len(self.at_work) < SLOTS and self.ask():
                pass
            yield len(self.at_work)
            if not self.at_work:
                return
            self.tell()


@pytest.mark.parametrize(
    ("kind", "folds"),
    [
        *((kind, 1) for kind in KINDS if kind != "Folds"),
        *((kind, 3) for kind in KINDS if kind != "PBT"),
    ],
)
def test_no_more_slots_are_used_than_were_said_to_be_of_use(kind: str, folds: int) -> None:
    validation = {"crossValidation": {"folds": folds}} if folds > 1 else {}
    fewer = 0
    for seed in range(40):
        rng = random.Random(f"{kind}/{seed}")
        spec = study_spec(
            search={"algorithm": "Random", "seed": seed, **KINDS[kind]},
            validation=validation,
            budget={
                "maxTrials": rng.randint(1, 30),
                "maxFailedTrials": 1000,
                **({"maxParallelTrials": rng.randint(1, 5)} if rng.random() < 0.3 else {}),
            },
        )
        cluster, least = Cluster(spec, seed), math.inf
        for at_work in cluster.run():
            assert at_work <= least
            most = most_at_work(cluster.state, spec.budget)
            assert at_work <= most
            least = min(least, most)
            fewer += most < SLOTS and cluster.state.ended is None
        assert cluster.state.ended is not None
        assert isinstance(next_item(cluster.state, spec.budget, 0.0), End)
    assert fewer > 100, "slots are given back while the search still goes on"


def test_what_was_promoted_ahead_keeps_its_place_when_others_are_lost() -> None:
    desk = Desk(search=ASHA, budget={"maxTrials": 8})
    budget = desk.spec.budget
    items = [desk.start(budget) for _ in range(8)]
    for item, value in zip(items[:4], (0.9, 0.5, 0.1, 0.2), strict=True):
        desk.train(item, value)
    # Two of four may go on, as half of the other four count as if they had come.
    assert [desk.start(budget).trial for _ in range(2)] == [0, 1]
    for item in items[4:7]:
        desk.fail(item, "Diverged")
    desk.train(items[7], 0.7)
    assert desk.start(budget).to_epoch == 3
    assert (desk.state.trials[7].status, desk.state.trials[7].level) == ("Running", 1)


def test_a_resumed_search_stops_the_same_trials_after_a_raised_budget() -> None:
    desk = Desk(search=ASHA, budget={"maxTrials": 3})
    desk.state = live = Logged(Problem.of(desk.spec))
    for value in (0.5, 0.6, 0.4):
        desk.train(desk.start(desk.spec.budget), value)
    for number in live.out_of_reach(desk.spec.budget):
        live.apply(ev.Stopped(desk.now, trial=number))
    resumed = StudyState.replayed(Problem.of(desk.spec), live.events)
    more = Budget(max_trials=9)
    for value in (0.4, 0.3, 0.2, 0.15, 0.14, 0.13):
        item = desk.next(more)
        told = starting(live, more, item, "slot/1", desk.now)
        assert starting(resumed, more, item, "slot/1", desk.now) == told
        known = len(live.events)
        for event in told:
            live.apply(event)
        desk.train(item, value)
        for event in live.events[known:]:
            resumed.apply(event)


def test_one_straggler_holds_one_slot() -> None:
    desk = Desk(search=ASHA, budget={"maxTrials": 9})
    budget = desk.spec.budget
    assert most_at_work(desk.state, budget) == 9
    items = [desk.start(budget) for _ in range(9)]
    for item in items[1:]:
        desk.train(item, item.trial / 10)
    for trial in (8, 7):  # two of eight are promoted, a third may be
        item = desk.start(budget)
        assert item.trial == trial
        desk.train(item, 0.1)
    assert desk.next() == Wait()
    for number in desk.state.out_of_reach(budget):
        desk.state.apply(ev.Stopped(desk.now, trial=number))
    assert most_at_work(desk.state, budget) == 3  # 0, 6, and the better of 7 and 8
    desk.train(items[0], 0.0)
    last = desk.start(budget)
    assert last.trial == 6
    desk.train(last, 0.1)
    assert desk.start(budget).to_epoch == 9
    assert most_at_work(desk.state, budget) == 1
