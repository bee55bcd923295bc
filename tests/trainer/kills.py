"""Drivers killed at random moments, before, in and after their writes, and what became of their studies.

One slot: whatever is killed, the study does what it would have done undisturbed. Eight slots: what is done
depends on who is first, but no finished rung is lost and nothing is trained again that a checkpoint has.

    python -m tests.trainer.kills [--kills 100]
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.study import StudySpec
from finetune_trainer.records import events as ev
from finetune_trainer.search.decisions import next_item, search_ending, starting
from finetune_trainer.search.items import RefitItem, TrainItem
from finetune_trainer.storage.folder import Storage
from finetune_trainer.worker.item import Item
from tests.records import check_records, events_of
from tests.trainer.crashes import Crash, Failing, crash_after, crash_before, crash_torn
from tests.trainer.search_studies import Clock, Driver, distinct, study_spec, summary

SLOTS = 8
WRITES = {1: 40, SLOTS: 120}
"""Slots → the write at which a driver is killed at latest. A trial whose worker is lost eleven times in a
row without a checkpoint between is given up, so drivers with many slots live longer."""

_HOW = {"before": crash_before, "torn": crash_torn, "after": crash_after}


def _study(algorithm: str, scheduler: str = "ASHA", **more: Any) -> StudySpec:
    space: dict[str, Any] = {
        "learningRate": {"min": 1e-5, "max": 1e-1, "scale": "Log"},
        "batchSize": {"values": [8, 16, 32]},
        "optimizer": {"values": ["AdamW", "SGD"]},
        "momentum": {"min": 0.1, "max": 0.9, "when": {"optimizer": ["SGD"]}},
    }
    if algorithm == "Grid":
        space["learningRate"] = {"values": [1e-4, 3e-4, 1e-3, 3e-3]}
        space["momentum"]["step"] = 0.4
    search = {"algorithm": algorithm, "seed": 5, "scheduler": {"type": scheduler}}
    return study_spec(
        **{"searchSpaces": [space], "search": search, "budget": {"maxTrials": 24}, **more}
    )


STUDIES = {
    "Random, ASHA": _study("Random"),
    "Grid, ASHA": _study("Grid"),
    "TPE, ASHA": _study("TPE"),
    "GP, ASHA": _study("GP"),
    "TPE, Hyperband": _study("TPE", "Hyperband"),
    "Random, None, 3 folds": _study(
        "Random",
        "None",
        hyperparameters={"epochs": 3},
        validation={"crossValidation": {"folds": 3}},
        budget={"maxTrials": 6},
    ),
    "Evolution, SuccessiveHalving": _study("Evolution", "SuccessiveHalving"),
}


@dataclass
class Fate:
    """What became of a study whose driver was killed again and again."""

    study: str
    slots: int
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_HOW, 0))
    epochs: int = 0
    """Epochs trained in all."""

    repeated: int = 0
    """Epochs trained again."""

    wrong: str = ""
    """In what it differs from the undisturbed study, or what was lost."""

    @property
    def resumes(self) -> int:
        """Times a driver went on from the records: once a kill."""
        return sum(self.kills.values())


@dataclass
class Crew(Driver):
    """A driver with several slots, which report in random order."""

    rng: random.Random = field(default_factory=random.Random)
    finished: set[tuple[int, int]] = field(default_factory=set)
    """(trial, rung) of all that is known to be in the records."""

    def run_crew(self) -> str:
        """Drive the study to its end; its reason."""
        at_work: list[Iterator[list[ev.Event]]] = []
        while True:
            decision = next_item(self.state, self.spec.budget, self.clock())
            if self.state.ended is None:
                ending = search_ending(self.state, self.spec.budget, self.clock())
                if ending is not None:
                    self.write(
                        ev.SearchEnded(self.clock(), reason=ending.reason, message=ending.message)
                    )
                    continue
            if isinstance(decision, TrainItem) and len(at_work) < SLOTS:
                slot = f"worker/{self.rng.random()}"
                self.write(*starting(self.state, self.spec.budget, decision, slot, self.clock()))
                at_work.append(self.work(decision))
            elif isinstance(decision, RefitItem):
                self.write(ev.RefitStarted(self.clock(), trial=decision.trial, slot="slot"))
                for report in self.work(decision):
                    self.write(*report)
            elif not at_work:
                return self.state.ended.reason if self.state.ended else "nothing to do"
            else:
                self._one_report(at_work)

    def _one_report(self, at_work: list[Iterator[list[ev.Event]]]) -> None:
        slot = self.rng.choice(at_work)
        report = next(slot, None)
        if report is None:
            at_work.remove(slot)
            return
        self.write(*report)
        self.finished |= _finished_rungs(self)


def _finished_rungs(driver: Driver) -> set[tuple[int, int]]:
    return {(trial.number, level) for trial in driver.state.trials for level in trial.rung_values}


def kill_one_slot(name: str, folder: Path, rng: random.Random, kills: int) -> Fate:
    """The study with one slot, killed so many times, compared with the undisturbed one."""
    spec, fate = STUDIES[name], Fate(name, 1)
    reference = Driver(spec, Storage.open(str(folder / "undisturbed")), 1)
    reference.run()
    items: list[Item] = []
    epochs: list[tuple[int, int, float]] = []
    clock, term, root = Clock(), 0, folder / "killed"
    last = reference
    ended = True
    while ended or fate.resumes < kills:
        if ended and fate.resumes:
            _compare(fate, last, reference, items, epochs)
        if ended:
            if fate.resumes >= kills:
                break
            clock, items, epochs, term = Clock(), [], [], 0
            root = folder / f"killed-{fate.resumes}"
        term += 1
        how = rng.choice(list(_HOW)) if fate.resumes < kills else "before"
        at = rng.randint(1, WRITES[1])
        try:
            last = Driver(spec, Failing.of(root, _HOW[how], at), term, clock, items, epochs)
            last.run()
            ended = True
        except Crash:
            fate.kills[how] += 1
            ended = False
    if not ended:
        last = Driver(spec, Storage.open(str(root)), term + 1, clock, items, epochs)
        last.run()
        _compare(fate, last, reference, items, epochs)
    return fate


def _compare(
    fate: Fate,
    last: Driver,
    reference: Driver,
    items: list[TrainItem | RefitItem],
    epochs: list[tuple[int, int, float]],
) -> None:
    fate.epochs += len(epochs)
    fate.repeated += len(epochs) - len(reference.epochs)
    if summary(last.state) != summary(reference.state):
        fate.wrong = "other trials"
    elif distinct(items) != distinct(reference.items):
        fate.wrong = "other promotions"


def kill_many_slots(name: str, folder: Path, rng: random.Random, kills: int) -> Fate:
    """The study with eight slots, killed so many times: what was finished stays finished."""
    spec, fate = STUDIES[name], Fate(name, SLOTS)
    while fate.resumes < kills:
        root = folder / f"many-{fate.resumes}"
        clock, epochs = Clock(), list[tuple[int, int, float]]()
        finished: set[tuple[int, int]] = set()
        term, ended = 0, False
        while not ended:
            term += 1
            how = rng.choice(list(_HOW))
            at = rng.randint(1, WRITES[SLOTS]) if fate.resumes < kills else 0
            try:
                storage = Failing.of(root, _HOW[how], at)
                crew = Crew(spec, storage, term, clock, [], epochs, rng=rng, finished=finished)
                lost = finished - _finished_rungs(crew)
                if lost:
                    fate.wrong = f"lost rungs {sorted(lost)}"
                ended = bool(crew.run_crew())
            except Crash:
                fate.kills[how] += 1
        fate.epochs += len(epochs)
        fate.repeated += len(epochs) - len(set(epochs))
        try:
            check_records(root, len(crew.state.trials))
        except AssertionError as error:
            fate.wrong = str(error)
        proposed = sum(isinstance(event, ev.Proposed) for event in events_of(root))
        if proposed != crew.state.planned(spec.budget):
            fate.wrong = f"{proposed} trials"
    return fate


def kill_all(folder: Path, kills: int, seed: int = 0) -> list[Fate]:
    """At least `kills` kills, spread evenly over all studies with one slot, and as many with eight."""
    rng = random.Random(seed)
    each = -(-kills // len(STUDIES))
    fates = []
    for number, name in enumerate(STUDIES):
        fates.append(kill_one_slot(name, folder / f"{number}-1", rng, each))
        fates.append(kill_many_slots(name, folder / f"{number}-{SLOTS}", rng, each))
    return fates


def main() -> int:
    """Print the log; 1 if anything was lost or decided otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fates = kill_all(Path(folder), arguments.kills, arguments.seed)
    print(f"{'study':30} slots  kills (before, torn, after)  resumes  epochs  repeated  decisions")
    for fate in fates:
        kinds = ", ".join(str(count) for count in fate.kills.values())
        said = fate.wrong or ("the same" if fate.slots == 1 else "nothing lost")
        print(
            f"{fate.study:30} {fate.slots:>5}  {fate.resumes:>5} ({kinds}){'':{20 - len(kinds)}}"
            f" {fate.resumes:>7}  {fate.epochs:>6}  {fate.repeated:>8}  {said}"
        )
    total = sum(fate.resumes for fate in fates)
    print(f"{total} kills, {sum(fate.repeated for fate in fates)} epochs repeated")
    return int(any(fate.wrong for fate in fates))


if __name__ == "__main__":
    sys.exit(main())
