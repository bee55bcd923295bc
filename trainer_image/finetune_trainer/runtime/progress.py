"""Where the driver reports to: the study's progress ConfigMap in a pod, its manifest's status on a laptop."""

import fcntl
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol

from kubernetes import client, config

from finetune_api.pods import LIMITS_KEY, PROGRESS_KEY, TERM_KEY
from finetune_api.status import MAX_PROGRESS_BYTES, Findings, JudgedBy, Limits, StudyProgress
from finetune_trainer.environment import PodEnvironment
from finetune_trainer.storage.glance import write_progress
from finetune_trainer.storage.layout import HOLDER, TERM


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


class FolderInUse(BlockingIOError):
    """Another process has the folder; the text says which, and what to do."""

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


class LocalSink:
    """A folder on this machine: a file lock admits one driver at a time."""

    job_uid = "local"

    def __init__(
        self, folder: Path, option: str = "--into", about: Mapping[str, str] | None = None
    ) -> None:
        """`option` is what names the folder; `about` has `name`, `task` and `metric` of the study, as far as known."""
        self._folder = folder
        self._about = {"name": folder.absolute().name, "task": "", "metric": "", **(about or {})}
        self._option = option
        self._lock: IO[str] | None = None
        self.latest: StudyProgress | None = None

    def claim_term(self, above: int = 0) -> int:
        """Raise the number in `<folder>/term` by one, or above `above`. Raises FolderInUse if another driver runs."""
        lock = self._lock or self._locked()
        lock.seek(0)
        term = max(above, int(lock.read() or 0)) + 1
        lock.seek(0)
        lock.write(str(term))  # in place: on a full disk there is no room for another file
        lock.flush()
        self._lock = lock  # held until released, or the process ends
        return term

    def _locked(self) -> IO[str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        path, holder = self._folder / TERM, self._folder / HOLDER
        path.touch()
        lock = path.open("r+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            who = holder.read_text().strip() if holder.is_file() else "another process"
            raise FolderInUse(
                error.errno,
                f"is used by {who}: end it, or choose another folder with {self._option}",
                str(self._folder),
            ) from error
        with suppress(OSError):  # a full disk is waited for later
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        return lock

    def release(self) -> None:
        """Let another driver run."""
        if self._lock is not None:
            with suppress(OSError):  # the name of a process that works no more is only a wrong hint
                (self._folder / HOLDER).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def publish(self, progress: StudyProgress, judged_by: Limits | None = None) -> None:
        """Keep the document for whoever shows it, here and in the folder."""
        self.latest = progress
        with suppress(OSError):  # a full disk is waited for by those who write the records
            write_progress(self._folder, self._about, progress.to_json())


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
