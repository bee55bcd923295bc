"""Writes runs to an MLflow server, with its own client."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from finetune_api.outputs import MlflowTracking
from finetune_trainer.tracking.runs import Ending, Point, TrackedRun, TrackingError

_RUN = "finetune.run"
"""Tag with the run's key: the server assigns ids of its own."""

_RECORDS = "finetune.records"
_STATUS = {"Finished": "FINISHED", "Failed": "FAILED", "Killed": "KILLED"}
_POINTS = 20
"""Evaluations per request, which may have at most 1,000 metrics."""


@dataclass
class _Shown:
    """A run as the server has it."""

    id: str
    has_params: bool = False
    ended: bool = False
    step: int | None = 0
    """The last one on the server; None if not asked yet."""


class MlflowRuns:
    """Runs of one study, found again by their tags."""

    def __init__(self, tracking: MlflowTracking) -> None:
        with _told():
            self._client = MlflowClient(tracking_uri=tracking.tracking_uri)
        self._experiment = tracking.experiment
        self._experiment_id = ""
        self._shown: dict[str, _Shown] | None = None
        """By key; None until the server has been asked."""

    def write(self, run: TrackedRun) -> None:
        """Create the run if it is not there, and log what it lacks. Raises TrackingError."""
        try:
            with _told():
                self._write(run)
        except TrackingError:
            self._shown = None  # only the server knows whether the request got through
            raise

    def close(self) -> None:
        """Nothing to do: every request has been answered."""

    def _write(self, run: TrackedRun) -> None:
        if self._shown is None:
            self._experiment_id = self._find_experiment()
            self._shown = self._find_runs(run.facts["records"])
        shown = self._shown.get(run.key)
        if shown is None:
            shown = self._shown[run.key] = self._create(run)
        if shown.ended:
            return
        if not shown.has_params:
            params = [Param(name, str(value)) for name, value in run.params.items()]
            self._client.log_batch(shown.id, params=params)
            shown.has_params = True
        self._log(shown, run.points)
        if run.ending is not None:
            self._end(shown, run.ending)

    def _find_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self._experiment))

    def _find_runs(self, records: str) -> dict[str, _Shown]:
        found: dict[str, _Shown] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                f"tags.`{_RECORDS}` = '{records}'",
                max_results=1000,
                page_token=token,
            )
            found |= {run.data.tags[_RUN]: _as_shown(run) for run in page}
            token = page.token
            if not token:
                return found

    def _create(self, run: TrackedRun) -> _Shown:
        tags = {f"finetune.{name}": value for name, value in run.facts.items()}
        tags |= {_RUN: run.key, "finetune.trial": run.label}
        made = self._client.create_run(
            self._experiment_id, _milliseconds(run.started), tags, run.name
        )
        return _Shown(made.info.run_id)

    def _log(self, shown: _Shown, points: tuple[Point, ...]) -> None:
        if shown.step is None:
            history = self._client.get_metric_history(shown.id, "epoch")
            shown.step = max((metric.step for metric in history), default=0)
        missing = [point for point in points if point.step > shown.step]
        for start in range(0, len(missing), _POINTS):
            some = missing[start : start + _POINTS]
            self._client.log_batch(shown.id, metrics=[m for p in some for m in _metrics(p)])
            shown.step = some[-1].step

    def _end(self, shown: _Shown, ending: Ending) -> None:
        results = Point((shown.step or 0), ending.time, ending.results)
        tags = [RunTag(f"finetune.{name}", value) for name, value in ending.facts.items()]
        self._client.log_batch(shown.id, metrics=list(_metrics(results)), tags=tags)
        end = _milliseconds(ending.time)
        self._client.set_terminated(shown.id, _STATUS[ending.outcome], end)
        shown.ended = True


def _as_shown(run: Run) -> _Shown:
    ended = run.info.status in _STATUS.values()
    return _Shown(run.info.run_id, bool(run.data.params), ended, step=None)


def _metrics(point: Point) -> Iterator[Metric]:
    for name, value in point.values.items():
        yield Metric(name, value, _milliseconds(point.time), point.step)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        raise TrackingError(str(error)) from error
