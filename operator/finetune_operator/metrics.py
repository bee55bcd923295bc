"""Prometheus metrics of the operator, and of each study that has not ended.

Series of a study have the labels namespace and name. They are dropped when it ends or is deleted, so there are never
more of them than studies under way: the status has what an ended study found, and Prometheus its history.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, get_args

from prometheus_client import Counter, Gauge, Histogram

from finetune_api.status import State, StudyStatus
from finetune_api.study import ObjectMeta
from finetune_operator.observe import Key

_STUDY = ["namespace", "name"]

# -- of the operator

LEADER = Gauge("finetune_leader", "1 in the replica that acts, 0 in those on standby")
TASKS = Gauge("finetune_tasks", "Asyncio tasks of the process")
QUEUE_DEPTH = Gauge("finetune_queue_depth", "Studies that wait to be reconciled")
RECONCILE_SECONDS = Histogram(
    "finetune_reconcile_seconds",
    "Seconds of one reconciliation",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
RECONCILE_ERRORS = Counter(
    "finetune_reconcile_errors", "Reconciliations that failed and are retried"
)
API_REQUESTS = Counter(
    "finetune_api_requests",
    "Requests to the API server, except watches and kopf's lists; code is error if there was no answer",
    ["verb", "code"],
)
WATCH_RESTARTS = Counter(
    "finetune_watch_restarts",
    "Times that all objects of a kind were listed again because their watch was lost",
    ["kind"],
)
WATCH_SILENT = Gauge(
    "finetune_watch_silent_seconds",
    "Seconds since the watch of a kind was open; 0 while it is",
    ["kind"],
)

# -- of all studies

STUDIES = Gauge("finetune_studies", "Studies by state", ["state"])
STUDIES_FINISHED = Counter("finetune_studies_finished", "Studies that ended", ["state"])
QUEUE_WAIT = Histogram(
    "finetune_study_queue_wait_seconds",
    "Seconds that a study waited for its pods until it was Running",
    buckets=(1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400),
)

# -- of each study that has not ended

STATE = Gauge("finetune_study_state", "1 for the state that the study is in", [*_STUDY, "state"])
STALLED = Gauge("finetune_study_stalled", "1 if nothing happens until a person acts", _STUDY)
TRIALS = Gauge("finetune_study_trials", "Trials of the study by state", [*_STUDY, "state"])
PLANNED_TRIALS = Gauge("finetune_study_planned_trials", "Trials the study will propose", _STUDY)
BEST = Gauge("finetune_study_best_objective", "Best value of the study's objective", _STUDY)
HIGHEST_EPOCH = Gauge(
    "finetune_study_highest_epoch",
    "Highest epoch at which one of the ten best trials was at its best",
    _STUDY,
)
EPOCHS = Gauge("finetune_study_epochs", "Epochs the study has trained", _STUDY)
EXPECTED_EPOCHS = Gauge(
    "finetune_study_expected_epochs",
    "Epochs of the study's plan if each rung promotes its share",
    _STUDY,
)
EPOCHS_SAVED = Gauge(
    "finetune_study_epochs_saved",
    "Epochs that its trials would have trained beyond these if all had run to their end",
    _STUDY,
)
PRICE = Gauge("finetune_study_price", "GPU hours so far at budget.pricePerGpuHour", _STUDY)
GPU_SECONDS = Gauge("finetune_study_gpu_seconds", "GPU seconds the study has used", _STUDY)

_TRIAL_STATES = ("running", "paused", "completed", "stopped", "diverged", "failed")
_ENDS: tuple[State, ...] = ("Complete", "Failed")
_WAITING: tuple[State, ...] = ("Pending", "Queued", "Starting")

for _state in _ENDS:  # start at 0, so that the first one is an increase
    STUDIES_FINISHED.labels(_state)


def _highest_epoch(status: StudyStatus) -> float | None:
    best = [status.best] if status.best is not None else []
    return max((trial.epoch for trial in [*best, *status.top_trials]), default=None)


_VALUES: dict[Gauge, Callable[[StudyStatus], float | None]] = {
    STALLED: lambda status: float(status.is_true("Stalled")),
    PLANNED_TRIALS: lambda status: status.trials.planned,
    BEST: lambda status: status.best.value if status.best else None,
    HIGHEST_EPOCH: _highest_epoch,
    EPOCHS: lambda status: status.spending.epochs if status.spending else None,
    EXPECTED_EPOCHS: lambda status: status.plan.expected_epochs if status.plan else None,
    EPOCHS_SAVED: lambda status: status.spending.epochs_saved if status.spending else None,
    PRICE: lambda status: status.spending.price if status.spending else None,
    GPU_SECONDS: lambda status: status.gpu_seconds,
}
"""The value of each gauge of a study, from its status; no series where that is None."""


class StudyMetrics:
    """Keeps the series of studies in step with their statuses."""

    def __init__(self) -> None:
        self._states: dict[Key, str] = {}
        self._waiting: dict[Key, datetime] = {}
        """Since when each study has been waiting for its pods."""

    def show(self, meta: ObjectMeta, old: StudyStatus, status: StudyStatus, now: datetime) -> None:
        """Set the study's series from its status; `old` is the one in the API server."""
        key = (str(meta.namespace), meta.name)
        state = status.state or "Pending"
        if status.finished and not old.finished and self._states.get(key) not in _ENDS:
            STUDIES_FINISHED.labels(state).inc()
        self._time(key, meta, old, status, now)
        self._move(key, state)
        if status.finished:
            _drop(key)
        else:
            _set(key, state, status)

    def remove(self, key: Key) -> None:
        """Drop the study's series."""
        self._waiting.pop(key, None)
        self._move(key, None)
        _drop(key)

    def clear(self) -> None:
        """Drop the series of all studies."""
        for key in list(self._states):
            self.remove(key)

    def _time(
        self, key: Key, meta: ObjectMeta, old: StudyStatus, status: StudyStatus, now: datetime
    ) -> None:
        """Measure the time from a study's creation, or from when it began to wait again, until it is Running."""
        if status.state in _WAITING:
            since = _waiting_since(meta, old, status)
            if since is not None:
                self._waiting.setdefault(key, since)
            return
        began = self._waiting.pop(key, None)
        if began is not None and status.state == "Running":
            QUEUE_WAIT.observe(max(0.0, (now - began).total_seconds()))

    def _move(self, key: Key, state: str | None) -> None:
        old = self._states.pop(key, None)
        if old is not None:
            STUDIES.labels(old).dec()
        if state is not None:
            STUDIES.labels(state).inc()
            self._states[key] = state


def _waiting_since(meta: ObjectMeta, old: StudyStatus, status: StudyStatus) -> datetime | None:
    """Since when a study has been waiting; None if that is no longer known."""
    if old.observed_generation == -1:  # not seen before
        return meta.creation_timestamp
    condition = status.condition("Reconciling")
    known = condition is not None and condition.status == "True"
    return condition.last_transition_time if condition is not None and known else None


def _set(key: Key, state: str, status: StudyStatus) -> None:
    for other in get_args(State):
        if other != state:
            STATE.remove(*key, other)
    STATE.labels(*key, state).set(1)
    for trial_state in _TRIAL_STATES:
        TRIALS.labels(*key, trial_state).set(getattr(status.trials, trial_state))
    for gauge, value_of in _VALUES.items():
        value = value_of(status)
        if value is None:
            gauge.remove(*key)
        else:
            gauge.labels(*key).set(value)


def _drop(key: Key) -> None:
    for state in get_args(State):
        STATE.remove(*key, state)
    for trial_state in _TRIAL_STATES:
        TRIALS.remove(*key, trial_state)
    for gauge in _VALUES:
        gauge.remove(*key)


class Listings:
    """Notices, and counts, when kopf has lost a watch and listed everything of a kind again.

    kopf has no hook for that. But objects that it lists come as events without a type, so if one of them was known
    before, everything has been listed again. A kind without objects is not counted.
    """

    def __init__(self, by_namespace: bool) -> None:
        """`by_namespace`: each namespace has a watch of its own."""
        self._by_namespace = by_namespace
        self._numbers: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._last: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        """By watch and object, the number of the last listing that had it."""

    def note(self, namespace: str, event: Mapping[str, Any]) -> bool:
        """Take in an event of a watch; returns whether it is the first one of another listing."""
        kind = str(event["object"]["kind"])
        restarts = WATCH_RESTARTS.labels(kind)  # start at 0, so that the first one is an increase
        watch = (kind, namespace if self._by_namespace else "")
        last, uid = self._last[watch], str(event["object"]["metadata"]["uid"])
        if event["type"] == "DELETED":
            last.pop(uid, None)
        elif event["type"] is not None:
            last.setdefault(uid, self._numbers[watch])
        else:
            again = last.get(uid) == self._numbers[watch]
            if again:
                for gone in [
                    each for each, listed in last.items() if listed < self._numbers[watch]
                ]:
                    del last[gone]
                self._numbers[watch] += 1
                restarts.inc()
            last[uid] = self._numbers[watch]
            return again
        return False
