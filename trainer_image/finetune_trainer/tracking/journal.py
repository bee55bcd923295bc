"""Turns the events of a study into the runs that trackers show."""

import math
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from finetune_api.hyperparameters import resolve
from finetune_api.search import Budget
from finetune_api.study import FineTuneStudy
from finetune_trainer.records import events as ev
from finetune_trainer.search.decisions import FAILURES, next_item
from finetune_trainer.search.items import End
from finetune_trainer.search.problem import Problem
from finetune_trainer.search.state import StudyState
from finetune_trainer.search.trials import Evaluation, Trial, TrialStatus
from finetune_trainer.tracking.runs import Ending, Outcome, Point, TrackedRun

STUDY = "study"
"""Label of the run for the study itself, with the result of its best trial."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "finetune.dev")
_OUTCOMES: dict[TrialStatus, Outcome] = {
    "Completed": "Finished",
    "Stopped": "Killed",
    "Diverged": "Failed",
    "Failed": "Failed",
}


@dataclass
class _Course:
    """What the events so far say about one trial."""

    started: float
    term: int
    points: dict[tuple[int, float], Point] = field(default_factory=dict)
    """(rung, if trainings begin anew at each; epoch) → the first evaluation reported there."""

    active: bool = False
    ending: Ending | None = None


class Journal:
    """Takes events and says which runs have changed. The same events give the same runs, in whatever batches they come."""

    def __init__(self, study: FineTuneStudy, problem: Problem) -> None:
        self._study = study
        self._problem = problem
        self._state = StudyState(self._problem)
        self._begins_anew = self._problem.rung_by in ("Samples", "Folds")
        self._courses: list[_Course] = []
        self._began = 0.0
        self._term = 0
        self._conclusions: list[TrackedRun] = []
        """The study's own run, once everything is over; another for each time that it went on after its end."""

    def take(self, events: Iterable[ev.Event]) -> list[TrackedRun]:
        """Take in `events`; returns the runs that they change, the study's own last."""
        changed: set[int] = set()
        told = len(self._conclusions)
        for event in events:
            self._apply(event)
            changed |= {number for number in self._touched(event) if self._see(number, event)}
            if self._state.ended is not None and len(self._conclusions) <= self._state.reopened:
                self._conclusions += self._conclude(event.time)
        runs = [self._trial_run(number) for number in sorted(changed)]
        return [*runs, *self._conclusions[told:]]

    def _apply(self, event: ev.Event) -> None:
        self._state.apply(event)
        if isinstance(event, ev.TermStarted):
            self._term = event.term
            self._began = self._began or event.time
        elif isinstance(event, ev.Proposed):
            self._courses.append(_Course(event.time, self._term))

    def _touched(self, event: ev.Event) -> Iterable[int]:
        if isinstance(event, ev.TermStarted | ev.SearchEnded):  # these end or interrupt trials
            return range(len(self._courses))
        number = getattr(event, "trial", None)
        return () if number is None or number >= len(self._courses) else (number,)

    def _see(self, number: int, event: ev.Event) -> bool:
        """Whether the event brings news about the trial."""
        trial, course = self._state.trials[number], self._courses[number]
        if course.ending is not None:
            return False
        before = (len(course.points), course.active)
        if isinstance(event, ev.EpochDone | ev.Reached):
            for key, evaluation in self._evaluations(trial):
                if key not in course.points:
                    values = _values(trial, evaluation)
                    course.points[key] = Point(len(course.points) + 1, event.time, values)
        course.active = trial.status == "Running"
        if trial.is_final:
            course.ending = _trial_ending(trial, event.time)
        news = (len(course.points), course.active) != before or course.ending is not None
        return news or isinstance(event, ev.Proposed)

    def _evaluations(self, trial: Trial) -> Iterator[tuple[tuple[int, float], Evaluation]]:
        rung = trial.evaluated_level if self._begins_anew else 0
        for evaluation in trial.evaluations:
            yield (rung, evaluation.epoch), evaluation

    def _trial_run(self, number: int) -> TrackedRun:
        course = self._courses[number]
        params = self._state.trials[number].params
        return replace(
            self._run(str(number), course.started, course.term),
            params=resolve(self._study.spec.hyperparameters, params).to_json(),
            points=tuple(course.points.values()),
            active=course.active,
            ending=course.ending,
        )

    def _run(self, label: str, started: float, term: int) -> TrackedRun:
        metadata = self._study.metadata
        # On a laptop a study has no uid, and on a cluster its folder may have been emptied: the time at
        # which the records begin tells them apart.
        records = f"{metadata.namespace}/{metadata.name}/{metadata.uid}/{self._began!r}"
        facts = {
            "study": metadata.name,
            "namespace": metadata.namespace or "",
            "uid": metadata.uid or "",
            "records": uuid.uuid5(_NAMESPACE, records).hex,
            "term": str(term),
        }
        key = uuid.uuid5(_NAMESPACE, f"{records}/{label}").hex
        known = {name: value for name, value in facts.items() if value}
        return TrackedRun(key, label, f"{metadata.name}/{label}", started, known, {})

    def _conclude(self, now: float) -> Iterator[TrackedRun]:
        """The study's own run, if everything is over and there is a best trial."""
        outcome = next_item(self._state, Budget(), now)  # after the search no budget matters
        winner = self._state.best_trial()
        if not isinstance(outcome, End) or winner is None or winner.best is None:
            return
        tested = self._state.refit.test_metrics if self._state.refit else {}
        results = {
            "best_trial": float(winner.number),
            **_best(winner),
            **_tracked(winner.best.metrics),
            **{f"test_{name}": value for name, value in _tracked(tested).items()},
            "trials": float(len(self._state.trials)),
            "gpu_seconds": self._state.gpu_seconds,
        }
        facts = {"reason": outcome.reason, "message": outcome.message}
        ending = Ending("Failed" if outcome.reason in FAILURES else "Finished", now, facts, results)
        again = self._state.reopened
        run = self._run(f"{STUDY}-{again + 1}" if again else STUDY, self._began, self._term)
        yield replace(run, params=self._trial_run(winner.number).params, ending=ending)


def _tracked(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics under names that every tracker accepts: `f1_macro/language:de` for `f1_macro@language=de`."""
    return {
        re.sub(r"[^\w./: -]", "_", name.replace("@", "/").replace("=", ":")): value
        for name, value in metrics.items()
    }


def _values(trial: Trial, evaluation: Evaluation) -> dict[str, float]:
    """The metrics of an evaluation, with the mean training loss and the seconds of its trainings."""
    results = [done for run in trial.planned_runs if (done := run.at(evaluation.epoch))]
    values = {
        **_tracked(evaluation.metrics),
        "epoch": float(evaluation.epoch),
        "train_loss": math.fsum(done.train_loss for done in results) / len(results),
        "seconds": math.fsum(done.seconds for done in results if done.epoch == evaluation.epoch),
    }
    if evaluation.deviation is not None:
        values["deviation"] = evaluation.deviation
    return values


def _trial_ending(trial: Trial, now: float) -> Ending:
    facts = {"state": trial.status, "failure": trial.failure_class, "message": trial.message}
    known = {name: value for name, value in facts.items() if value}
    return Ending(_OUTCOMES[trial.status], now, known, _best(trial))


def _best(trial: Trial) -> dict[str, float]:
    best = trial.best
    return {} if best is None else {"best_value": best.value, "best_epoch": float(best.epoch)}
