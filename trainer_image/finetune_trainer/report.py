"""The report of a study: the document it is drawn from, from the study's folder at any time, and the page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_api.manifest import dump_yaml, read_study
from finetune_api.metrics import shown_metrics
from finetune_api.search import Budget
from finetune_api.spaces import ChoiceDomain, Domain, NumericDomain
from finetune_api.status import Findings
from finetune_api.study import API_VERSION, KIND, FineTuneStudy, StudySpec
from finetune_reports import document as doc
from finetune_trainer.records import events as ev
from finetune_trainer.records.claim import parts_in
from finetune_trainer.records.log import read_history
from finetune_trainer.search.problem import Problem, problem_of
from finetune_trainer.search.recorded import recorded_spec
from finetune_trainer.search.results import findings
from finetune_trainer.search.state import StudyState
from finetune_trainer.search.story import Story
from finetune_trainer.search.trials import Trial
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.glance import is_held
from finetune_trainer.storage.layout import (
    ATTRIBUTIONS,
    DATA_REPORT,
    REPORT_DOCUMENT,
    REPORT_PAGE,
    RESULT,
    TEST_REPORT,
)

MOST_ATTRIBUTED = 20
"""Attributed rows in a report."""

FUNCTION = "Function"
"""In the place of the task, for studies of a Python function."""


@dataclass(frozen=True)
class Subject:
    """What a report is of, beside the records."""

    name: str
    problem: Problem
    budget: Budget
    task: str = FUNCTION
    model: str = ""
    manifest: str = ""
    fixed: dict[str, Any] | None = None
    shows_texts: bool = True
    """Whether the report has texts of rows."""

    @classmethod
    def of(cls, study: FineTuneStudy, storage: Storage) -> "Subject":
        """The subject of a study by the rules that it began with in its folder."""
        return cls.named(study.metadata.name, study.spec, storage)

    @classmethod
    def named(cls, name: str, spec: StudySpec, storage: Storage) -> "Subject":
        """The same of its spec."""
        return cls(
            name=name,
            problem=problem_of(spec, storage),
            budget=spec.budget,
            task=spec.task,
            model=spec.model.name,
            manifest=_manifest(name, spec),
            fixed=spec.hyperparameters.to_json() if spec.hyperparameters else None,
            shows_texts=spec.artifacts.texts is not False,
        )


def write_report(subject: Subject, storage: Storage, now: float, warnings: Sequence[str]) -> None:
    """Write document and page into the results of the study.

    Raises ValueError as `read_history`.
    """
    from finetune_reports.page import page_of  # imports Plotly and Optuna

    report = report_of(subject, storage, now, warnings)
    storage.write(REPORT_DOCUMENT, report.to_json().encode())
    storage.write(REPORT_PAGE, page_of(report).encode())


def report_of(
    subject: Subject,
    storage: Storage,
    now: float,
    warnings: Sequence[str] = (),
    is_working: bool = True,
) -> doc.Report:
    """The document of the study as its folder is at `now` (seconds since the epoch).

    `warnings` are those of the data, which the records do not have. Unless somebody `is_working` on it, its time
    stands still since its last event. Raises ValueError as `read_history`.
    """
    events = read_history(storage).events
    problem = subject.problem
    story = Story(problem, events)
    state = story.state
    at = now if is_working or story.began is None else story.began + story.last
    found = findings(state, subject.budget, storage, at, tuple(warnings))
    data = _json_at(storage, DATA_REPORT)
    ended = state.ended
    return doc.Report(
        name=subject.name,
        task=subject.task,
        model=subject.model,
        objectives=_objectives(problem),
        constraints=list(problem.conditions),
        algorithm=problem.search.algorithm,
        scheduler=problem.search.scheduler.type,
        resource=problem.rung_by,
        rungs=list(problem.resources) if len(problem.resources) > 1 else [],
        folds=problem.folds,
        repeats=problem.repeats,
        manifest=subject.manifest,
        made=now,
        began=story.began,
        ended=ended.time if ended else None,
        reason=ended.reason if ended else "",
        message=ended.message if ended else "",
        parameters=_parameters(problem),
        defaults=subject.fixed or {},
        trials=_trials(state),
        spans=[*story.spans, *story.at_work(at)],
        waits=story.waits,
        improvements=story.improvements,
        spending=_spending(state, found, subject.budget),
        splits=[
            doc.Split(fold=one.fold, repeat=one.repeat, metrics=one.metrics)
            for one in (found.best.splits if found.best and found.best.splits else [])
        ],
        final=_final(found, state),
        data=data,
        test=_json_at(storage, TEST_REPORT) if state.refit else None,
        attributions=_lines_at(storage, ATTRIBUTIONS)
        if state.refit and subject.shows_texts
        else [],
        setting=_setting(events),
        warnings=found.warnings or (data or {}).get("warnings", []),
    )


def subject_in(folder: Path) -> Subject | doc.Report:
    """The study that has begun in a folder on this machine: also one that runs, whose `study.yaml` is not there yet.

    Of a study of a Python function, whose search only the function's program knows, the document that its end wrote.
    Raises SpecError where none has begun, or such a study has not ended.
    """
    storage = Storage.open(str(folder))
    if (folder / RESULT).is_file():
        subject = Subject.of(read_study(folder / RESULT), storage)
        # While it goes on, nobody but its process knows the limits that it was given now.
        return replace(subject, budget=Budget()) if is_held(folder) else subject
    if (folder / REPORT_DOCUMENT).is_file() and not _is_of_spec(storage):
        found = doc.read_report(storage.read(REPORT_DOCUMENT))
        later = "the search goes on: what it has done since appears when it ends"
        more = {"warnings": [*found.warnings, later]}
        return found.model_copy(update=more) if is_held(folder) else found
    spec = recorded_spec(folder)
    subject = Subject.named(folder.absolute().name, spec, storage)
    return replace(subject, budget=Budget())


def _is_of_spec(storage: Storage) -> bool:
    """Whether the study in a folder is one of a manifest, not of a Python function."""
    try:
        return "task" in parts_in(storage)
    except FileNotFoundError:
        return False


def _manifest(name: str, spec: StudySpec) -> str:
    """What a person would have written: without defaults."""
    written = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    kind = {"apiVersion": API_VERSION, "kind": KIND}
    return dump_yaml({**kind, "metadata": {"name": name}, "spec": written})


def _objectives(problem: Problem) -> list[doc.Objective]:
    targets = (problem.target, *[None] * (len(problem.goals) - 1))
    return [
        doc.Objective(metric=metric, goal=goal, target=target)
        for metric, goal, target in zip(problem.metrics, problem.goals, targets, strict=True)
    ]


def _parameters(problem: Problem) -> list[doc.Parameter]:
    domains: dict[str, list[Domain]] = {}
    for space in problem.spaces:
        for name, domain in space.items():
            domains.setdefault(name, []).append(domain)
    return [_parameter(name, found) for name, found in domains.items()]


def _parameter(name: str, domains: Sequence[Domain]) -> doc.Parameter:
    numeric = [each for each in domains if isinstance(each, NumericDomain)]
    values = [each.values or [] for each in domains if isinstance(each, ChoiceDomain)]
    values += [each.values or [] for each in numeric]
    chosen = list(dict.fromkeys(value for each in values for value in each))
    if numeric:
        bounds = [each for one in numeric for each in (one.min, one.max) if each is not None]
        bounds += [each for each in chosen if isinstance(each, int | float)]
        return doc.Parameter(
            name=name,
            low=min(bounds),
            high=max(bounds),
            log=any(each.scale == "Log" for each in numeric),
            integer=all(each.integer for each in numeric),
            values=sorted(chosen) if chosen and not any(each.min for each in numeric) else None,
        )
    return doc.Parameter(name=name, values=chosen)


def _trials(state: StudyState) -> list[doc.Trial]:
    places = state.places()
    several = len(state.problem.goals) > 1
    front = {trial.number for trial in state.pareto_front()} if several else set()
    return [
        _trial(state, trial, places.get(trial.number), trial.number in front)
        for trial in state.trials
    ]


def _trial(state: StudyState, trial: Trial, place: int | None, pareto: bool) -> doc.Trial:
    best, resources = trial.best, state.problem.resources
    epochs = [done for run in trial.runs.values() for done in run.epochs]
    conditions = best is not None and bool(state.problem.conditions)
    return doc.Trial(
        number=trial.number,
        state=trial.status,
        params=dict(trial.params),
        value=best.value if best else None,
        standard_error=best.standard_error if best else None,
        epoch=best.epoch if best else None,
        place=place,
        metrics=shown_metrics(best.metrics) if best else {},
        curve=[(each.epoch, each.value) for each in trial.evaluations],
        rungs=[(resources[level], value) for level, value in sorted(trial.rung_values.items())],
        epochs=state.epochs_of(trial),
        seconds=sum(done.seconds for done in epochs),
        gpu_seconds=sum(done.gpu_seconds for done in epochs),
        violation=state.problem.violation(best.metrics) if conditions and best else 0.0,
        pareto=pareto,
        parent=trial.parent,
        member=trial.member,
        message=trial.message,
    )


def _spending(state: StudyState, found: Findings, budget: Budget) -> doc.Spending:
    spent = found.spending
    price = spent.price if spent else None
    seconds = state.elapsed(state.ended.time if state.ended else 0.0)
    if spent and not state.ended:
        seconds = float(spent.seconds)
    limits = (
        ("maxTrials", "trials", float(len(state.trials)), budget.max_trials),
        ("maxDurationSeconds", "s", seconds, budget.max_duration_seconds),
        ("maxGpuHours", "GPU h", state.gpu_seconds / 3600, budget.max_gpu_hours),
        ("maxPrice", "", price or 0.0, budget.max_price),
        (
            "maxTrialsWithoutImprovement",
            "trials",
            float(state.trials_since_best),
            budget.max_trials_without_improvement,
        ),
    )
    return doc.Spending(
        trials=len(state.trials),
        epochs=state.epochs_trained,
        seconds=seconds,
        gpu_seconds=state.gpu_seconds,
        price=price,
        epochs_saved=spent.epochs_saved if spent else None,
        limits=[
            doc.Limit(name=name, unit=unit, spent=used, most=float(most))
            for name, unit, used, most in limits
            if most is not None
        ],
    )


def _final(found: Findings, state: StudyState) -> doc.Final | None:
    final = found.final
    if final is None or state.refit is None:
        return None
    return doc.Final(
        trial=state.refit.trial,
        params=dict(final.params),
        model_uri=final.model_uri,
        test=final.test_metrics,
        baseline=final.baseline,
        ensemble=final.ensemble.message if final.ensemble else "",
    )


def _setting(events: Sequence[ev.Event]) -> dict[str, str]:
    """What the last slot trained with."""
    ready = [event for event in events if isinstance(event, ev.SlotReady)]
    return dict(ready[-1].setting) if ready else {}


def _json_at(storage: Storage, path: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(storage.read(path))
    except FileNotFoundError:
        return None
    return found


def _lines_at(storage: Storage, path: str) -> list[dict[str, Any]]:
    try:
        lines = storage.read(path).decode().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines[:MOST_ATTRIBUTED]]
