"""Where the driver reports to: in a pod, the study's progress ConfigMap (`local_sink` has what it is on a laptop)."""

import json
from datetime import UTC, datetime
from typing import Protocol

from kubernetes import client, config

from finetune_api.pods import LIMITS_KEY, PROGRESS_KEY, TERM_KEY
from finetune_api.status import MAX_PROGRESS_BYTES, Findings, JudgedBy, Limits, StudyProgress
from finetune_trainer.environment import PodEnvironment


class Fenced(Exception):
    """A later driver has started; this one must write nothing more."""


class ProgressSink(Protocol):
    """Hands out terms and takes progress documents."""

    job_uid: str

    def claim_term(self, above: int = 0) -> int:
        """A number for this start of the driver, above every earlier one and above `above`."""
        ...

    def publish(self, progress: StudyProgress, judged_by: Limits | None = None) -> None:
        """Make `progress` known, and with which limits the end was decided. Raises Fenced if a later driver has started."""
        ...


class ConfigMapSink:
    """The progress ConfigMap; the pod may get and patch it, and nothing else."""

    def __init__(self, pod: PodEnvironment) -> None:
        config.load_incluster_config()
        self._api = client.CoreV1Api()
        self._name, self._namespace = pod.progress, pod.namespace
        self.job_uid = pod.job_uid

    def claim_term(self, above: int = 0) -> int:
        """Raise `data.term` by one, or above `above`, by compare-and-swap on the resourceVersion."""
        while True:
            found = self._api.read_namespaced_config_map(self._name, self._namespace)
            term = max(above, int((found.data or {}).get(TERM_KEY, "0"))) + 1
            body = {
                "metadata": {"resourceVersion": found.metadata.resource_version},
                "data": {TERM_KEY: str(term)},
            }
            try:
                self._api.patch_namespaced_config_map(self._name, self._namespace, body)
            except client.ApiException as error:
                if error.status != 409:
                    raise
                continue  # somebody else wrote in between
            return term

    def publish(self, progress: StudyProgress, judged_by: Limits | None = None) -> None:
        """Write `data.progress`, and `data.limits` at the end, if `data.term` is still ours."""
        patch = [
            {"op": "test", "path": f"/data/{TERM_KEY}", "value": str(progress.term)},
            {"op": "add", "path": f"/data/{PROGRESS_KEY}", "value": encode(progress)},
        ]
        if (
            judged_by is not None
        ):  # beside the document: operators of before refuse fields that they do not know
            said = json.dumps(JudgedBy(term=progress.term, limits=judged_by).to_json())
            patch.append({"op": "add", "path": f"/data/{LIMITS_KEY}", "value": said})
        try:
            self._api.patch_namespaced_config_map(self._name, self._namespace, patch)
        except client.ApiException as error:
            if error.status == 422:
                raise Fenced(f"term {progress.term} is over") from error
            raise


def encode(progress: StudyProgress) -> str:
    """The document as JSON of at most 16 KiB.

    If it is longer, entries are dropped from the ends of lists, one list after the other: `topTrials`, the best
    trial's `splits`, `paretoFront`, `warnings`. The table of trials has all of them.
    """
    findings: Findings | None = progress.findings
    text = ""
    while findings is not None:
        shown = progress.model_copy(update={"findings": findings})
        text = json.dumps(shown.to_json(), separators=(",", ":"))
        if len(text.encode()) <= MAX_PROGRESS_BYTES:
            break
        findings = _shorter(findings)
    return text


def _shorter(findings: Findings) -> Findings | None:
    """The findings with one entry less; None if there is nothing to leave out."""
    best = findings.best
    if findings.top_trials:
        return findings.model_copy(update={"top_trials": findings.top_trials[:-1]})
    if best is not None and best.splits:
        fewer = best.model_copy(update={"splits": best.splits[:-1]})
        return findings.model_copy(update={"best": fewer})
    if findings.pareto_front:
        return findings.model_copy(update={"pareto_front": findings.pareto_front[:-1]})
    if findings.warnings:
        return findings.model_copy(update={"warnings": findings.warnings[:-1]})
    return None


def document(
    sink: ProgressSink, study_uid: str, term: int, findings: Findings, **says: str
) -> StudyProgress:
    """A progress document with the current time; `says` has phase, reason and message."""
    return StudyProgress.model_validate(
        {
            "study_uid": study_uid,
            "job_uid": sink.job_uid,
            "term": term,
            "time": datetime.now(UTC),
            "findings": findings,
            **says,
        }
    )
