"""Prometheus metrics. Per-study series have the labels namespace and name, and go with the study."""

from prometheus_client import Counter, Gauge, Histogram

from finetune_api.status import StudyStatus
from finetune_operator.observe import Key

STUDIES = Gauge("finetune_studies", "Studies by state", ["state"])
BEST = Gauge(
    "finetune_study_best_objective", "Best value of the study's objective", ["namespace", "name"]
)
TRIALS = Gauge(
    "finetune_study_trials", "Trials of the study by state", ["namespace", "name", "state"]
)
GPU_SECONDS = Gauge(
    "finetune_study_gpu_seconds", "GPU seconds the study has used", ["namespace", "name"]
)
RECONCILE_SECONDS = Histogram(
    "finetune_reconcile_seconds",
    "Seconds of one reconciliation",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
RECONCILE_ERRORS = Counter(
    "finetune_reconcile_errors", "Reconciliations that failed and are tried again"
)

_TRIAL_STATES = ("running", "paused", "completed", "stopped", "diverged", "failed")


class StudyMetrics:
    """Keeps the gauges in step with the statuses."""

    def __init__(self) -> None:
        self._states: dict[Key, str] = {}

    def show(self, key: Key, status: StudyStatus) -> None:
        """Set the study's series from its status."""
        self._move(key, status.state or "Pending")
        for state in _TRIAL_STATES:
            TRIALS.labels(*key, state).set(getattr(status.trials, state))
        GPU_SECONDS.labels(*key).set(status.gpu_seconds)
        if status.best is not None:
            BEST.labels(*key).set(status.best.value)

    def remove(self, key: Key) -> None:
        """Drop the study's series."""
        if key not in self._states:
            return
        self._move(key, None)
        for state in _TRIAL_STATES:
            TRIALS.remove(*key, state)
        GPU_SECONDS.remove(*key)
        BEST.remove_by_labels({"namespace": key[0], "name": key[1]})

    def _move(self, key: Key, state: str | None) -> None:
        old = self._states.pop(key, None)
        if old is not None:
            STUDIES.labels(old).dec()
        if state is not None:
            STUDIES.labels(state).inc()
            self._states[key] = state
