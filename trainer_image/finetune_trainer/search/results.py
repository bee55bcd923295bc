"""What people see of the records: the findings in the status, and the table of all trials."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from finetune_api.hyperparameters import JSON_NAMES
from finetune_api.status import MAX_TOP_TRIALS, FinalModel, Findings, TrialCounts, TrialResult
from finetune_api.study import Budget
from finetune_trainer.search.events import EpochDone
from finetune_trainer.search.state import StudyState
from finetune_trainer.search.storage import Storage
from finetune_trainer.search.trials import Trial

RESULTS = "results"
"""Folder of the tables within the study's storage."""


def findings(
    state: StudyState, budget: Budget, storage: Storage, warnings: tuple[str, ...] = ()
) -> Findings:
    """The part of the status that the records tell."""
    ranked = state.top_trials(MAX_TOP_TRIALS)
    top = [_result(trial, trial.best) for trial in ranked if trial.best is not None]
    final = None
    if state.refit is not None:
        final = FinalModel(
            model_uri=storage.uri(state.refit.path),
            params=state.trials[state.refit.trial].params,
            test_metrics=state.refit.test_metrics,
            baseline=state.refit.baseline,
        )
    return Findings(
        trials=_counts(state, budget),
        best=top[0] if top else None,
        top_trials=top,
        final=final,
        results_uri=storage.uri(RESULTS) if state.ended else None,
        gpu_seconds=round(state.gpu_seconds, 1),
        warnings=[warning[:256] for warning in warnings[:10]],
    )


def _result(trial: Trial, epoch: EpochDone) -> TrialResult:
    return TrialResult(
        trial=trial.number,
        value=epoch.value,
        epoch=epoch.epoch,
        params=dict(trial.params),
        metrics=epoch.metrics,
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
    """A row a trial: number, state, params, objective at every rung, best value with its metrics, cost."""
    names = [name for name in JSON_NAMES if any(name in trial.params for trial in state.trials)]
    metrics = sorted(
        {name for trial in state.trials for epoch in trial.epochs for name in epoch.metrics}
    )
    return pa.Table.from_pylist(
        [_row(state, trial, names, metrics) for trial in state.trials],
        schema=_schema(state, names, metrics),
    )


def _row(state: StudyState, trial: Trial, names: list[str], metrics: list[str]) -> dict[str, Any]:
    best = trial.best
    by_epoch = {epoch.epoch: epoch.value for epoch in trial.epochs}
    return {
        "trial": trial.number,
        "state": trial.status,
        **{f"param_{name}": trial.params.get(name) for name in names},
        "value": best.value if best else None,
        "best_epoch": best.epoch if best else None,
        "epochs": len(trial.epochs),
        **{f"value_at_{epochs}": by_epoch.get(epochs) for epochs in state.rungs},
        **{f"metric_{name}": best.metrics.get(name) if best else None for name in metrics},
        "seconds": sum(epoch.seconds for epoch in trial.epochs),
        "gpu_seconds": sum(epoch.gpu_seconds for epoch in trial.epochs),
        "stopped_early": trial.stopped_early,
        "failure": trial.failure_class,
        "message": trial.message,
    }


def _schema(state: StudyState, names: list[str], metrics: list[str]) -> pa.Schema:
    kinds = {name: {type(trial.params.get(name)) for trial in state.trials} for name in names}
    params = [
        (
            f"param_{name}",
            pa.string() if str in found else pa.float64() if float in found else pa.int64(),
        )
        for name, found in kinds.items()
    ]
    return pa.schema(
        [
            ("trial", pa.int64()),
            ("state", pa.string()),
            *params,
            ("value", pa.float64()),
            ("best_epoch", pa.int64()),
            ("epochs", pa.int64()),
            *((f"value_at_{epochs}", pa.float64()) for epochs in state.rungs),
            *((f"metric_{name}", pa.float64()) for name in metrics),
            ("seconds", pa.float64()),
            ("gpu_seconds", pa.float64()),
            ("stopped_early", pa.bool_()),
            ("failure", pa.string()),
            ("message", pa.string()),
        ]
    )


def write_tables(storage: Storage, trials: pa.Table) -> None:
    """Write `results/trials.csv` and `results/trials.parquet`."""
    as_csv, as_parquet = io.BytesIO(), io.BytesIO()
    pyarrow.csv.write_csv(trials, as_csv)
    pyarrow.parquet.write_table(trials, as_parquet)
    storage.write(f"{RESULTS}/trials.csv", as_csv.getvalue())
    storage.write(f"{RESULTS}/trials.parquet", as_parquet.getvalue())
