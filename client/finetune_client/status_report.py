"""The report of a study of a cluster, as far as its status says it."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from finetune_api.metrics import natural_goal
from finetune_api.status import TrialResult
from finetune_api.study import KIND
from finetune_api.wording import ended
from finetune_client.view import StudyView
from finetune_reports import document as doc


def status_report(view: StudyView) -> doc.Report:
    """The best trials, the best configuration, the spending and the final model: what a status has room for.

    Raises ClientError if a newer operator has written what this version cannot read.
    """
    status, spec = view.status, view.spec
    objective, spent = spec["objective"], status.spending
    chosen = status.search or (status.plan.search if status.plan else None)
    asked = spec.get("search") or {}
    fixed = {
        name: value
        for name, value in (spec.get("hyperparameters") or {}).items()
        if isinstance(value, bool | int | float | str)
    }
    ending = status.condition("Complete") or status.condition("Failed")
    over = status.completion_time if status.finished else None
    front = {trial.trial for trial in status.pareto_front}
    top, best = list(status.top_trials), status.best
    if best is not None and best.trial not in {trial.trial for trial in top}:
        top.insert(0, best)  # a long status has dropped it from the list
    return doc.Report(
        name=view.name,
        task=str(spec.get("task", "")),
        model=str((spec.get("model") or {}).get("name", "")),
        objectives=[_objective(each) for each in (objective, *(objective.get("secondary") or []))],
        algorithm=chosen.algorithm if chosen else str(asked.get("algorithm", "Auto")),
        scheduler=chosen.scheduler
        if chosen
        else str((asked.get("scheduler") or {}).get("type", "Auto")),
        manifest=_manifest(view),
        made=time.time(),
        began=_seconds(status.start_time),
        ended=_seconds(over),
        reason=ending.reason if ending and over else "",
        message=ending.message if ending and over else "",
        parameters=_parameters(top),
        defaults=fixed,
        trials=[_trial(trial, place, trial.trial in front) for place, trial in enumerate(top, 1)],
        spending=doc.Spending(
            trials=ended(status.trials) + status.trials.running + status.trials.paused,
            epochs=spent.epochs if spent else 0.0,
            seconds=float(spent.seconds) if spent else 0.0,
            gpu_seconds=status.gpu_seconds,
            price=spent.price if spent else None,
            epochs_saved=spent.epochs_saved if spent else None,
            limits=_limits(view),
        ),
        splits=[
            doc.Split(fold=one.fold, repeat=one.repeat, metrics=one.metrics)
            for one in (status.best.splits if status.best else [])
        ],
        final=None
        if status.final is None
        else doc.Final(
            trial=status.best.trial if status.best else 0,
            params=status.final.params,
            model_uri=status.final.model_uri,
            test=status.final.test_metrics,
            baseline=status.final.baseline,
            ensemble=status.final.ensemble.message if status.final.ensemble else "",
        ),
        warnings=list(status.warnings),
        missing=_missing(view),
    )


def _missing(view: StudyView) -> str:
    where = view.status.results_uri
    if where is None:
        return "learning curves and all but the best trials: the study has written no results yet."
    return (
        "learning curves, all but the best trials, and the details of the test. The whole report is "
        f"{where}/report.html."
    )


def _objective(given: Mapping[str, Any]) -> doc.Objective:
    return doc.Objective(
        metric=given["metric"],
        goal=given.get("goal") or natural_goal(given["metric"]),
        target=given.get("target"),
    )


def _manifest(view: StudyView) -> str:
    from finetune_api.manifest import dump_yaml

    body = {"apiVersion": view.body["apiVersion"], "kind": KIND}
    return dump_yaml({**body, "metadata": {"name": view.name}, "spec": dict(view.spec)})


def _parameters(trials: list[TrialResult]) -> list[doc.Parameter]:
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    return [doc.Parameter(name=name) for name in names]


def _trial(trial: TrialResult, place: int, pareto: bool) -> doc.Trial:
    return doc.Trial(
        number=trial.trial,
        state="",
        params=trial.params,
        value=trial.value,
        standard_error=trial.standard_error,
        epoch=trial.epoch,
        place=place,
        metrics=trial.metrics,
        pareto=pareto,
    )


def _limits(view: StudyView) -> list[doc.Limit]:
    status, budget = view.status, view.spec.get("budget") or {}
    spent = status.spending
    known = {
        "maxTrials": ("trials", float(ended(status.trials))),
        "maxDurationSeconds": ("s", float(spent.seconds) if spent else 0.0),
        "maxGpuHours": ("GPU h", status.gpu_seconds / 3600),
        "maxPrice": ("", (spent.price or 0.0) if spent else 0.0),
    }
    return [
        doc.Limit(name=name, unit=unit, spent=used, most=float(budget[name]))
        for name, (unit, used) in known.items()
        if budget.get(name)
    ]


def _seconds(when: datetime | None) -> float | None:
    return None if when is None else when.timestamp()
