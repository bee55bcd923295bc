"""What to do about a study: a pure function of the study, what is observed, and the time.

Nothing here talks to Kubernetes. The same observations give the same decision, so an operator
that was killed at any point continues where it was.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from finetune_api.classes import FineTuneClass
from finetune_api.conditions import with_condition, with_facts
from finetune_api.constraints import FIELD as CONSTRAINTS
from finetune_api.expressions import ExpressionError
from finetune_api.plan import make_plan, priced
from finetune_api.status import (
    MAX_MESSAGE,
    ChosenSearch,
    Condition,
    ConditionType,
    Findings,
    LastEnd,
    Reason,
    State,
    StudyPlan,
    StudyProgress,
    StudyStatus,
    shown,
)
from finetune_api.stores import Storage
from finetune_api.study import FineTuneStudy, StudySpec
from finetune_operator import engines, names
from finetune_operator.announce import transitions
from finetune_operator.belief import at_rest, believed_progress, last_word, speaks_for
from finetune_operator.children import children, resolved
from finetune_operator.continuation import continuation, is_new_retry, last_end
from finetune_operator.decision import Decision, Deletion, StudyEvent
from finetune_operator.observe import JobView, Observed, PodView
from finetune_operator.platform import NoClass, class_of, denials, settings_with
from finetune_operator.settings import Settings
from finetune_operator.trouble import Trouble
from finetune_operator.winner import winner_config_map

UNEXPLAINED = "no pods yet, and no Event says why"
"""The explanation of a caller who looked for one and found none."""

QUIET_SECONDS = 5
"""A Job without pods and without news for this long is explained from its Events."""

EXPLAIN_SECONDS = 60
"""Its Events are checked again, at doubling intervals, until there has been no news for this long."""

NAMESPACE_ENDS = "because it is being terminated"
"""What the API server says when it refuses to create anything in a namespace that is being deleted."""

STALLED_SECONDS = 300
"""A study whose objects are not accepted counts as stalled when it has come no further for this long."""

START_DEADLINE_SECONDS = 3600
"""For this long a pod may hold a node without running there, unless the study says otherwise."""

LOST_SECONDS = 30
"""A pod still there this long after its deletion deadline is on a lost node, and is deleted by force."""


@dataclass
class _Case:
    """One study under decision, with the conclusions so far."""

    study: FineTuneStudy
    observed: Observed
    settings: Settings
    now: datetime
    explanation: str = ""
    confirmed: bool = True
    findings: Findings = field(init=False)
    progress: StudyProgress | None = field(init=False)
    given: FineTuneClass | None = field(init=False, default=None)
    """The study's class, which may have changed since its attempt began."""

    unclassed: str = field(init=False, default="")
    """Why the study has no class, if it should have one."""

    def __post_init__(self) -> None:
        try:
            self.given = class_of(self.study, self.observed.platform)
            self.settings = settings_with(self.settings, self.given)
        except NoClass as error:
            self.given, self.unclassed = None, str(error)
            self.settings = settings_with(self.settings, None)
        self.progress = believed_progress(self.study, self.observed)
        old = self.study.status
        stored = Findings(**{name: getattr(old, name) for name in Findings.model_fields})
        told = self.progress.findings if self.progress else Findings()
        # A driver that prepares, or ends meanwhile, has not read the records yet.
        found = told.model_copy(update={"search": None, "warnings": []})
        if found == Findings():
            told = stored.model_copy(update={"search": told.search})
        self.findings = told
        if self.findings.search is None and old.search is not None:
            self.findings = self.findings.model_copy(update={"search": old.search})

    @cached_property
    def plan(self) -> StudyPlan:
        """What the study will do at most; it follows edits of the budget. Raises ExpressionError.

        GPU hours and price are included as soon as the time of an epoch has been measured.
        """
        old = self.study.status
        known = old.observed_generation == self.study.metadata.generation
        known = known and (self.given is None or self.attempts > 0)  # the class may have changed
        choice = self.findings.search if self.study.spec.search.algorithm == "Auto" else None
        if known and old.plan is not None and choice in (None, old.plan.search):
            plan = old.plan
        else:
            plan = self._planned(choice)
        spending, seconds = self.findings.spending, self.findings.gpu_seconds
        if spending is None or not spending.epochs or not seconds:
            return plan
        # Rounded to two digits: otherwise it would change with every epoch.
        return priced(plan, self.spec, float(f"{seconds / spending.epochs:.2g}"))

    def _planned(self, choice: ChosenSearch | None) -> StudyPlan:
        """The plan of the study as it is now. Raises ExpressionError."""
        try:
            return make_plan(self.spec, choice=choice)
        except (ValidationError, OverflowError):  # a driver's words, perhaps of another version
            return self.study.status.plan or make_plan(self.spec)

    @cached_property
    def spec(self) -> StudySpec:
        """The study as its class and the operator's defaults make it."""
        return resolved(self.study, self.settings)

    @property
    def uid(self) -> str:
        return self.study.metadata.uid or ""

    @property
    def jobs(self) -> list[JobView]:
        return [job for job in self.observed.jobs if job.study_uid == self.uid]

    @property
    def current(self) -> JobView | None:
        """The Job of the attempt that is running, or that has ended and has not been judged yet."""
        over = self.judged
        return next((j for j in reversed(self.jobs) if not j.deleting and j.attempt > over), None)

    @property
    def judged(self) -> int:
        """The last attempt before the last end of the study."""
        end = self.study.status.last_end
        return end.attempt if end is not None else 0

    @property
    def pods(self) -> list[PodView]:
        """Pods that have not ended, of this study and of earlier ones of its name."""
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
    confirmed: bool = False,
) -> Decision:
    """What to do about `study` now.

    `explanation` says why its Job has no pods, if the caller knows; `confirmed` that `study` and its
    progress have just been read, as an earlier decision asked with `confirm`.
    """
    case = _Case(study, observed, settings, now, explanation, confirmed)
    decision = _finished(case) if study.status.finished else _unfinished(case)
    decision = _lost_pods(case, decision)
    events = (*transitions(study.status, decision.status), *_no_effect(study, decision.status))
    return replace(decision, events=events)


def _no_effect(study: FineTuneStudy, status: StudyStatus) -> tuple[StudyEvent, ...]:
    """Events for what the user has edited or asked for in vain."""
    old = study.status
    said = _reconciling_message(status)
    if old.finished and status.finished and said not in (_reconciling_message(old), status.message):
        return (StudyEvent("Warning", "NoEffect", said),)
    seen, waits = old.observed_generation != -1, old.finished or _stopped_starting(old)
    if seen and not waits and is_new_retry(study) and status.retry == names.asked_retry(study):
        message = f"the annotation {names.RETRY} has no effect: the study has not ended"
        return (StudyEvent("Warning", "NoEffect", message),)
    return ()


def _reconciling_message(status: StudyStatus) -> str:
    condition = status.condition("Reconciling")
    return condition.message if condition is not None else ""


def refused(study: FineTuneStudy, observed: Observed, now: datetime, why: str) -> Decision:
    """The API server will never accept the study's own pod template: the study fails."""
    case = _Case(study, observed, Settings(), now)
    message = f"the API server refused spec.cluster.podTemplate: {why}"
    decision = _fail(case, "InvalidPodTemplate", message)
    return replace(decision, events=transitions(study.status, decision.status))


def forbidden(study: FineTuneStudy, observed: Observed, now: datetime, why: str) -> Decision:
    """The API server does not accept the study's objects now (a quota, a policy, a missing right): the study waits.

    After a while it counts as stalled, and goes on all the same when they are accepted.
    """
    case = _Case(study, observed, Settings(), now)
    stalled = _is_stalled(case)
    status = _status(case, "Pending", "Forbidden", why, reconciling=not stalled, stalled=stalled)
    return Decision(status, events=transitions(study.status, status))


def _is_stalled(case: _Case) -> bool:
    """Whether the study was not accepted before either, and has come no further for a while."""
    now = {c.type: c for c in case.study.status.conditions if c.status == "True"}
    waiting = now.get("Stalled") or now.get("Reconciling")
    if waiting is None or waiting.reason != "Forbidden":
        return False
    waited = (case.now - waiting.last_transition_time).total_seconds()
    return waiting.type == "Stalled" or waited >= STALLED_SECONDS


def hindered(
    study: FineTuneStudy, observed: Observed, decision: Decision, now: datetime, why: str
) -> Decision:
    """A child is not accepted now, and the attempt does without it; but no study is Complete without its winner."""
    status = decision.status
    if status.finished:
        case = _Case(study, observed, Settings(), now)
        state = study.status.state or "Running"
        status = _status(case, state, "Forbidden", why, reconciling=True)
    else:
        facts = {told.type: told.status == "True" for told in status.conditions}
        message, generation = why[:MAX_MESSAGE], study.metadata.generation
        conditions = with_facts(status.conditions, facts, "Forbidden", message, generation, now)
        changes = {"conditions": conditions, "message": message}
        status = status.model_copy(update=changes)
    return replace(decision, status=status, events=transitions(study.status, status))


def unreadable(status: StudyStatus, generation: int, now: datetime, why: str) -> StudyStatus:
    """The status of a study that only a newer operator may read: it stands still, unless ended, and loses nothing."""
    if status.finished:
        return status
    message = f"this operator cannot read the study; a newer one may: {why}"[:MAX_MESSAGE]
    conditions = status.conditions
    facts: dict[ConditionType, bool] = {"Stalled": True, "Reconciling": False}
    for kind, value in facts.items():
        conditions = with_condition(
            conditions, kind, value, "InvalidSpec", message, generation, now
        )
    changes = {"observed_generation": generation, "conditions": conditions, "message": message}
    return status.model_copy(update=changes)


def unremembered(study: FineTuneStudy, observed: Observed, now: datetime) -> Decision:
    """A study that has ended stays so: the CRD is that of an earlier version, and its status cannot say that it went on."""
    case = _Case(study, observed, Settings(), now)
    message = (
        "the study cannot go on: the CRD of this cluster is older than the operator. Upgrade the CRD, then edit the"
        " study again"
    )
    status = _with_words(case, message)
    return Decision(status, events=_no_effect(study, status))


def _finished(case: _Case) -> Decision:
    """A finished study needs nothing but its TTL, until it may go on."""
    old = case.study.status
    found = continuation(case.study)
    if found.why:
        return _reopen(case, found.why)
    leftover = tuple(
        _delete_job(job) for job in case.jobs if not (job.succeeded or job.failed or job.deleting)
    )
    status = _with_words(case, found.told)
    ttl, ended = case.study.spec.ttl_seconds_after_finished, old.completion_time
    if ttl is None or ended is None:
        return Decision(status, leftover)
    left = ttl - (case.now - ended).total_seconds()
    if left <= 0:
        return Decision(status, leftover, delete_study=True)
    return Decision(status, leftover, again_after=left)


def _with_words(case: _Case, told: str) -> StudyStatus:
    """The status of a study that stays ended. What an edit cannot change is said by the condition Reconciling."""
    old, generation = case.study.status, case.study.metadata.generation
    conditions, condition = old.conditions, old.condition("Reconciling")
    edited = old.observed_generation != generation
    if condition is not None and (told or edited):
        words, reason = (told or old.message)[:MAX_MESSAGE], condition.reason
        conditions = with_condition(
            conditions, "Reconciling", False, reason, words, generation, case.now
        )
    retry = old.retry if names.asked_retry(case.study) is not None else None
    changes = {"observed_generation": generation, "conditions": conditions, "retry": retry}
    return old.model_copy(update=changes)


def _reopen(case: _Case, why: str) -> Decision:
    """Let a study that has ended go on: its last attempt goes, and another follows when nothing is left of it."""
    old = case.study.status
    message = f"the study goes on after its end: {why}"
    status = _status(case, "Pending", "Reopened", message, reconciling=True, failed_attempts=0)
    winner = old.winner
    if winner is None and old.is_true("Complete") and old.best is not None:
        winner = names.winner_config(case.study.metadata.name)  # an earlier version did not say
    end = LastEnd(attempt=case.attempts, limits=old.last_end.limits if old.last_end else None)
    delete = tuple(_delete_job(job) for job in case.jobs if not job.deleting)
    status = status.model_copy(update={"winner": winner, "last_end": end})
    return Decision(status, delete, confirm=not case.confirmed)


def _unfinished(case: _Case) -> Decision:
    current = case.current
    ending = _ending(case, current) if current is not None else None
    if ending is not None:
        return ending
    if case.study.spec.suspend:
        return _suspend(case)
    if current is None:
        return _start(case)
    if current.succeeded or current.failed is not None:
        return _retry(case, current)
    if names.is_outdated(current.made_for, case.study):
        return _replace(case, current)
    return _overdue(case, current) or _running(case, current)


def _ending(case: _Case, current: JobView) -> Decision | None:
    """Complete or Failed: only if the Job has ended and its last driver said the same."""
    word = last_word(case.progress, current, case.study, case.observed)
    if word is not None and current.succeeded and word.phase == "Finished":
        status = _status(case, "Complete", word.reason, word.message, complete=True, ended=True)
        pods = (pod for pod in case.observed.pods if pod.run_id == current.run_id)
        image = next((pod.image for pod in pods if pod.head and pod.image), "")
        winner = winner_config_map(case.study, case.findings, image)
        name = winner["metadata"]["name"] if winner is not None else None
        status = status.model_copy(update={"winner": name})
        return Decision(status, create=(winner,) if winner is not None else ())
    if current.refused:
        return _fail(
            case, "InvalidPodTemplate", f"{current.kind} {current.name}: {current.refused}"
        )
    if word is not None and current.failed is not None and word.phase == "Failed":
        return _fail(case, word.reason, word.message)
    return None


def _fail(case: _Case, reason: Reason, message: str) -> Decision:
    return Decision(_status(case, "Failed", reason, message, failed=True, stalled=True, ended=True))


def _suspend(case: _Case) -> Decision:
    """Delete the Job; suspended once its pods are gone."""
    own = [pod for pod in case.pods if pod.study_uid == case.uid]
    if own or case.jobs:
        message = "waiting for the pods to save and end"
        status = _status(case, "Suspending", "SuspendRequested", message, reconciling=True)
        delete = tuple(_delete_job(job) for job in case.jobs if not job.deleting)
        ended = any(job.succeeded or job.failed for job in case.jobs if not job.deleting)
        return Decision(status, delete, confirm=ended and not case.confirmed)
    return Decision(
        _status(case, "Suspended", "SuspendRequested", "spec.suspend is true", suspended=True)
    )


def _replace(case: _Case, current: JobView) -> Decision:
    """End an attempt that cannot follow an edit: the study was suspended, edited and resumed before anybody looked."""
    message = (
        f"spec.cluster or spec.compute has changed: attempt {current.attempt} ends, another follows"
    )
    status = _status(case, "Pending", "WaitingForPodsToEnd", message, reconciling=True)
    return Decision(status, (_delete_job(current),), confirm=not case.confirmed)


def _overdue(case: _Case, current: JobView) -> Decision | None:
    """End an attempt of which a pod holds a node, and perhaps GPUs, and has not begun to run there for too long."""
    late = _latest_start(case, current)
    if late is None or late[1] > case.now:
        return None
    pod, _ = late
    seconds = _start_deadline(case)
    why = pod.trouble.message if pod.trouble is not None else "nobody says why"
    message = (
        f"pod {pod.place} of attempt {current.attempt} had a node for {seconds} s and did not run there ({why}); the"
        f" attempt was deleted. Mend it, then suspend and resume the study, or give its annotation {names.RETRY} a new value"
    )
    status = _status(case, "Pending", "StartDeadlineExceeded", message, stalled=True)
    return Decision(status, (_delete_job(current),), confirm=not case.confirmed)


def _latest_start(case: _Case, current: JobView) -> tuple[PodView, datetime] | None:
    """The pod of the attempt that must be the first to run, and by when; None if none holds a node without running."""
    limit = timedelta(seconds=_start_deadline(case))
    held = [(p, p.held + limit) for p in case.pods if p.run_id == current.run_id and p.held]
    return min(held, key=lambda each: each[1], default=None)


def _start_deadline(case: _Case) -> int:
    return case.study.spec.cluster.start_deadline_seconds or START_DEADLINE_SECONDS


def _given_up(case: _Case) -> Condition | None:
    """Why the study began no attempt any more, if nobody has edited it or asked for a retry since."""
    told, study = _stopped_starting(case.study.status), case.study
    if told is None:
        return None
    edited = told.observed_generation != study.metadata.generation
    return None if edited or names.asked_retry(study) != study.status.retry else told


def _stopped_starting(status: StudyStatus) -> Condition | None:
    """Its condition Stalled, if that says that its pods did not start in time."""
    told = status.condition("Stalled")
    stalled = told is not None and (told.status, told.reason) == ("True", "StartDeadlineExceeded")
    return told if stalled else None


def _start(case: _Case) -> Decision:
    """Begin the next attempt, once nothing is left of an earlier one or of an earlier study of the same name."""
    if case.unclassed:
        return Decision(_status(case, "Pending", "ClassNotFound", case.unclassed, stalled=True))
    denied = denials(case.study, case.given)
    if denied:
        return Decision(_status(case, "Pending", "ClassDenied", denied, stalled=True))
    if case.spec.storage is None:
        message = "spec.storage must be given: neither the operator nor a class has storage for it"
        return Decision(_status(case, "Pending", "NoStorage", message, stalled=True))
    given_up = _given_up(case)
    if given_up is not None:
        return Decision(
            _status(case, "Pending", "StartDeadlineExceeded", given_up.message, stalled=True)
        )
    if case.pods or case.observed.jobs:
        status = _status(
            case, "Pending", "WaitingForPodsToEnd", _waited_for(case), reconciling=True
        )
        unknown = case.attempts > 0 and not case.jobs  # its Job may not be known yet
        over = tuple(_delete_job(job) for job in case.jobs if not job.deleting)
        return Decision(status, over, confirm=(unknown or bool(over)) and not case.confirmed)
    wrong = _wrong_constraints(case)
    if wrong:
        return _fail(case, "InvalidSpec", wrong)
    attempt = case.attempts + 1
    message = f"attempt {attempt}: creating {case.study.spec.cluster.workers} pods"
    status = _status(case, "Starting", "CreatingPods", message, reconciling=True, attempts=attempt)
    return Decision(
        status,
        apply=tuple(children(case.study, case.settings)),
        create=tuple(engines.manifests(case.study, attempt, case.settings)),
        confirm=attempt > 1 and not case.confirmed,
    )


def _waited_for(case: _Case) -> str:
    """What is still there of an earlier attempt, or of an earlier study of the same name."""
    strangers = [job for job in case.observed.jobs if job.study_uid != case.uid]
    if not strangers:
        others = [pod.name for pod in case.pods if not _is_own(case, pod)]
        if others:
            return (
                f"waiting for pod {others[0]} to end, which has the study's label and is of an earlier study"
                f" of this name or of somebody else; the operator does not delete it"
            )
        return f"waiting for {len(case.pods)} pods of an earlier attempt to end"
    job = min(
        strangers, key=lambda job: job.study_uid
    )  # first one without an owner: it will not go away
    waiting = f"waiting for {job.kind} {job.name} of an earlier study of this name"
    return (
        f"{waiting} to be deleted" if job.study_uid else f"{waiting}, which has no owner: delete it"
    )


def _running(case: _Case, current: JobView) -> Decision:
    """Nothing to do but to pass on edits of the budget, to restore children, and to report how it goes."""
    settings = case.settings.model_copy(update={"engine": current.kind})
    made = children(case.study, settings)
    stale = tuple(manifest for manifest in made if not case.observed.has(manifest))
    if case.unclassed:  # nobody knows what they should be
        stale = ()
    if current.held:
        decision = _queued(case, current)
    else:
        decision = _searching(case, current) or _starting(case, current)
    edited = names.spec_config(case.study.metadata.name)
    meddled = any(manifest["metadata"]["name"] != edited for manifest in stale)
    # Children are also deleted with their study, and the event of that may come later.
    confirm = decision.confirm or (meddled and not case.confirmed)
    # One attempt at a time, whatever made two of them.
    others = (job for job in case.jobs if job is not current and not job.deleting)
    delete = (*decision.delete, *map(_delete_job, others))
    late = _latest_start(case, current)
    looks = [decision.again_after] if decision.again_after is not None else []
    looks += [] if late is None else [(late[1] - case.now).total_seconds()]
    again = min(looks, default=None)
    return replace(decision, delete=delete, apply=stale, confirm=confirm, again_after=again)


def _queued(case: _Case, current: JobView) -> Decision:
    """It is up to the queue: the pods may not run yet, or not any more."""
    queue = case.spec.cluster.queue_name
    where = f"queue {queue}" if queue else "whoever suspended its Job"
    pods = sum(pod.run_id == current.run_id for pod in case.pods)
    message = f"attempt {current.attempt}: waiting for {where} to let it run"
    if pods:
        message = (
            f"attempt {current.attempt}: {where} took its place back, {pods} pods save and end"
        )
    return Decision(_status(case, "Queued", "Queued", message, reconciling=True, resting=not pods))


def _searching(case: _Case, current: JobView) -> Decision | None:
    """It is up to the driver, as long as there is a pod for it to run in."""
    word = speaks_for(case.progress, current)
    state: State
    if word is not None and word.phase in ("Finished", "Failed"):
        # The document alone is not believed: the Job has to end too.
        message = "the driver is done, its pod is ending"
        state = "Refitting" if case.study.status.state == "Refitting" else "Running"
        return Decision(_status(case, state, "Running", message))
    alive = any(pod.running and pod.run_id == current.run_id for pod in case.pods)
    if word is None or word.phase not in ("Searching", "Refitting") or not alive:
        return None
    state = "Refitting" if word.phase == "Refitting" else "Running"
    moved = _ended_trials(case.findings) > _ended_trials(case.study.status)
    own = [pod for pod in case.observed.pods if pod.run_id == current.run_id]
    there = sum(not pod.ended for pod in own)
    trouble = _trouble(case, current)
    unexplained = trouble is None and there < current.pods
    if unexplained:
        trouble = _shortage(case, f"{there} of {current.pods} pods: ")
    reason: Reason = trouble.reason if trouble else "Running"
    message = trouble.message if trouble else word.message
    denied = denials(case.study, case.given)
    if denied and not trouble:
        reason, message = "ClassDenied", f"the study goes on within its class's limits: {denied}"
    if word.reason == "StorageUnavailable":
        reason, message = word.reason, word.message
    status = _status(case, state, reason, message, failed_attempts=0 if moved else None)
    since = max((pod.created for pod in own if pod.created), default=case.now)
    age = (case.now - since).total_seconds()
    if not unexplained or age >= EXPLAIN_SECONDS:
        return Decision(status)
    return _look(case, current, status, age)


def _shortage(case: _Case, there: str) -> Trouble | None:
    """Why some pods are missing, as far as that is known: the search goes on with the others."""
    told = "" if case.explanation == UNEXPLAINED else case.explanation
    known = _known_explanation(case)
    told = told or known.partition(" pods: ")[2] or known
    return Trouble("PodsPending", there + told) if told else None


def _starting(case: _Case, current: JobView) -> Decision:
    """The pods should be starting; if they are not, say why."""
    quiet = not current.active and not case.pods
    age = (case.now - _quiet_since(case, current)).total_seconds()
    known = _known_explanation(case) if quiet and age >= QUIET_SECONDS else ""
    known = current.trouble or known
    told, trouble = case.explanation or known, _trouble(case, current)
    if told and (told != UNEXPLAINED or trouble is None):  # newer than a pod that has ended
        trouble = Trouble("PodsPending", told)
    word = speaks_for(case.progress, current)
    strangers = sum(pod.study_uid != case.uid for pod in case.pods)
    if trouble:
        message = trouble.message
    elif strangers:
        message = f"waiting for {strangers} pods of a study of the same name to end"
    else:
        waiting = f"attempt {current.attempt}: waiting for the pods to start"
        message = (word.message if word is not None else "") or waiting
    reason: Reason = trouble.reason if trouble else "CreatingPods"
    if word is not None and word.reason == "StorageUnavailable" and not trouble:
        reason = word.reason
    starting = not any(pod.running for pod in case.pods)
    status = _status(case, "Starting", reason, message, reconciling=starting)
    if not quiet:
        return Decision(status)
    if NAMESPACE_ENDS in told:
        # The Job controller keeps the last failed pod of each index until it may make another, for ever.
        return Decision(status, (_delete_job(current),))
    if known and age >= EXPLAIN_SECONDS:
        return Decision(status)
    return _look(case, current, status, age)


def _look(case: _Case, current: JobView, status: StudyStatus, age: float) -> Decision:
    """`status`, and when to look again why pods that have been awaited for so long are missing."""
    if age < QUIET_SECONDS:
        return Decision(status, again_after=QUIET_SECONDS - age + 0.1)
    explain = None if case.explanation else current
    return Decision(status, explain=explain, again_after=_next_look(age))


def _quiet_since(case: _Case, current: JobView) -> datetime:
    """Since when pods have been awaited."""
    condition = case.study.status.condition("Reconciling")
    if condition is None or condition.status != "True":
        return case.now
    return max(condition.last_transition_time, current.begun or condition.last_transition_time)


def _known_explanation(case: _Case) -> str:
    condition = case.study.status.condition("Reconciling")
    known = condition is not None and condition.reason == "PodsPending"
    return case.study.status.message if known else ""


def _next_look(age: float) -> float | None:
    """Seconds until the Events are worth another look; None once that has gone on for long enough."""
    look = float(QUIET_SECONDS)
    while look <= age:
        look *= 2
    return look - age + 0.1 if look < EXPLAIN_SECONDS else None


def _wrong_constraints(case: _Case) -> str:
    """What is wrong with the constraints that the API server cannot see; empty if nothing is."""
    try:
        if case.plan.trials == 0:
            return f"{CONSTRAINTS}: must leave something to try (none of the combinations satisfies them)"
    except ExpressionError as error:
        return str(error)
    return ""


def _plan(case: _Case) -> StudyPlan | None:
    try:
        return case.plan
    except ExpressionError:  # the study has failed, or will, for this reason
        return None


def _retry(case: _Case, current: JobView) -> Decision:
    """Give up the attempt: another follows when its pods are gone, unless too many ended without a result."""
    if _drained(case, current):
        message = f"attempt {current.attempt} was told to end; another follows"
        status = _status(case, "Pending", "Evicted", message, reconciling=True)
        return Decision(status, (_delete_job(current),), confirm=not case.confirmed)
    why = current.failed or "pod 0 succeeded without saying that the study is finished"
    word = speaks_for(case.progress, current)
    if word is not None and word.message:
        why = f"{why}; its driver said: {word.message}"
    failures = case.study.status.failed_attempts + 1
    if failures >= case.settings.max_failed_attempts:
        message = f"{failures} attempts in a row ended without a result; the last: {why}"
        decision = _fail(case, "RetriesExhausted", message)
        return replace(decision, confirm=not case.confirmed)
    message = f"attempt {current.attempt} ended without a result ({why}); another follows"
    status = _status(
        case, "Pending", "AttemptFailed", message, reconciling=True, failed_attempts=failures
    )
    return Decision(status, (_delete_job(current),), confirm=not case.confirmed)


def _drained(case: _Case, current: JobView) -> bool:
    """Whether the attempt is over only because its pods had to go: a node was drained or needed for others.

    That is no failure, however often it happens; but if a study is always told to end before it has trained
    anything, something is wrong with it.
    """
    word = last_word(case.progress, current, case.study, case.observed)
    told_to_end = word is not None and word.phase == "Drained"
    spending = case.findings.spending
    trained = _ended_trials(case.findings) or (spending is not None and spending.epochs)
    return current.ends_drained and told_to_end and bool(trained)


def _ended_trials(findings: Findings) -> int:
    counts = findings.trials
    return counts.completed + counts.stopped + counts.diverged + counts.failed + counts.paused


def _lost_pods(case: _Case, decision: Decision) -> Decision:
    """Add the forced deletion of pods that a lost node will never end."""
    limit = timedelta(seconds=LOST_SECONDS)
    ends = [
        (pod, pod.deadline + limit)
        for pod in case.pods
        if pod.deadline is not None and _is_own(case, pod)
    ]
    deletions = tuple(
        Deletion("Pod", pod.name, pod.uid, force=True) for pod, end in ends if end <= case.now
    )
    delays = [(end - case.now).total_seconds() for _, end in ends if end > case.now]
    if decision.again_after is not None:
        delays.append(decision.again_after)
    return replace(
        decision, delete=(*decision.delete, *deletions), again_after=min(delays, default=None)
    )


def _is_own(case: _Case, pod: PodView) -> bool:
    """Whether an attempt of this very study made the pod: labels alone, which anybody may copy, do not say so.

    Its Job may be gone already; what is left then is its name, and that the pod says whose it is.
    """
    job = next((job for job in case.observed.jobs if job.uid == pod.controller), None)
    if job is not None:
        return job.study_uid == case.uid
    named = names.is_attempt(case.study.metadata.name, pod.controller_name)
    return named and pod.study_uid == case.uid


def _delete_job(job: JobView) -> Deletion:
    return Deletion(job.kind, job.name, job.uid)


def _trouble(case: _Case, current: JobView) -> Trouble | None:
    """The trouble of the first of the attempt's pods that has any.

    Only the last pod of each place counts: one that has been replaced no longer matters.
    """
    last: dict[str, PodView] = {}
    for pod in sorted(case.observed.pods, key=lambda pod: (not pod.ended, pod.created or case.now)):
        on_its_way = not (pod.ended or pod.running or pod.trouble)
        if pod.run_id == current.run_id and not on_its_way:
            last[pod.place] = pod
    for pod in sorted(last.values(), key=lambda pod: (not pod.head, pod.place)):
        if pod.trouble is not None:
            return Trouble(pod.trouble.reason, f"pod {pod.place}: {pod.trouble.message}")
    return None


def _status(
    case: _Case,
    state: State,
    reason: Reason,
    message: str,
    *,
    complete: bool = False,
    failed: bool = False,
    suspended: bool = False,
    reconciling: bool = False,
    stalled: bool = False,
    ended: bool = False,
    resting: bool = False,
    attempts: int | None = None,
    failed_attempts: int | None = None,
) -> StudyStatus:
    old = case.study.status
    message = message[:MAX_MESSAGE]
    trains = state in ("Running", "Refitting")
    facts: dict[ConditionType, bool] = {
        "Complete": complete,
        "Failed": failed,
        "Suspended": suspended,
        "Reconciling": reconciling,
        "Stalled": stalled,
        "Running": trains,
    }
    generation = case.study.metadata.generation
    conditions = with_facts(old.conditions, facts, reason, message, generation, case.now)
    started = old.start_time or (case.now if case.attempts or attempts else None)
    findings = at_rest(case.findings) if suspended or ended or resting else case.findings
    return StudyStatus(
        **findings.__dict__,
        observed_generation=case.study.metadata.generation,
        state=state,
        conditions=conditions,
        start_time=started,
        completion_time=case.now if ended else None,
        attempts=max(case.attempts, attempts or 0),
        failed_attempts=old.failed_attempts if failed_attempts is None else failed_attempts,
        plan=_plan(case),
        message=message,
        best_shown=shown(findings.best),
        workers=_workers(case) if trains else None,
        retry=names.asked_retry(case.study),
        last_end=_this_end(case) if ended else old.last_end,
        winner=old.winner,
        storage=_storage_used(case, begins=attempts is not None),
        **_class_used(case, begins=attempts is not None),
    )


def _class_used(case: _Case, begins: bool) -> dict[str, Any]:
    """Name and generation of the class of the last attempt."""
    old, given = case.study.status, case.given
    if not begins:
        return {"class_name": old.class_name, "class_generation": old.class_generation}
    if given is None:
        return {}
    meta = given.metadata
    return {"class_name": meta.name, "class_generation": meta.generation}


def _storage_used(case: _Case, begins: bool) -> Storage | None:
    """Where the records are; studies that began before the status said so have them where they would begin now."""
    if case.unclassed:
        return case.study.status.storage
    return case.spec.storage if begins or case.attempts else None


def _this_end(case: _Case) -> LastEnd:
    given = case.settings.given
    return last_end(case.study, case.observed, case.current, case.attempts, given)


def _workers(case: _Case) -> str | None:
    """How many workers run, of how many."""
    current = case.current
    if current is None:
        return None
    own = [pod for pod in case.pods if pod.running and pod.run_id == current.run_id]
    training = sum(current.head_trains or not pod.head for pod in own)
    return f"{training}/{case.study.spec.cluster.workers}"
