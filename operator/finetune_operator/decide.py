"""What to do about a study: a pure function of the study, what is observed, and the time.

Nothing here talks to Kubernetes. The decision is the same whenever the same is observed, so an operator
that was killed at any point goes on where it was.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pydantic import ValidationError

from finetune_api.conditions import with_condition
from finetune_api.status import (
    MAX_MESSAGE,
    MAX_PROGRESS_BYTES,
    Condition,
    ConditionType,
    Findings,
    Reason,
    State,
    StudyProgress,
    StudyStatus,
)
from finetune_api.study import FineTuneStudy
from finetune_operator import job as engine
from finetune_operator import names
from finetune_operator.children import Manifest, children, resolved, spec_config_map
from finetune_operator.observe import JobView, Observed, PodView
from finetune_operator.settings import Settings

QUIET_SECONDS = 5
"""A Job without pods and without a word for this long is explained from its Events."""

LOST_SECONDS = 30
"""A pod still there this long after its deletion deadline is on a lost node, and is deleted by force."""


@dataclass(frozen=True)
class Deletion:
    """An object to delete; `uid` guards against deleting its successor."""

    kind: str
    name: str
    uid: str
    force: bool = False


@dataclass(frozen=True)
class StudyEvent:
    """A Kubernetes Event on the study, posted once a transition."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """Everything to do now, in this order: delete, apply, create, write the status, post the events."""

    status: StudyStatus
    delete: tuple[Deletion, ...] = ()
    apply: tuple[Manifest, ...] = ()
    create: tuple[Manifest, ...] = ()
    events: tuple[StudyEvent, ...] = ()
    explain: JobView | None = None
    """A Job whose silence the caller may explain from its Events, and decide again."""

    delete_study: bool = False
    again_after: float | None = None
    """Seconds after which to look again even if nothing changes."""


@dataclass
class _Case:
    """One study under decision, with what is concluded so far."""

    study: FineTuneStudy
    observed: Observed
    settings: Settings
    now: datetime
    explanation: str
    findings: Findings = field(init=False)
    progress: StudyProgress | None = field(init=False)

    def __post_init__(self) -> None:
        self.progress = believed_progress(self.study, self.observed)
        old = self.study.status
        stored = Findings(**{name: getattr(old, name) for name in Findings.model_fields})
        self.findings = self.progress.findings if self.progress else stored

    @property
    def uid(self) -> str:
        return self.study.metadata.uid or ""

    @property
    def jobs(self) -> list[JobView]:
        return [job for job in self.observed.jobs if job.study_uid == self.uid]

    @property
    def pods(self) -> list[PodView]:
        return [pod for pod in self.observed.pods if not pod.ended]

    @property
    def attempts(self) -> int:
        return max([self.study.status.attempts, *(job.attempt for job in self.jobs)])


def decide(
    study: FineTuneStudy,
    observed: Observed,
    settings: Settings,
    now: datetime,
    explanation: str = "",
) -> Decision:
    """What to do about `study` now. `explanation` tells why its Job has no pods, if the caller knows."""
    case = _Case(study, observed, settings, now, explanation)
    if study.status.finished:
        return _finished(case)
    decision = _lost_pods(case, _unfinished(case))
    return replace(decision, events=_events(study.status, decision.status))


def _finished(case: _Case) -> Decision:
    """A finished study needs nothing but its TTL; a suspended or failed one may still have a Job."""
    old = case.study.status
    leftover = tuple(
        _delete_job(job) for job in case.jobs if not (job.succeeded or job.failed or job.deleting)
    )
    status = old.model_copy(update={"observed_generation": case.study.metadata.generation})
    ttl, ended = case.study.spec.ttl_seconds_after_finished, old.completion_time
    if ttl is None or ended is None:
        return Decision(status, leftover)
    left = ttl - (case.now - ended).total_seconds()
    if left <= 0:
        return Decision(status, leftover, delete_study=True)
    return Decision(status, leftover, again_after=left)


def _unfinished(case: _Case) -> Decision:
    if case.study.spec.suspend:
        return _suspend(case)
    if resolved(case.study, case.settings).storage is None:
        message = "spec.storage must be given: the operator has no default storage"
        return Decision(_status(case, "Pending", "NoStorage", message, stalled=True))
    current = next((job for job in reversed(case.jobs) if not job.deleting), None)
    if current is None:
        return _start(case)
    strangers = [pod for pod in case.pods if pod.study_uid != case.uid]
    if current.succeeded:
        return _succeeded(case, current)
    if current.failed is not None:
        return _failed(case, current, current.failed)
    return _running(case, current, strangers)


def _suspend(case: _Case) -> Decision:
    """Delete the Job; suspended once its pods are gone."""
    progress = case.progress
    if (
        progress is not None
        and progress.phase == "Finished"
        and any(job.succeeded for job in case.jobs)
    ):
        return _complete(case, progress)
    delete = tuple(_delete_job(job) for job in case.jobs if not job.deleting)
    own = [pod for pod in case.pods if pod.study_uid == case.uid]
    if delete or own or case.jobs:
        status = _status(
            case,
            "Suspending",
            "SuspendRequested",
            "waiting for the pods to save and end",
            reconciling=True,
        )
        return Decision(status, delete)
    return Decision(
        _status(case, "Suspended", "SuspendRequested", "spec.suspend is true", suspended=True)
    )


def _start(case: _Case) -> Decision:
    """Begin the next attempt, once nothing of an earlier one or of a namesake is left."""
    if case.pods or case.observed.jobs:
        message = f"waiting for {len(case.pods)} pods of an earlier attempt to end"
        return Decision(_status(case, "Pending", "WaitingForPodsToEnd", message, reconciling=True))
    attempt = case.attempts + 1
    message = f"attempt {attempt}: creating {case.study.spec.cluster.workers} pods"
    status = _status(case, "Starting", "CreatingPods", message, reconciling=True, attempts=attempt)
    return Decision(
        status,
        apply=tuple(children(case.study, case.settings)),
        create=tuple(engine.manifests(case.study, attempt, case.settings)),
    )


def _running(case: _Case, current: JobView, strangers: list[PodView]) -> Decision:
    config = case.observed.configs.get(names.spec_config(case.study.metadata.name))
    wanted = spec_config_map(case.study, case.settings)
    stale = config is None or config.spec_hash != wanted["metadata"]["annotations"][names.SPEC_HASH]
    apply = (wanted,) if stale else ()
    progress = case.progress
    if progress is not None and progress.phase in ("Searching", "Refitting"):
        state: State = "Refitting" if progress.phase == "Refitting" else "Running"
        message = _pod_problem(case) or progress.message
        moved = _ended_trials(case.findings) > _ended_trials(case.study.status)
        status = _status(case, state, "Running", message, failed_attempts=0 if moved else None)
        return Decision(status, apply=apply)
    if progress is not None and progress.phase in ("Finished", "Failed"):
        # The document alone is not believed: the Job has to end too.
        return Decision(
            _status(case, "Running", "Running", "the driver is done, its pod is ending"),
            apply=apply,
        )
    quiet = current.created is not None and not current.active and not case.pods
    age = (case.now - current.created).total_seconds() if current.created else 0.0
    problem = case.explanation or _pod_problem(case)
    reason: Reason = "PodsPending" if problem else "CreatingPods"
    message = problem or f"attempt {current.attempt}: waiting for the pods to start"
    if strangers:
        message = f"waiting for {len(strangers)} pods of a study of the same name to end"
    elif progress is not None:
        message = progress.message
    starting = not any(pod.running for pod in case.pods)
    status = _status(case, "Starting", reason, message, reconciling=starting)
    if quiet and not case.explanation:
        if age < QUIET_SECONDS:
            return Decision(status, apply=apply, again_after=QUIET_SECONDS - age + 0.1)
        return Decision(status, apply=apply, explain=current, again_after=30.0)
    return Decision(status, apply=apply, again_after=30.0 if quiet else None)


def _succeeded(case: _Case, current: JobView) -> Decision:
    if (
        case.progress is not None
        and case.progress.phase == "Finished"
        and case.progress.job_uid == current.uid
    ):
        return _complete(case, case.progress)
    return _retry(case, current, "pod 0 succeeded without saying that the study is finished")


def _complete(case: _Case, progress: StudyProgress) -> Decision:
    return Decision(
        _status(case, "Complete", progress.reason, progress.message, complete=True, ended=True)
    )


def _failed(case: _Case, current: JobView, why: str) -> Decision:
    progress = case.progress
    if progress is not None and progress.job_uid == current.uid and progress.phase == "Failed":
        return _fail(case, progress.reason, progress.message)
    return _retry(case, current, why)


def _fail(case: _Case, reason: str, message: str) -> Decision:
    return Decision(_status(case, "Failed", reason, message, failed=True, stalled=True, ended=True))


def _retry(case: _Case, current: JobView, why: str) -> Decision:
    """Give the attempt up: another follows when its pods are gone, unless too many got nowhere."""
    failures = case.study.status.failed_attempts + 1
    if failures >= case.settings.max_failed_attempts:
        return _fail(
            case, "RetriesExhausted", f"{failures} attempts in a row got nowhere; the last: {why}"
        )
    message = f"attempt {current.attempt} ended without a result ({why}); another follows"
    status = _status(
        case, "Pending", "AttemptFailed", message, reconciling=True, failed_attempts=failures
    )
    return Decision(status, (_delete_job(current),))


def _ended_trials(findings: Findings) -> int:
    counts = findings.trials
    return counts.completed + counts.stopped + counts.diverged + counts.failed + counts.paused


def _lost_pods(case: _Case, decision: Decision) -> Decision:
    """Add the deletion by force of pods that a lost node will never end."""
    deadlines = [pod for pod in case.observed.pods if pod.deadline is not None and not pod.ended]
    limit = timedelta(seconds=LOST_SECONDS)
    lost = [pod for pod in deadlines if pod.deadline and pod.deadline + limit <= case.now]
    waiting = [
        pod.deadline + limit - case.now for pod in deadlines if pod.deadline and pod not in lost
    ]
    deletions = tuple(Deletion("Pod", pod.name, pod.uid, force=True) for pod in lost)
    soonest = min((delay.total_seconds() for delay in waiting), default=None)
    delays = [delay for delay in (decision.again_after, soonest) if delay is not None]
    return replace(
        decision, delete=(*decision.delete, *deletions), again_after=min(delays, default=None)
    )


def _delete_job(job: JobView) -> Deletion:
    return Deletion("Job", job.name, job.uid)


def _pod_problem(case: _Case) -> str:
    return next((f"pod {pod.name}: {pod.problem}" for pod in case.pods if pod.problem), "")


def believed_progress(study: FineTuneStudy, observed: Observed) -> StudyProgress | None:
    """The driver's document, if it is well formed and speaks of this study and one of its Jobs.

    The study's pods write it, and a study's pods are not trusted.
    """
    config = observed.configs.get(names.progress_config(study.metadata.name))
    if config is None or config.study_uid != study.metadata.uid or not config.progress:
        return None
    if len(config.progress.encode(errors="replace")) > MAX_PROGRESS_BYTES:
        return None
    try:
        progress = StudyProgress.model_validate_json(config.progress)
    except (ValidationError, RecursionError):
        return None
    jobs = {job.uid for job in observed.jobs if job.study_uid == study.metadata.uid}
    if progress.study_uid != study.metadata.uid or progress.job_uid not in jobs:
        return None
    return progress


def _status(
    case: _Case,
    state: State,
    reason: str,
    message: str,
    *,
    complete: bool = False,
    failed: bool = False,
    suspended: bool = False,
    reconciling: bool = False,
    stalled: bool = False,
    ended: bool = False,
    attempts: int | None = None,
    failed_attempts: int | None = None,
) -> StudyStatus:
    old = case.study.status
    message = message[:MAX_MESSAGE]
    facts: dict[ConditionType, bool] = {
        "Complete": complete,
        "Failed": failed,
        "Suspended": suspended,
        "Reconciling": reconciling,
        "Stalled": stalled,
    }
    conditions: list[Condition] = old.conditions
    for kind, value in facts.items():
        generation = case.study.metadata.generation
        conditions = with_condition(conditions, kind, value, reason, message, generation, case.now)
    started = old.start_time or (case.now if case.attempts or attempts else None)
    return StudyStatus(
        **case.findings.__dict__,
        observed_generation=case.study.metadata.generation,
        state=state,
        conditions=conditions,
        start_time=started,
        completion_time=case.now if ended else None,
        attempts=max(case.attempts, attempts or 0),
        failed_attempts=old.failed_attempts if failed_attempts is None else failed_attempts,
        message=message,
    )


_ANNOUNCED: dict[State, str] = {
    "Starting": "AttemptStarted",
    "Running": "SearchStarted",
    "Refitting": "RefitStarted",
    "Suspended": "Suspended",
    "Complete": "Completed",
    "Failed": "Failed",
}


def _events(old: StudyStatus, new: StudyStatus) -> tuple[StudyEvent, ...]:
    """One Event for each transition that a user would want in `kubectl describe`."""
    said = {(condition.reason, condition.message) for condition in old.conditions}
    warning = next(
        (c for c in new.conditions if c.reason in ("PodsPending", "AttemptFailed", "NoStorage")),
        None,
    )
    events = []
    if warning is not None and (warning.reason, warning.message) not in said:
        events.append(StudyEvent("Warning", warning.reason, warning.message))
    if new.state is not None and new.state != old.state and new.state in _ANNOUNCED:
        kind = "Warning" if new.state == "Failed" else "Normal"
        events.append(StudyEvent(kind, _ANNOUNCED[new.state], new.message or new.state))
    return tuple(events)
