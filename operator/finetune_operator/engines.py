"""What runs a study's Ray cluster: one module per engine; the platform team chooses."""

from finetune_api.study import FineTuneStudy
from finetune_operator import job, ray_job
from finetune_operator.children import Manifest
from finetune_operator.settings import Settings

KINDS = ("Job", "RayJob")
"""The kinds of the engines' objects, each of which is one attempt."""


def manifests(study: FineTuneStudy, attempt: int, settings: Settings) -> list[Manifest]:
    """The objects of one attempt, in the order in which they must be created; the engine's own object last."""
    if settings.engine == "RayJob":
        return ray_job.manifests(study, attempt, settings)
    return job.manifests(study, attempt, settings)
