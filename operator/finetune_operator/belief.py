"""How far the progress document is believed: the study's pods write it, and they are not trusted."""

import math
from typing import Any

from pydantic import ValidationError

from finetune_api.status import Findings, JudgedBy, Limits, StudyProgress, TrialCounts
from finetune_api.study import FineTuneStudy
from finetune_operator import names
from finetune_operator.observe import JobView, Observed


def document(text: str) -> StudyProgress | None:
    """The progress document that a driver wrote; None if it is not one."""
    try:
        return StudyProgress.model_validate_json(text)
    except ValidationError:
        return None


def believed_progress(study: FineTuneStudy, observed: Observed) -> StudyProgress | None:
    """The driver's document if it is well formed and about this very study.

    A document of a term that no driver has claimed is forged. One of an earlier attempt still has the
    findings; `speaks_for` says whether it also describes the current attempt.
    """
    config = observed.configs.get(names.progress_config(study.metadata.name))
    if config is None or config.study_uid != study.metadata.uid or not config.progress:
        return None
    progress = document(config.progress)
    if progress is None:
        return None
    if progress.study_uid != study.metadata.uid or progress.term > config.term:
        return None
    return progress if _can_be_stored(progress.findings.model_dump()) else None


def speaks_for(progress: StudyProgress | None, job: JobView) -> StudyProgress | None:
    """The document if a driver of this very attempt wrote it."""
    return progress if progress is not None and progress.job_uid == job.run_id else None


def last_word(
    progress: StudyProgress | None, job: JobView, study: FineTuneStudy, observed: Observed
) -> StudyProgress | None:
    """The document if it is the last word from that Job: no driver has started since."""
    config = observed.configs.get(names.progress_config(study.metadata.name))
    said = speaks_for(progress, job)
    return said if said is not None and config is not None and said.term == config.term else None


def judged_by(study: FineTuneStudy, observed: Observed) -> Limits | None:
    """The limits with which the last driver decided that the search is over, if it says so."""
    config = observed.configs.get(names.progress_config(study.metadata.name))
    if config is None or config.study_uid != study.metadata.uid or not config.limits:
        return None
    try:
        said = JudgedBy.model_validate_json(config.limits)
    except ValidationError:
        return None
    storable = _can_be_stored(said.limits.model_dump())
    return said.limits if said.term == config.term and storable else None


def _can_be_stored(value: Any) -> bool:
    """Whether an API server can store the findings: integers of 64 bits, and finite other numbers."""
    match value:
        case int():
            return -(2**63) <= value < 2**63
        case float():
            return math.isfinite(value)
        case dict():
            return all(map(_can_be_stored, value.values()))
        case list():
            return all(map(_can_be_stored, value))
        case _:
            return True


def at_rest(findings: Findings) -> Findings:
    """The findings of a study without pods: trials that ran when these ended are paused, whatever the document says."""
    counts = findings.trials
    trials: TrialCounts = counts.model_copy(
        update={"running": 0, "paused": counts.paused + counts.running}
    )
    return findings.model_copy(update={"trials": trials})
