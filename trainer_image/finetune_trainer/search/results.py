"""What people see of the records: the findings in the status, and the table of all trials."""

import io
from statistics import stdev
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from finetune_api.auto import described
from finetune_api.combinations import Params
from finetune_api.metrics import shown_metrics
from finetune_api.search import Budget
from finetune_api.status import (
    MAX_SPLITS,
    MAX_TOP_TRIALS,
    EnsembleResult,
    FinalModel,
    Findings,
    Spending,
    SplitResult,
    TrialCounts,
    TrialResult,
)
from finetune_trainer.search.decisions import price
from finetune_trainer.search.state import StudyState
from finetune_trainer.search.trials import Evaluation, Trial
from finetune_trainer.storage.folder import Storage
from finetune_trainer.storage.layout import RESULTS, TRIALS_CSV, TRIALS_PARQUET

"""Folder of the tables within the study's storage."""

_NAMED = 5
"""Trials that a warning names at most."""


def findings(
    state: StudyState,
    budget: Budget,
    storage: Storage,
    now: float,
    warnings: tuple[str, ...] = (),
) -> Findings:
    """The part of the status that the records tell."""
    ranked = state.top_trials(MAX_TOP_TRIALS)
    top = [_result(trial, trial.best) for trial in ranked if trial.best is not None]
    best = (
        top[0].model_copy(update={"splits": splits(state, ranked[0])[:MAX_SPLITS]}) if top else None
    )
    front = state.pareto_front()[:MAX_TOP_TRIALS] if len(state.problem.goals) > 1 else []
    final = None
    if state.refit is not None:
        final = FinalModel(
            model_uri=storage.uri(state.refit.path),
            params=state.trials[state.refit.trial].params,
            test_metrics=shown_metrics(state.refit.test_metrics),
            baseline=shown_metrics(state.refit.baseline),
            ensemble=_ensemble(state),
        )
    return Findings(
        search=described(state.problem.search) if state.problem.is_chosen else None,
        trials=_counts(state, budget),
        best=best,
        top_trials=top,
        pareto_front=[_result(trial, trial.best) for trial in front if trial.best is not None],
        final=final,
        results_uri=storage.uri(RESULTS) if state.ended else None,
        gpu_seconds=round(state.gpu_seconds, 1),
        spending=_spending(state, budget, now),
        warnings=[
            warning[:256]
            for warning in (*_no_trial_fulfils(state), *_short_memory(state), *warnings)[:10]
        ],
    )


def _no_trial_fulfils(state: StudyState) -> list[str]:
    """A warning if the best trial breaks the conditions of the objective."""
    best = state.best_trial()
    if best is None or best.best is None:
        return []
    broken = state.problem.violation(best.best.metrics)
    by = f"the best, trial {best.number}, breaks them by {broken:.4g}"
    return [f"objective.constraints: no trial fulfils them; {by}"] if broken else []


def _short_memory(state: StudyState) -> list[str]:
    """What a user should know who wonders why trials of large batches take so long."""
    if not state.in_parts:
        return []
    trials = sorted(state.in_parts)
    named = ", ".join(map(str, trials[:_NAMED]))
    others = f" and {len(trials) - _NAMED} more" if len(trials) > _NAMED else ""
    parts = max(state.in_parts.values())
    return [
        f"memory is short: batches of trials {named}{others} are computed in up to {parts} parts, with the same"
        " outcome but slower"
    ]


def _ensemble(state: StudyState) -> EnsembleResult | None:
    judged = state.ensemble
    if judged is None:
        return None
    found = f"{state.problem.metrics[0]} of the validation rows is {judged.value:.4f} together"
    found += f", {judged.best_single:.4f} of the best member alone"
    return EnsembleResult(
        trials=judged.trials,
        method=judged.method,
        value=judged.value,
        best_single=judged.best_single,
        kept=judged.kept,
        message=f"{'kept' if judged.kept else 'not kept'}: {found}",
    )


def _result(trial: Trial, best: Evaluation) -> TrialResult:
    return TrialResult(
        trial=trial.number,
        value=best.value,
        epoch=best.epoch,
        params=dict(trial.params),
        metrics=shown_metrics(best.metrics),
        deviation=best.deviation,
        standard_error=best.standard_error,
    )


def splits(state: StudyState, trial: Trial) -> list[SplitResult]:
    """Each fold and repeat that the trial's value is the mean of; none where it is a single training."""
    if state.problem.trainings == 1:
        return []
    found = []
    for number, done in state.splits(trial):
        fold, repeat = state.fold_and_repeat(number)
        found.append(SplitResult(fold=fold, repeat=repeat, metrics=shown_metrics(done.metrics)))
    return found


def _spending(state: StudyState, budget: Budget, now: float) -> Spending:
    problem = state.problem
    saved = None
    # Over Samples epochs differ in their rows; steps of PBT are parts of a member's training.
    if problem.rung_by != "Samples" and problem.search.algorithm != "PBT":
        ended = [trial for trial in state.trials if trial.status in ("Completed", "Stopped")]
        whole = sum(state.last_epoch(trial) for trial in ended) * problem.trainings
        saved = max(0.0, round(whole - sum(trial.trained for trial in ended), 3))
    cost = price(state, budget)
    epochs = state.epochs_trained
    hours = budget.max_gpu_hours

    def left(limit: int | None, used: float, unit: int = 1) -> int | None:
        return None if limit is None or state.ended else max(0, round((limit - used) / unit) * unit)

    # Seconds in minutes: a status that changed every second would be written every second.
    elapsed = state.elapsed(now)
    return Spending(
        epochs=round(epochs, 3),
        seconds=round(elapsed / 60) * 60,
        epochs_saved=saved,
        price=None if cost is None else round(cost, 2),
        price_saved=round(cost / epochs * saved, 2) if cost and epochs and saved else None,
        trials_left=left(budget.max_trials, len(state.trials)),
        failed_trials_left=left(budget.max_failed_trials, state.failed),
        trials_without_improvement_left=left(
            budget.max_trials_without_improvement, state.trials_since_best
        ),
        seconds_left=left(budget.max_duration_seconds, elapsed, 60),
        gpu_hours_left=None
        if hours is None
        else max(0.0, round(hours - state.gpu_seconds / 3600, 3)),
        price_left=None
        if cost is None or budget.max_price is None
        else max(0.0, round(budget.max_price - cost, 2)),
    )


def _counts(state: StudyState, budget: Budget) -> TrialCounts:
    by_status = dict.fromkeys(
        ("Running", "Paused", "Pending", "Completed", "Stopped", "Diverged", "Failed"), 0
    )
    for trial in state.trials:
        by_status[trial.status] += 1
    ended = sum(by_status[status] for status in ("Completed", "Stopped", "Diverged", "Failed"))
    planned = len(state.trials) if state.ended else state.planned(budget)
    return TrialCounts(
        planned=planned,
        running=by_status["Running"],
        paused=by_status["Paused"] + by_status["Pending"],
        completed=by_status["Completed"],
        stopped=by_status["Stopped"],
        diverged=by_status["Diverged"],
        failed=by_status["Failed"],
        summary=f"{ended}/{planned}" if planned is not None else str(ended),
    )


def table(state: StudyState) -> pa.Table:
    """A row a trial: number, state, params, value at every rung, best value with its metrics, cost.

    With constraints over metrics also by how much its best breaks them. With folds or repeats also the deviation of each metric, and each split's own.
    """
    rows = [_row(state, trial) for trial in state.trials]
    if state.problem.conditions:
        for row, trial in zip(rows, state.trials, strict=True):
            row["violation"] = trial.best and state.problem.violation(trial.best.metrics)
    if len(state.problem.goals) > 1:
        front = {trial.number for trial in state.pareto_front()}
        for row in rows:
            row["pareto"] = row["trial"] in front
    names = dict.fromkeys([*_ALWAYS, *(name for row in rows for name in row)])
    return pa.table(
        {
            name: _column(name, [row.get(name) for row in rows])
            for name in sorted(names, key=_column_order)
        }
    )


_ALWAYS = {
    "trial": pa.int64(),
    "state": pa.string(),
    "value": pa.float64(),
    "best_epoch": pa.float64(),
    "epochs": pa.float64(),
    "seconds": pa.float64(),
    "gpu_seconds": pa.float64(),
    "stopped_early": pa.bool_(),
    "failure": pa.string(),
    "message": pa.string(),
}
"""Columns of every table; the others depend on the study."""


_ORDER = (
    *("trial", "state", "generation", "member", "parent", "param_"),
    *("value", "standard_error", "violation", "pareto", "best_epoch"),
)
_LAST = (
    *("split", "epochs", "seconds", "gpu_seconds", "batch_parts"),
    *("stopped_early", "failure", "message"),
)


def _column_order(name: str) -> tuple[int, float]:
    for place, prefix in enumerate(_ORDER):
        if name == prefix or name.startswith(prefix):
            # Rungs by their resource; other columns of a kind keep the order of their coming.
            at = name.removeprefix("value_at_")
            return place, float(at) if at != name else -1.0
    for place, prefix in enumerate(_LAST):
        if name == prefix or (prefix == "split" and name.startswith(prefix)):
            return 1000 + place, 0.0
    return 100, 0.0


def _column(name: str, values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if name in _ALWAYS:
        return pa.array(values, _ALWAYS[name])
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int}:
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array(values, pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _row(state: StudyState, trial: Trial) -> dict[str, Any]:
    best = trial.best
    row: dict[str, Any] = {"trial": trial.number, "state": trial.status}
    for name in ("generation", "member", "parent"):
        if getattr(trial, name) is not None:
            row[name] = getattr(trial, name)
    row |= {f"param_{name}": value for name, value in _ordered(state, trial.params).items()}
    row |= {
        "value": best.value if best else None,
        "best_epoch": best.epoch if best else None,
    }
    if best is not None and best.standard_error is not None:
        row["standard_error"] = best.standard_error
    for level, value in trial.rung_values.items():
        row[f"value_at_{state.problem.resources[level]:g}"] = value
    row |= {f"metric_{name}": value for name, value in (best.metrics if best else {}).items()}
    row |= _split_columns(state, trial)
    if trial.number in state.in_parts:
        row["batch_parts"] = state.in_parts[trial.number]
    epochs = [done for run in trial.runs.values() for done in run.epochs]
    return row | {
        "epochs": state.epochs_of(trial),
        "seconds": sum(done.seconds for done in epochs),
        "gpu_seconds": sum(done.gpu_seconds for done in epochs),
        "stopped_early": _stopped_early(state, trial),
        "failure": trial.failure_class,
        "message": trial.message,
    }


def _ordered(state: StudyState, params: Params) -> Params:
    """In the order of the spaces, so that every study of a kind has its columns alike."""
    names = dict.fromkeys(name for space in state.problem.spaces for name in space)
    return {name: params[name] for name in (*names, *params) if name in params}


def _split_columns(state: StudyState, trial: Trial) -> dict[str, float]:
    found = splits(state, trial)
    columns: dict[str, float] = {}
    if not found:
        return columns
    # What a fold leaves undefined (of a class that it lacks) has no deviation.
    shared = [name for name in found[0].metrics if all(name in one.metrics for one in found)]
    metrics = {name: [split.metrics[name] for split in found] for name in shared}
    if len(found) > 1:
        columns |= {f"deviation_{name}": stdev(values) for name, values in metrics.items()}
    for number, split in enumerate(found):
        columns |= {f"split{number}_{name}": value for name, value in split.metrics.items()}
    return columns


def _stopped_early(state: StudyState, trial: Trial) -> bool:
    """Whether the patience of early stopping ended it."""
    by_itself = trial.status == "Completed" and state.problem.search.algorithm != "PBT"
    last = state.last_epoch(trial)
    return by_itself and any(run.epochs and run.trained < last for run in trial.planned_runs)


def write_tables(storage: Storage, trials: pa.Table) -> None:
    """Write `results/trials.csv` and `results/trials.parquet`."""
    as_csv, as_parquet = io.BytesIO(), io.BytesIO()
    pyarrow.csv.write_csv(trials, as_csv)
    pyarrow.parquet.write_table(trials, as_parquet)
    storage.write(TRIALS_CSV, as_csv.getvalue())
    storage.write(TRIALS_PARQUET, as_parquet.getvalue())
