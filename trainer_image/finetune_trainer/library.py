"""The same search over any Python function: searchers, schedulers, folds, budgets, records and resume."""

import html
import logging
import math
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import ValidationError

from finetune_api.auto import choose, described, restored
from finetune_api.combinations import Params, Space
from finetune_api.manifest import problems
from finetune_api.metrics import Goal
from finetune_api.search import Budget, Search
from finetune_api.search_rules import BUDGET_RULES, SEARCH_RULES
from finetune_api.spaces import ChoiceDomain, Domain, FloatDomain, IntegerDomain, can_hold
from finetune_reports.document import Report
from finetune_trainer import arguments
from finetune_trainer.errors import SpecError
from finetune_trainer.records.claim import choice_of, claim, parts_in, rung_rule_of
from finetune_trainer.records.log import read_history
from finetune_trainer.report import Subject, report_of, write_report
from finetune_trainer.runtime.local_sink import LocalSink
from finetune_trainer.search.decisions import FAILURES, has_failed, may_go_on, next_item
from finetune_trainer.search.items import End
from finetune_trainer.search.problem import Problem, told_of_constraints
from finetune_trainer.search.proposals import Proposer, inheritable
from finetune_trainer.search.state import StudyState
from finetune_trainer.search.trials import Trial
from finetune_trainer.search.warm_start import MOST
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import ESTIMATOR
from finetune_trainer.worker.function_worker import (
    Functions,
    Refit,
    Resource,
    Train,
)

if TYPE_CHECKING:  # it takes a second
    import pandas as pd

__all__ = ["Resource", "Study", "StudyFailed"]

log = logging.getLogger("finetune.library")


_ARGUMENTS = {
    "metric": ("metric", "goal"),
    "training": ("epochs", "folds", "repeats", "rows"),
}
"""Arguments of a study that stand in a list in its parts."""


def _argument(path: str) -> str:
    """A path in the parts of a study, as its caller knows it."""
    name, _, rest = path.partition("[")
    place = rest.partition("]")[0]
    return _ARGUMENTS[name][int(place)] if name in _ARGUMENTS and place else path


class StudyFailed(Exception):
    """The search ended without a result; the message says why."""


class Study:
    """A search over `train(config, resource, checkpoint)`, kept in a folder.

    Run again with the same folder, it resumes; a finished study is only read. After `run` it has
    `best_params_`, `best_score_`, `cv_results_` and, with `refit`, `best_estimator_`.
    """

    def __init__(
        self,
        train: Train,
        spaces: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        into: str | Path,
        search: Mapping[str, Any] | None = None,
        budget: Mapping[str, Any] | None = None,
        points: Sequence[Params] = (),
        warm_start: Sequence["Study"] = (),
        epochs: int = 1,
        folds: int = 1,
        repeats: int = 1,
        rows: int | None = None,
        metric: str = "score",
        goal: Goal = "Maximize",
        best_of_last: bool = False,
        target: float | None = None,
        refit: Refit | None = None,
        slots: int | None = None,
        gpus: float = 0.0,
    ) -> None:
        """Check everything; nothing runs yet. Raises SpecError with the field that is wrong.

        `spaces` maps names to domains; it may be a list of such mappings. A domain is `{"values": [...]}`, or
        `{"min":, "max":}` with `step` or `scale: "Log"`; any may have `when`. `search` and `budget` are as in a
        manifest (`{"algorithm": "TPE", "scheduler": {"type": "ASHA"}}`, `{"maxTrials": 40}`). `points` are tried
        first; the searcher learns from the finished studies `warm_start`. `epochs` is the length of a whole
        training, `rows` the number of its training rows (for resource Samples). `slots` trainings run side by
        side (default: one per core), each with `gpus`.
        """
        self._folder = Path(into).resolve()  # Ray's processes may have another working directory
        self._functions = (train, refit)
        self._slots = (os.cpu_count() or 1) if slots is None else arguments.whole("slots", slots, 1)
        self._gpus = arguments.finite("gpus", gpus, least=0)
        rows = None if rows is None else arguments.whole("rows", rows, 1)
        self._rows = rows
        epochs = arguments.whole("epochs", epochs, 1)
        folds = arguments.whole("folds", folds, 1)
        repeats = arguments.whole("repeats", repeats, 1)
        metric, goal = arguments.name("metric", metric), arguments.one_goal("goal", goal)
        target = None if target is None else arguments.finite("target", target)
        search, budget = arguments.plain(search or {}), arguments.plain(budget or {})
        spaces, points = arguments.plain(spaces), arguments.plain(points)
        arguments.check_points(points)
        for field, given in (("spaces", spaces), ("points", points)):
            arguments.check_integers(field, given)
        parsed_search = _parsed(Search, "search", search)
        self._named = "algorithm" in search
        self._budget = _parsed(Budget, "budget", budget)
        several = [spaces] if isinstance(spaces, Mapping) else list(spaces)
        domains = [
            {name: _domain(f"spaces[{index}].{name}", given) for name, given in space.items()}
            for index, space in enumerate(several)
        ]
        self._problem = Problem(
            search=parsed_search,
            spaces=cast(Sequence[Space], domains),
            metrics=(metric,),
            goals=(goal,),
            max_epochs=epochs,
            points=tuple(points),
            folds=folds,
            repeats=repeats,
            best_of_last=best_of_last,
            target=target,
            refit=refit is not None,
        )
        self._check(several)
        is_chosen = parsed_search.algorithm == "Auto"
        self._problem = replace(self._problem, search=self._chosen(), is_chosen=is_chosen)
        with _as_arguments():
            Proposer(self._problem).check()
        for index, other in enumerate(warm_start):
            theirs, ours = (*other._problem.metrics, *other._problem.goals), (metric, goal)
            if theirs != ours:
                raise SpecError(
                    f"warm_start[{index}]", f"must have metric and goal {ours} (got {theirs})"
                )
        self._parts = {
            "search": parsed_search.to_json(),
            "spaces": several,
            "points": list(points),
            "metric": [metric, goal],
            "training": [epochs, folds, repeats, rows],
        }
        self._warm_start = warm_start
        self._state: StudyState | None = None

    def _check(self, spaces: Sequence[Mapping[str, Any]]) -> None:
        problem = self._problem
        if not spaces or not all(spaces):
            raise SpecError("spaces", "must have at least one hyperparameter each")
        for index, space in enumerate(problem.spaces):
            for name, domain in space.items():
                if not can_hold(domain.when or {}, space):
                    raise SpecError(
                        f"spaces[{index}].{name}.when",
                        "must name hyperparameters of the same space that have text values and no `when`"
                        f" of their own, and some of these values (got {domain.when})",
                    )
        for name in ("points", "warmStart"):
            if problem.search.to_json().get(name):
                raise SpecError(f"search.{name}", "must be given as an argument of Study")
        if problem.rung_by == "Samples" and self._rows is None:
            raise SpecError("rows", "must be given with resource Samples")
        as_spec = SimpleNamespace(
            search=problem.search,
            search_spaces=[SimpleNamespace(domains=lambda s=space: s) for space in problem.spaces],
            budget=self._budget,
            hyperparameters=SimpleNamespace(epochs=problem.max_epochs),
            validation=SimpleNamespace(
                cross_validation=problem.folds if problem.folds > 1 else None,
                folds=problem.folds,
                repeats=problem.repeats,
            ),
            objective=SimpleNamespace(secondary=[]),
        )
        for rule in (*SEARCH_RULES, *BUDGET_RULES):
            for field, message in rule.broken(as_spec):
                raise SpecError(field.lstrip(".").replace("searchSpaces", "spaces"), message)

    def _chosen(self) -> Search:
        problem = self._problem
        with _as_arguments(), told_of_constraints():
            constraints = problem.constraints
            budget, epochs = self._budget, problem.max_epochs
            return choose(problem.search, problem.spaces, budget, epochs, constraints)

    def run(self, progress: bool = True) -> "Study":
        """Search until the budget is spent or everything is tried, then refit; returns this study.

        A study that has failed tries again what failed. While the folder cannot be written (a full disk), it waits
        and says so. Raises StudyFailed if no trial has a value or too many failed, SpecError if the folder is
        another study's, BlockingIOError if another process uses it, OSError if the folder cannot be used at all,
        RayUnavailable if Ray does not start.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        storage = Storage.open(str(self._folder))
        self._go_on(storage)
        problem = self._problem
        own = described(problem.search) if problem.is_chosen else None
        claim(storage, self._parts, _argument, own)
        choice = choice_of(storage)
        search = problem.search if choice is None else restored(problem.search, choice)
        self._problem = replace(problem, search=search, rung_rule=rung_rule_of(storage))
        events = read_history(storage).events
        state = StudyState.replayed(self._problem, events)
        over = isinstance(next_item(state, self._budget, 0.0), End) and state.ended is not None
        retry = datetime.now(UTC).isoformat() if over and has_failed(state) else ""
        if not over or retry or may_go_on(state, events, self._budget, time.time()):
            about = {"metric": self._problem.metrics[0]}
            sink = LocalSink(self._folder, "into", about)
            term = sink.claim_term()
            try:
                self._search(sink, term, progress, retry)
            finally:
                sink.release()
                self._state = self._replayed(storage)  # also of a search that was interrupted
            state = self._state
        outcome = next_item(state, self._budget, 0.0)
        self._state = state
        if not isinstance(outcome, End) or outcome.reason in FAILURES:
            why = f"{outcome.reason}: {outcome.message}" if isinstance(outcome, End) else "no end"
            raise StudyFailed(why)
        return self

    def _go_on(self, storage: Storage) -> None:
        """Take over the algorithm of records from before one was chosen: without a name, it was Random."""
        if not self._problem.is_chosen or choice_of(storage) is not None:
            return
        try:
            begun = parts_in(storage)["search"]
        except FileNotFoundError:
            return
        if not self._named and begun["algorithm"] == "Random":
            search = _parsed(Search, "search", {**self._parts["search"], "algorithm": "Random"})
            self._parts = {**self._parts, "search": search.to_json()}
            self._problem = replace(self._problem, search=search, is_chosen=False)

    def _replayed(self, storage: Storage) -> StudyState:
        return StudyState.replayed(self._problem, read_history(storage).events)

    def _search(self, sink: LocalSink, term: int, progress: bool, retry: str) -> None:
        from finetune_trainer.runtime.function_search import search  # brings Ray

        train, refit = self._functions
        functions = Functions(
            train,
            refit,
            str(self._folder),
            self._problem.metrics[0],
            self._problem.max_epochs,
            self._rows,
            self._gpus,
        )
        inherited = self._inherited if self._warm_start else None
        search(
            self._problem,
            self._budget,
            functions,
            sink,
            term,
            self._slots,
            inherited,
            progress,
            retry,
        )
        self._write_report()

    def _write_report(self) -> None:
        """Write the report of what there is. A search does not fail because of a picture."""
        try:
            write_report(self._subject(), Storage.open(str(self._folder)), time.time(), ())
        except Exception:  # any: `Study.report` makes its document at any time
            log.exception("the report could not be written")

    def _inherited(self) -> list[tuple[Params, float]]:
        found = [
            (trial.params, trial.best.value)
            for study in self._warm_start
            for trial in study.state.best_known()
            if trial.best is not None
        ]
        return inheritable(self._problem, found, MOST)

    @property
    def state(self) -> StudyState:
        """Everything in the records, also after a run that was interrupted. Raises RuntimeError before `run`."""
        if self._state is None:
            raise RuntimeError("call run() first")
        return self._state

    def _winner(self) -> Trial:
        winner = self.state.best_trial()
        if winner is None:
            raise RuntimeError("no trial has a value yet")
        return winner

    @property
    def best_params_(self) -> Params:
        """The hyperparameters of the winner."""
        return self._winner().params

    @property
    def best_score_(self) -> float:
        """Its value: the mean over its folds and repeats."""
        best = self._winner().best
        assert best is not None  # a winner has a value
        return best.value

    @property
    def best_estimator_(self) -> Any:
        """What `refit` returned. Raises RuntimeError without a refit."""
        if self.state.refit is None:
            raise RuntimeError("the study has no refit function")
        return pickle.loads((self._folder / ESTIMATOR).read_bytes())

    @property
    def cv_results_(self) -> "pd.DataFrame":
        """One row per trial, with the columns of scikit-learn's searches, and how far the trial got.

        `split<n>_test_score`, with their mean, standard deviation (of the population) and rank; equal trials share one.
        A trial without a value has NaN and the last rank.
        """
        import pandas as pd

        places = self.state.places()
        rows = [self._row(trial, places.get(trial.number)) for trial in self.state.trials]
        frame = pd.DataFrame(rows)
        last = len(places) + 1
        frame["rank_test_score"] = frame["rank_test_score"].fillna(last).astype(int)
        return frame

    def report(self) -> Report:
        """All that is to be seen of the study. Raises RuntimeError before `run`."""
        return report_of(self._subject(), Storage.open(str(self._folder)), time.time())

    def _subject(self) -> Subject:
        return Subject(self._folder.name, self._problem, self._budget)

    def __repr__(self) -> str:
        """The folder, and how far it got."""
        return f"<Study {self._folder.name}: {self._said()}>"

    def _said(self) -> str:
        if self._state is None:
            return "not run yet"
        best = self._state.best_trial()
        said = f"{len(self._state.trials)} trials"
        if best is not None and best.best is not None:
            metric = self._problem.metrics[0]
            said += f", best {metric} {best.best.value:.6g} (trial {best.number})"
        return said

    def _repr_html_(self) -> str:
        """The best trials as a table."""
        head = f"<p>{html.escape(repr(self)[1:-1])}</p>"
        if self._state is None or not self._state.trials:
            return head
        table = self.cv_results_.sort_values("rank_test_score").head(10)
        names = [name for name in table if name.startswith("param_")]
        shown = table[["rank_test_score", "mean_test_score", *names, "epochs", "status"]]
        return head + str(shown.to_html(index=False, border=0))

    def _row(self, trial: Trial, rank: int | None) -> dict[str, Any]:
        splits = {
            f"split{number % self._problem.trainings}_test_score": done.value
            for number, done in self.state.splits(trial)
        }
        scores = np.array([*splits.values()], dtype=np.float64)
        mean, deviation = (scores.mean(), scores.std()) if len(scores) else (math.nan, math.nan)
        return {
            "mean_fit_time": sum(e.seconds for run in trial.runs.values() for e in run.epochs)
            / max(1, len(trial.runs)),
            **{f"param_{name}": value for name, value in trial.params.items()},
            "params": trial.params,
            **splits,
            "mean_test_score": mean,
            "std_test_score": deviation,
            "rank_test_score": rank,
            "epochs": self.state.epochs_of(trial),
            "status": trial.status,
            "message": trial.message,
        }


@contextmanager
def _as_arguments() -> Iterator[None]:
    """A SpecError names an argument of `Study`."""
    try:
        yield
    except SpecError as error:
        raise SpecError(*map(_as_argument, (error.field, error.message))) from error


def _as_argument(text: str) -> str:
    """`text` with the fields of a manifest as arguments of `Study`."""
    return text.replace("spec.search.points", "points").replace("spec.search.", "search.")


def _parsed(kind: type[Any], field: str, given: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        raise SpecError(*_first(field, error)) from error


def _first(field: str, error: ValidationError) -> tuple[str, str]:
    problem = next(iter(problems(error)))
    separator = "." if problem.field and not problem.field.startswith("[") else ""
    return f"{field}{separator}{problem.field}", problem.message


def _domain(field: str, given: Any) -> Domain:
    """The domain that a plain mapping describes, by the types of its values."""
    if not isinstance(given, Mapping):
        raise SpecError(field, f"must have values, or min and max (got {given!r})")
    if "values" in given and not given["values"]:
        raise SpecError(f"{field}.values", f"must have at least one value (got {given['values']})")
    numbers = [given.get(name) for name in ("min", "max", "step") if name in given]
    numbers += given.get("values", [])
    kind: type[Domain] = ChoiceDomain
    if all(type(number) is int for number in numbers):
        kind = IntegerDomain
    elif all(type(number) in (int, float) for number in numbers):
        kind = FloatDomain
    elif not all(isinstance(value, str | int | float) for value in numbers):
        raise SpecError(field, f"must have values of text, numbers, true or false (got {given!r})")
    return cast(Domain, _parsed(kind, field, given))
