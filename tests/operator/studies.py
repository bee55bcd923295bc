"""Studies and observations as the operator would see them, for tests of decisions."""

from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.manifest import parse_study
from finetune_api.status import Findings, StudyProgress, StudyStatus, TrialCounts
from finetune_api.stores import ClaimStorage, Storage
from finetune_api.study import FineTuneStudy
from finetune_operator import names
from finetune_operator.children import children as made_for
from finetune_operator.children import spec_config_map
from finetune_operator.observe import (
    ConfigView,
    JobView,
    Observed,
    PodView,
    RayJobView,
    essence,
)
from finetune_operator.settings import Settings
from tests.api.wrong_manifests import VALID, changed

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
UID = "0c9a2c5e-0000-4000-8000-000000000001"
JOB_UID = "0c9a2c5e-0000-4000-8000-0000000000aa"
SETTINGS = Settings(
    trainer_image="finetune-trainer:0.1.0",
    default_storage=Storage(persistent_volume_claim=ClaimStorage(claim_name="studies")),
)


def study(status: StudyStatus | None = None, **spec: Any) -> FineTuneStudy:
    """The valid study, as stored; `spec` changes top-level fields."""
    changes = {f"spec.{name}": value for name, value in spec.items()}
    changes |= {"metadata.uid": UID, "metadata.generation": 1}
    parsed = parse_study(changed(VALID, changes))
    return parsed.model_copy(update={"status": status or StudyStatus()})


def job(attempt: int = 1, **more: Any) -> JobView:
    """A live Job of the study."""
    facts: dict[str, Any] = {
        "name": f"tickets-{attempt}",
        "uid": JOB_UID,
        "study_uid": UID,
        "attempt": attempt,
        "deleting": False,
        "succeeded": False,
        "failed": None,
        "active": 1,
        "held": False,
        "begun": NOW,
        "run_id": JOB_UID,
    }
    return JobView(**{**facts, **more})


def kuberay_job(attempt: int = 1, **more: Any) -> RayJobView:
    """A live RayJob of the study."""
    return RayJobView(**vars(job(attempt, run_id=names.run_id(UID, attempt), **more)))


def pod(index: int = 0, **more: Any) -> PodView:
    """A running pod of that Job."""
    facts: dict[str, Any] = {
        "name": f"tickets-1-{index}-abcde",
        "uid": f"pod-{index}",
        "study_uid": UID,
        "run_id": JOB_UID,
        "controller": JOB_UID,
        "controller_name": "tickets-1",
        "place": str(index),
        "head": index == 0,
        "ended": False,
        "running": True,
        "deadline": None,
        "image": "",
        "created": NOW,
        "trouble": None,
    }
    return PodView(**{**facts, **more})


def progress(phase: str = "Searching", **more: Any) -> StudyProgress:
    """A document of the driver."""
    facts: dict[str, Any] = {
        "study_uid": UID,
        "job_uid": JOB_UID,
        "term": 1,
        "phase": phase,
        "reason": "Running",
        "message": "",
        "time": NOW,
        "findings": Findings(trials=TrialCounts(planned=4, running=1, completed=1, summary="1/4")),
    }
    return StudyProgress.model_validate({**facts, **more})


def observed(
    *children: JobView | PodView,
    document: StudyProgress | str | None = None,
    term: int = 1,
    fresh: bool = True,
) -> Observed:
    """What the store would hold: drivers have claimed `term` terms; `fresh` has the spec up to date."""
    text = document if isinstance(document, str) else document.model_dump_json() if document else ""
    spec = names.spec_config("tickets")
    digest = spec_config_map(study(), SETTINGS)["metadata"]["annotations"][names.SPEC_HASH]
    configs = {
        spec: ConfigView(spec, UID, digest if fresh else "old", True, "", 0),
        names.progress_config("tickets"): ConfigView(
            names.progress_config("tickets"), UID, "", True, text, term
        ),
    }
    jobs = tuple(child for child in children if isinstance(child, JobView))
    pods = tuple(child for child in children if isinstance(child, PodView))
    return Observed(jobs, pods, configs, kept(*jobs))


def kept(*jobs: JobView) -> dict[tuple[str, str], str]:
    """The other children of these attempts, as they were made."""
    made = [
        manifest
        for job in jobs
        for manifest in made_for(study(), SETTINGS.model_copy(update={"engine": job.kind}))
        if manifest["kind"] != "ConfigMap"
    ]
    return {(one["kind"], one["metadata"]["name"]): essence(one["kind"], one) for one in made}


def later(seconds: float) -> datetime:
    """NOW and some seconds."""
    return NOW + timedelta(seconds=seconds)
