"""A study as it was read at one time, and what follows from it alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from finetune_api.hints import dotted
from finetune_api.labels import asked_retry
from finetune_api.status import StudyStatus, TrialResult
from finetune_api.stores import study_folder
from finetune_api.wording import duration, format_value
from finetune_client.errors import ClientError

if TYPE_CHECKING:  # it takes a second
    import pandas as pd

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Best:
    """The best trial so far."""

    trial: int
    metric: str
    """Name of the objective's metric."""

    value: float
    """Its value, the mean over folds and repeats."""

    standard_error: float | None
    """Of `value`; None where there is one fold and one repeat."""

    params: dict[str, Any]
    metrics: dict[str, float]

    @property
    def interval(self) -> str:
        """`0.9123 ± 0.0040`: the value with its standard error, if there is one."""
        error = self.standard_error
        return f"{self.value:.4f}" + ("" if error is None else f" ± {error:.4f}")


@dataclass(frozen=True)
class Spent:
    """What a study has used of one of its limits."""

    what: str
    used: str
    limit: str
    """Empty where there is no limit."""

    def __str__(self) -> str:
        return f"{self.used} of {self.limit}" if self.limit else self.used


@dataclass(frozen=True)
class StudyView:
    """A study as the API server served it. A study of a newer CRD may have fields that are not known here."""

    body: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.body["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.body["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        """Its UID."""
        return str(self.body["metadata"]["uid"])

    @property
    def created(self) -> datetime:
        """When it was created."""
        return datetime.fromisoformat(self.body["metadata"]["creationTimestamp"])

    @property
    def spec(self) -> Mapping[str, Any]:
        """Its spec, as JSON."""
        spec: Mapping[str, Any] = self.body["spec"]
        return spec

    @property
    def metric(self) -> str:
        """The metric of its objective."""
        return str(self.spec["objective"]["metric"])

    @cached_property
    def status(self) -> StudyStatus:
        """Its status. Raises ClientError if a newer operator has written what this version cannot read."""
        try:
            return StudyStatus.model_validate(self.body.get("status") or {}, extra="ignore")
        except ValidationError as error:
            field = dotted(("status", *error.errors()[0]["loc"]))
            told = f"{self.name}: {field} is not known to this version; upgrade finetune-operator"
            raise ClientError(told) from error

    @property
    def state(self) -> str:
        """What the STATE column of kubectl shows; empty until the operator has seen the study."""
        return self.status.state or ""

    @property
    def reason(self) -> str:
        """What the REASON column of kubectl shows."""
        condition = self.status.condition("Reconciling")
        return "" if condition is None else condition.reason

    @property
    def is_current(self) -> bool:
        """Whether the operator has seen the spec, and the retry that was asked for, as they are now."""
        metadata = self.body["metadata"]
        asked = asked_retry(metadata.get("annotations") or {})
        waits = asked not in (None, self.status.retry) and not self.spec.get("suspend")
        return self.status.observed_generation >= int(metadata["generation"]) and not waits

    @property
    def is_over(self) -> bool:
        """Whether the study has ended, and no edit or retry that the operator has yet to see may let it go on."""
        return self.status.finished and self.is_current

    @property
    def best(self) -> Best | None:
        """Its best trial; None before one has a value."""
        best = self.status.best
        if best is None:
            return None
        return Best(
            trial=best.trial,
            metric=self.metric,
            value=best.value,
            standard_error=best.standard_error,
            params=dict(best.params),
            metrics=dict(best.metrics),
        )

    @property
    def records_uri(self) -> str | None:
        """The study's folder in an object store; None before its first attempt, or where it is on a volume."""
        storage = self.status.storage
        if storage is None or storage.uri is None:
            return None
        adopts = self.spec.get("onExisting", "Fresh") != "Fresh"
        return study_folder(storage.uri, self.namespace, self.name, self.uid, adopts)

    def trials(self) -> "pd.DataFrame":
        """The best trials of the status as a table, with the columns of `results/trials.csv`.

        A status has at most ten. `attrs["resultsUri"]` says where the table of all trials is.
        """
        import pandas as pd

        trials = self.status.top_trials
        table = pd.DataFrame([_row(trial) for trial in trials] or {"trial": [], "value": []})
        table = table.set_index("trial")
        table.attrs["metric"] = self.metric
        table.attrs["resultsUri"] = self.status.results_uri
        table.attrs["note"] = "the best trials only; all of them are in the folder resultsUri"
        return table

    def spending(self) -> list[Spent]:
        """What the search has used, each beside its limit."""
        status, budget = self.status, self.spec.get("budget") or {}
        spending, counts = status.spending, status.trials
        planned = budget.get("maxTrials", counts.planned)
        done = counts.summary.partition("/")[0] or "0"
        found = [
            Spent("trials", done, _shown(planned)),
            Spent("failed trials", str(counts.failed), _shown(budget.get("maxFailedTrials", 3))),
        ]
        if spending is not None:
            found.append(Spent("epochs", f"{spending.epochs:g}", ""))
            limit = budget.get("maxDurationSeconds")
            found.append(
                Spent("time", duration(spending.seconds), duration(limit) if limit else "")
            )
        if status.gpu_seconds or "maxGpuHours" in budget:
            hours = f"{status.gpu_seconds / SECONDS_PER_HOUR:.3g}"
            found.append(Spent("GPU hours", hours, _shown(budget.get("maxGpuHours"))))
        if spending is not None and spending.price is not None:
            found.append(Spent("price", f"{spending.price:.2f}", _shown(budget.get("maxPrice"))))
        return found


def _shown(limit: float | None) -> str:
    return "" if limit is None else format_value(limit)


def _row(trial: TrialResult) -> dict[str, Any]:
    return {
        "trial": trial.trial,
        **{f"param_{name}": value for name, value in trial.params.items()},
        "value": trial.value,
        **({} if trial.standard_error is None else {"standard_error": trial.standard_error}),
        "best_epoch": trial.epoch,
        **{f"metric_{name}": value for name, value in trial.metrics.items()},
    }
