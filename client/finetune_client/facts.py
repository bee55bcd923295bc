"""What the plugin prints, as values: for a table, JSON and YAML alike."""

from collections.abc import Sequence
from typing import Any

from finetune_client.view import Best, StudyView


def row(view: StudyView) -> dict[str, Any]:
    """The study in a list of studies, as the columns of kubectl have it."""
    status = view.status
    return {
        "namespace": view.namespace,
        "name": view.name,
        "state": view.state,
        "reason": view.reason,
        "trials": status.trials.summary,
        "best": status.best_shown,
        "workers": status.workers,
        "created": view.created.isoformat(),
    }


def report(view: StudyView, why: Sequence[str]) -> dict[str, Any]:
    """All that is to be said about a study."""
    status = view.status
    return {
        "namespace": view.namespace,
        "name": view.name,
        "state": view.state,
        "reason": view.reason,
        "message": status.message,
        "why": list(why),
        "search": search(view),
        "trials": status.trials.to_json(),
        "spending": [
            {"what": spent.what, "used": spent.used, "limit": spent.limit or None}
            for spent in view.spending()
        ],
        "best": None if view.best is None else best(view.best),
        "topTrials": [trial.to_json() for trial in status.top_trials],
        "conditions": [condition.to_json() for condition in status.conditions],
        "warnings": status.warnings,
        "resultsUri": status.results_uri,
    }


def search(view: StudyView) -> str:
    """Algorithm and scheduler: what was chosen, else what the spec says."""
    asked = view.spec.get("search") or {}
    chosen = view.status.search or (view.status.plan.search if view.status.plan else None)
    if chosen is not None:
        return f"{chosen.algorithm}, {chosen.scheduler}"
    scheduler = (asked.get("scheduler") or {}).get("type")
    return ", ".join(part for part in (asked.get("algorithm"), scheduler) if part)


def best(found: Best) -> dict[str, Any]:
    """The best trial."""
    return {
        "trial": found.trial,
        "metric": found.metric,
        "value": found.value,
        "standardError": found.standard_error,
        "params": found.params,
        "metrics": found.metrics,
    }


def hyperparameters(view: StudyView, found: Best) -> dict[str, Any]:
    """The best trial's hyperparameters, with those that the study fixes, as they stand in a manifest."""
    fixed = view.spec.get("hyperparameters") or {}
    return {"spec": {"hyperparameters": {**fixed, **found.params}}}
