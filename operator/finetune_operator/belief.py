"""What is believed of the progress document: the study's pods write it, and they are not trusted."""

from pydantic import ValidationError

from finetune_api.status import Findings, StudyProgress, TrialCounts
from finetune_api.study import FineTuneStudy
from finetune_operator import names
from finetune_operator.observe import JobView, Observed


def believed_progress(study: FineTuneStudy, observed: Observed) -> StudyProgress | None:
    """The driver's document if it is well formed and speaks of this very study.

    A document of a term that no driver has claimed is made up. One of an earlier attempt still tells
    what was found; whether it tells how the current attempt stands, `speaks_for` says.
    """
    config = observed.configs.get(names.progress_config(study.metadata.name))
    if config is None or config.study_uid != study.metadata.uid or not config.progress:
        return None
    try:
        progress = StudyProgress.model_validate_json(config.progress)
    except ValidationError:
        return None
    if progress.study_uid != study.metadata.uid or progress.term > config.term:
        return None
    return progress


def speaks_for(progress: StudyProgress | None, job: JobView) -> StudyProgress | None:
    """The document if a driver of that very attempt wrote it."""
    return progress if progress is not None and progress.job_uid == job.run_id else None


def last_word(
    progress: StudyProgress | None, job: JobView, study: FineTuneStudy, observed: Observed
) -> StudyProgress | None:
    """The document if it is what that Job's last driver said: no driver has started after it."""
    config = observed.configs.get(names.progress_config(study.metadata.name))
    said = speaks_for(progress, job)
    return said if said is not None and config is not None and said.term == config.term else None


def at_rest(findings: Findings) -> Findings:
    """The findings of a study without pods: what ran when they ended is paused, whatever was said."""
    counts = findings.trials
    trials: TrialCounts = counts.model_copy(
        update={"running": 0, "paused": counts.paused + counts.running}
    )
    return findings.model_copy(update={"trials": trials})
