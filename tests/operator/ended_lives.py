"""A study's life in steps: attempts that begin and end, edits between them, and an operator that looks.

It knows by a rule of its own when a study that has ended must go on, and when it must not.
"""

import math
from dataclasses import replace
from typing import Any

from finetune_api.limits import limits_of
from finetune_api.status import Findings, JudgedBy, StudyProgress, TrialCounts, TrialResult
from finetune_api.study import FineTuneStudy
from finetune_operator import names
from finetune_operator.decide import decide
from finetune_operator.observe import JobView, Observed, PodView
from tests.operator.studies import SETTINGS, job, later, observed, pod, progress, study

LIMIT_OF = {
    "SearchFinished": "maxTrials",
    "BudgetSpent": "maxDurationSeconds",
    "NoImprovement": "maxTrialsWithoutImprovement",
    "TargetReached": "target",
    "TooManyFailedTrials": "maxFailedTrials",
}
"""Reason of an end -> the limit that has ended it here."""

_FAILED = ("TooManyFailedTrials", "DataError", "RefitFailed")
_FOUND = Findings(
    trials=TrialCounts(completed=3, summary="3"), best=TrialResult(trial=1, value=0.5)
)


class Life:
    """One study, its attempts, and the operator."""

    def __init__(self) -> None:
        self.limits: dict[str, Any] = {
            "maxTrials": 3,
            "maxDurationSeconds": 2,
            "maxTrialsWithoutImprovement": 2,
            "maxFailedTrials": 1,
            "target": 0.5,
        }
        self.more: dict[str, Any] = {}
        self.generation = 1
        self.retry: str | None = None
        self.status = study().status
        self.job: JobView | None = None
        self.pods = 0
        self.document: StudyProgress | None = None
        self.judged_by = ""
        self.ended: tuple[str, dict[str, Any]] | None = None
        """Reason and limits of the last end."""

        self.now = 0

    @property
    def study(self) -> FineTuneStudy:
        limits = {name: value for name, value in self.limits.items() if value is not None}
        target = {"target": limits.pop("target")} if "target" in limits else {}
        made = study(
            self.status, budget=limits, objective={"metric": "f1_macro", **target}, **self.more
        )
        wish = {} if self.retry is None else {names.RETRY: self.retry}
        meta = {"generation": self.generation, "annotations": wish}
        return made.model_copy(update={"metadata": made.metadata.model_copy(update=meta)})

    @property
    def seen(self) -> Observed:
        children: list[JobView | PodView] = [self.job] if self.job is not None else []
        if self.pods:
            children.append(pod(ended=self._over))
        found = observed(*children, document=self.document)
        name = names.progress_config("tickets")
        view = replace(found.configs[name], limits=self.judged_by)
        return replace(found, configs={**found.configs, name: view})

    @property
    def _over(self) -> bool:
        return self.job is not None and (self.job.succeeded or self.job.failed is not None)

    def step(self, what: str, value: Any) -> None:
        """What others do."""
        self.now += 1
        match what:
            case "end" if self.job is not None and not self._over and not self.job.deleting:
                self._end(self.job, value)
            case "pods go" if self.job is not None and self.job.deleting:
                if self.pods:
                    self.pods = 0
                else:
                    self.job = None
            case "budget":
                self._edit(self.limits, value)
            case "target":
                self._edit(self.limits, {"target": value})
            case "suspend":
                self._edit(self.more, {"suspend": value})
            case "ttl":
                self._edit(self.more, {"ttlSecondsAfterFinished": value})
            case "retry":
                self.retry = value
            case _:
                pass

    def _edit(self, part: dict[str, Any], changes: dict[str, Any]) -> None:
        changed = {**part, **changes}
        if changed != part:
            part.update(changes)
            self.generation += 1

    def _end(self, ending: JobView, reason: str) -> None:
        limit = LIMIT_OF.get(reason, "")
        message = f"spec.budget.{limit} = {self.limits.get(limit)} passed" if limit else "wrong"
        failed = reason in _FAILED
        phase = "Failed" if failed else "Finished"
        self.document = progress(phase, reason=reason, message=message, findings=_FOUND)
        outcome: dict[str, Any] = {"failed": "exit 42"} if failed else {"succeeded": True}
        self.job = job(ending.attempt, **outcome, made_for=ending.made_for)
        spec = self.study.spec
        limits = limits_of(spec.budget, spec.objective.target)
        self.judged_by = JudgedBy(term=1, limits=limits).model_dump_json()
        self.ended = reason, dict(self.limits)

    def look(self, loses_status: bool = False) -> None:
        """The operator looks at everything, and does what it decides; it may die before the status is written."""
        before, seen = self.study, self.seen
        decision = decide(before, seen, SETTINGS, later(self.now), confirmed=True)
        goes_on = before.status.finished and not decision.status.finished
        if before.status.finished:
            assert goes_on == self._must_go_on(before), (self.ended, self.limits)
            assert (decision.create, decision.apply) == ((), ())
        for deletion in decision.delete:
            if self.job is not None and deletion.name == self.job.name:
                self.job = job(**{**vars(self.job), "deleting": True})
        for manifest in decision.create:
            if manifest["kind"] == "Job":
                assert self.job is None
                assert not self.pods
                self._begin(int(manifest["metadata"]["labels"][names.ATTEMPT_LABEL]))
        if not loses_status:
            self.status = decision.status

    def _begin(self, attempt: int) -> None:
        assert not self.more.get("suspend")
        self.job = job(attempt, made_for=names.made_for(self.study))
        self.pods, self.document, self.judged_by = 1, None, ""

    def _must_go_on(self, before: FineTuneStudy) -> bool:
        if before.spec.suspend or self.ended is None:
            return False
        if self.retry is not None and self.retry != before.status.retry:
            return True
        reason, then = self.ended
        limit = LIMIT_OF.get(reason)
        return limit is not None and _room(self.limits[limit]) > _room(then[limit])

    def rests(self) -> None:
        """Nothing is left to do: another look changes nothing."""
        decision = decide(self.study, self.seen, SETTINGS, later(self.now), confirmed=True)
        assert decision.status == self.status
        assert (decision.create, decision.delete, decision.events) == ((), (), ())


def _room(limit: float | None) -> float:
    return math.inf if limit is None else limit
