"""What runs a study's Ray cluster: a module for each engine, chosen by the platform team."""

from finetune_api.study import FineTuneStudy
from finetune_operator import job, ray_job
from finetune_operator.children import Manifest
from finetune_operator.settings import Settings

KINDS = ("Job", "RayJob")
"""The kinds of the engines' objects; one of them is an attempt."""


def manifests(study: FineTuneStudy, attempt: int, settings: Settings) -> list[Manifest]:
    """The objects of one attempt, in the order in which they must be created; the engine's own object last."""
    if settings.engine == "RayJob":
        return ray_job.manifests(study, attempt, settings)
    return job.manifests(study, attempt, settings)
