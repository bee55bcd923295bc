"""The study's status, its conditions and their reasons, and the progress document of the driver."""

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field
from pydantic.config import JsonDict

from finetune_api.schema import Model
from finetune_api.stores import Storage

MAX_TOP_TRIALS = 10
MAX_SPLITS = 32
MAX_MESSAGE = 1024
MAX_RETRY = 253
MAX_PROGRESS_BYTES = 16 * 1024

State: TypeAlias = Literal[
    "Pending",
    "Queued",
    "Starting",
    "Running",
    "Refitting",
    "Suspending",
    "Suspended",
    "Complete",
    "Failed",
]
"""One word for people, derived from the conditions and the engine; programs should read the conditions."""

ConditionType: TypeAlias = Literal[
    "Complete", "Failed", "Suspended", "Reconciling", "Stalled", "Running"
]

Reason: TypeAlias = Literal[
    "SearchFinished",
    "TargetReached",
    "BudgetSpent",
    "NoImprovement",
    "Queued",
    "CreatingPods",
    "PodsPending",
    "Unschedulable",
    "ImagePullFailed",
    "OutOfMemory",
    "Evicted",
    "NodeLost",
    "WaitingForPodsToEnd",
    "Running",
    "SuspendRequested",
    "InvalidSpec",
    "NoStorage",
    "StorageUnavailable",
    "InvalidPodTemplate",
    "Forbidden",
    "DataError",
    "ModelError",
    "TooManyFailedTrials",
    "NoSuccessfulTrial",
    "RefitFailed",
    "AttemptFailed",
    "RetriesExhausted",
    "StartDeadlineExceeded",
    "ClassNotFound",
    "ClassDenied",
    "Reopened",
]
"""Every reason a condition can carry.

SearchFinished: every planned trial ended. TargetReached: a trial reached `objective.target`.
BudgetSpent: `maxDurationSeconds`, `maxGpuHours` or `maxPrice` passed. NoImprovement: as many trials in a row as
`maxTrialsWithoutImprovement` were no better. Queued: the queue of `cluster.queueName` has not let the pods run yet, or
has taken their place back. CreatingPods: the Job exists, pods do not run yet.
PodsPending: pods cannot start; the message says why. Unschedulable: no node has room for a pod, or none may run it.
ImagePullFailed: an image cannot be pulled. OutOfMemory, Evicted, NodeLost: a pod ended for that reason; another is on
its way, and the study resumes from its records. WaitingForPodsToEnd: pods of an earlier attempt
still run. Running: the driver reports. SuspendRequested: `spec.suspend` is true. InvalidSpec: the driver
cannot run the spec, or this operator is older than the CRD and cannot read it. NoStorage: neither the
study nor the operator names storage. StorageUnavailable: the study waits for storage that is full, read-only
or gone; the message says which and why, and it resumes by itself. InvalidPodTemplate: the study's own pod template is
not of the form that the API demands. Forbidden: the API server does not accept the study's objects now (a quota, a
policy, a missing right, a name that is taken); they are tried again, for as long as it takes.
DataError, ModelError: the driver could not use the data or the model; the message has the field's path.
TooManyFailedTrials: more than `budget.maxFailedTrials`. NoSuccessfulTrial: no trial produced a value.
RefitFailed: the winner could not be trained again. AttemptFailed: an attempt ended without a result;
another follows. RetriesExhausted: too many attempts in a row ended without a result. StartDeadlineExceeded: a pod had a
node for longer than `cluster.startDeadlineSeconds` and did not run; its attempt was deleted. ClassNotFound: the
FineTuneClass of the study is not there (or two are the default); the study waits for it. ClassDenied: the class does not
let the study have what it asks for; it waits until one of them is edited. Reopened: a study that had
ended goes on, because the limit that ended it was loosened or its annotation `finetune.dev/retry` got a new value; its
next attempt is about to begin.
"""

ATOMIC: JsonDict = {"x-kubernetes-list-type": "atomic"}
_FREE: JsonDict = {"x-kubernetes-preserve-unknown-fields": True}
_Time: TypeAlias = Annotated[datetime, Field(strict=False)]


class Condition(Model):
    """One condition, following Kubernetes' API conventions."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(min_length=1, max_length=128)
    message: str = Field("", max_length=MAX_MESSAGE)
    last_transition_time: _Time
    observed_generation: int | None = None


class TrialCounts(Model):
    """Trials by state."""

    planned: int | None = Field(None, ge=0)
    """Trials the study will propose if nothing ends it early; unset where only time limits it."""

    running: int = Field(0, ge=0)
    paused: int = Field(0, ge=0)
    """Waiting at a rung; they go on if promoted."""

    completed: int = Field(0, ge=0)
    """Trained to their last epoch, or ended by early stopping."""

    stopped: int = Field(0, ge=0)
    """Ended at a rung because others were better."""

    diverged: int = Field(0, ge=0)
    """Ended because the loss became NaN or infinite."""

    failed: int = Field(0, ge=0)
    summary: str = Field("", max_length=32)
    """Ended trials out of those planned, for the TRIALS column."""


class SplitResult(Model):
    """One training of a trial: of one fold, with one seed."""

    fold: int = Field(0, ge=0)
    repeat: int = Field(0, ge=0)
    metrics: dict[str, float] = Field({}, max_length=64)


class TrialResult(Model):
    """The best a trial has shown, as the mean over its folds and repeats."""

    trial: int = Field(ge=0)
    value: float
    epoch: float = Field(0, ge=0)
    """Epochs trained when `value` was measured."""

    params: dict[str, Any] = Field({}, json_schema_extra=_FREE)
    metrics: dict[str, float] = Field({}, max_length=64)
    deviation: float | None = None
    """Standard deviation of `value` over folds and repeats."""

    standard_error: float | None = None
    """Standard error of `value`."""

    splits: list[SplitResult] = Field([], max_length=MAX_SPLITS, json_schema_extra=ATOMIC)
    """Each fold and repeat; only for the best trial."""


class PlannedRung(Model):
    """Trials that reach a rung."""

    resource: float
    """Epochs, rows or folds at the rung."""

    trials: int = Field(ge=0)
    epochs: float | None = Field(None, ge=0)
    """Epochs that they train to reach it, from the rung before or, over Samples, from the start; over folds and repeats."""


class ChosenSearch(Model):
    """What the parts of `spec.search` that are Auto stand for, chosen when the study began."""

    algorithm: str = Field(max_length=32)
    scheduler: str = Field(max_length=32)
    """Its type."""

    min_resource: float | None = Field(None, gt=0)
    """Resource of the first rung; unset without a scheduler."""


class StudyPlan(Model):
    """What the study will do at most, known before anything runs."""

    search: ChosenSearch | None = None
    """How the study searches: what it says, and what was chosen where it says Auto."""

    trials: int | None = Field(None, ge=0)
    """Unset where only time limits the search."""

    trainings: int | None = Field(None, ge=0)
    """Trials times folds and repeats."""

    rungs: list[PlannedRung] = Field([], max_length=32, json_schema_extra=ATOMIC)
    """Trials at each rung if each promotes its share and no more; unset if that cannot be known."""

    whole_trials: int | None = Field(None, ge=0)
    """Trials that are then trained to the end, the last rung; unset if that cannot be known."""

    expected_epochs: float | None = None
    """Epochs of all these rungs."""

    worst_case_epochs: float | None = None
    """Epochs if each trial is better than all before it: promotions made without waiting can be premature."""

    worst_case_gpu_hours: float | None = None
    worst_case_price: float | None = None


class Spending(Model):
    """What the search has used, and what its budget leaves."""

    epochs: float = Field(0, ge=0)
    """Epochs trained."""

    seconds: int = Field(0, ge=0)
    """Seconds of searching, over all attempts, in whole minutes; limited by `budget.maxDurationSeconds`."""

    epochs_saved: float | None = None
    """Epochs that the ended trials would have trained beyond these if all had run to their end."""

    price: float | None = None
    """Price of the GPU hours so far, at `budget.pricePerGpuHour`."""

    price_saved: float | None = None
    """`epochsSaved` at the mean price of an epoch so far."""

    trials_left: int | None = None
    failed_trials_left: int | None = None
    """Trials that may still fail before the study does."""

    trials_without_improvement_left: int | None = None
    """What is left of `budget.maxTrialsWithoutImprovement` before the search ends."""

    seconds_left: int | None = None
    """What is left of `budget.maxDurationSeconds`, in whole minutes."""

    gpu_hours_left: float | None = None
    price_left: float | None = None


class EnsembleResult(Model):
    """How the best trials together compare with the best of them alone, on the validation rows."""

    trials: list[Annotated[int, Field(ge=0)]] = Field(max_length=10, json_schema_extra=ATOMIC)
    """The members, the winner first."""

    method: str = Field(max_length=32)
    value: float
    """The objective of the ensemble."""

    best_single: float
    """The objective of the best member alone."""

    kept: bool
    """Whether the ensemble is the final model."""

    message: str = Field("", max_length=MAX_MESSAGE)


class FinalModel(Model):
    """The winner, trained again and tested once."""

    model_uri: str = Field(max_length=2048)
    params: dict[str, Any] = Field({}, json_schema_extra=_FREE)
    test_metrics: dict[str, float] = Field({}, max_length=64)
    baseline: dict[str, float] = Field({}, max_length=64)
    """The same metrics of a constant prediction (majority class or mean), for comparison."""

    ensemble: EnsembleResult | None = None
    """Unset if `spec.ensemble` is unset, or if only one trial has a value."""


class Findings(Model):
    """What the search has found so far: the part of the status that the driver computes."""

    search: ChosenSearch | None = None
    """Of a study with algorithm Auto: how it searches since it began."""

    trials: TrialCounts = TrialCounts()
    best: TrialResult | None = None
    top_trials: list[TrialResult] = Field([], max_length=MAX_TOP_TRIALS, json_schema_extra=ATOMIC)
    pareto_front: list[TrialResult] = Field([], max_length=MAX_TOP_TRIALS, json_schema_extra=ATOMIC)
    """With secondary objectives: trials that no other trial matches or beats in all of them, in order of the
    first objective; the table of trials has all."""

    final: FinalModel | None = None
    results_uri: str | None = Field(None, max_length=2048)
    """Folder of `trials.csv` and `trials.parquet`."""

    gpu_seconds: float = Field(0, ge=0)
    spending: Spending | None = None
    warnings: list[Annotated[str, Field(max_length=256)]] = Field(
        [], max_length=10, json_schema_extra=ATOMIC
    )
    """Rows dropped and other things a user should know about the data, and what trackers are missing."""


class Limits(Model):
    """The study's limits at one time: `spec.budget` and `spec.objective.target`."""

    max_trials: int | None = None
    max_parallel_trials: int | None = None
    max_failed_trials: int | None = None
    max_duration_seconds: int | None = None
    max_gpu_hours: float | None = None
    price_per_gpu_hour: float | None = None
    max_price: float | None = None
    max_trials_without_improvement: int | None = None
    target: float | None = None


class LastEnd(Model):
    """The last end of the study: what later edits are compared with."""

    attempt: int = Field(0, ge=0)
    """The last attempt before it."""

    limits: Limits | None = None
    """The limits that it was decided with; unset if nobody knows."""


class JudgedBy(Model):
    """The limits with which a driver decided that the search is over, in its progress ConfigMap."""

    term: int = Field(ge=1)
    """Its term: the limits of another driver say nothing about this one's end."""

    limits: Limits


def shown(best: TrialResult | None) -> str | None:
    """The value of a trial with four digits."""
    return None if best is None else f"{best.value:.4g}"


class StudyStatus(Findings):
    """What the operator, or `finetune run`, says about a study."""

    observed_generation: int = -1
    """Generation of the spec that this status describes; -1 until the study has been seen."""

    state: State | None = None
    conditions: list[Condition] = Field(
        [],
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    start_time: _Time | None = None
    completion_time: _Time | None = None
    plan: StudyPlan | None = None
    """Known before the first pod runs."""

    attempts: int = Field(0, ge=0)
    """Engine objects created so far: one more for each retry and each resumption."""

    failed_attempts: int = Field(0, ge=0)
    """Attempts in a row that ended without a result and without a trial ending in between."""

    message: str = Field("", max_length=MAX_MESSAGE)
    best_shown: str | None = Field(None, max_length=32)
    """The value of the best trial with four digits, for people."""

    workers: str | None = Field(None, max_length=32)
    """While the study trains: pods that run, of those that it asked for."""

    retry: str | None = Field(None, max_length=MAX_RETRY)
    """The value of the annotation `finetune.dev/retry` that was followed last."""

    class_name: str | None = Field(None, max_length=63)
    """The FineTuneClass of the last attempt; unset where there is none."""

    class_generation: int | None = Field(None, ge=0)
    """Generation of that class when the attempt began."""

    storage: Storage | None = None
    """Where the study's records are since its first attempt. Later defaults of the operator or the class do not move them."""

    last_end: LastEnd | None = None
    """Set when the study ends. It stays while the study goes on after that."""

    winner: str | None = Field(None, max_length=MAX_RETRY)
    """The ConfigMap with the winner of the last end that had one."""

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type, if there is one."""
        return next((c for c in self.conditions if c.type == kind), None)

    def is_true(self, kind: ConditionType) -> bool:
        """Whether the condition of that type is True."""
        condition = self.condition(kind)
        return condition is not None and condition.status == "True"

    @property
    def finished(self) -> bool:
        """Whether the study has ended, in success or failure."""
        return self.is_true("Complete") or self.is_true("Failed")


class StudyProgress(Model):
    """What the driver reports to the operator, at most 16 KiB, in the study's progress ConfigMap.

    `job_uid` and `term` fence it: a document of another Job, or of an earlier start of the driver,
    is ignored.
    """

    study_uid: str = Field(max_length=64)
    job_uid: str = Field(max_length=64)
    term: int = Field(ge=1)
    phase: Literal["Preparing", "Searching", "Refitting", "Drained", "Finished", "Failed"]
    reason: Reason
    message: str = Field("", max_length=MAX_MESSAGE)
    time: _Time
    findings: Findings = Findings()
