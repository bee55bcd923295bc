"""What the operator passes to the study's pods in environment variables."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from finetune_api import pods
from finetune_api.cluster import ClusterSpec
from finetune_api.manifest import parse_study
from finetune_api.quantities import gpus_in, parse_quantity
from finetune_api.study import FineTuneStudy
from finetune_trainer.errors import SpecError


@dataclass(frozen=True)
class PodEnvironment:
    """One pod of a study: which study, where it stores, where its head is, which pod it is."""

    study_file: Path
    storage: str
    base: Path
    head: str
    progress: str
    namespace: str
    job_uid: str
    study_uid: str
    index: int
    retry: str = ""
    """The study's annotation `finetune.dev/retry` when the attempt began; empty if it has none."""

    @classmethod
    def read(cls, env: Mapping[str, str] = os.environ) -> "PodEnvironment":
        """The environment of this pod. Raises KeyError naming the variable that is missing.

        Where KubeRay runs the cluster, only the driver, on the head, reads it.
        """
        return cls(
            study_file=Path(env[pods.STUDY_FILE]),
            storage=env[pods.STORAGE],
            base=Path(env.get(pods.BASE, "/")),
            head=env.get(pods.HEAD, "127.0.0.1"),
            progress=env[pods.PROGRESS],
            namespace=env[pods.NAMESPACE],
            job_uid=env[pods.JOB_UID],
            study_uid=env[pods.STUDY_UID],
            index=int(env.get("JOB_COMPLETION_INDEX", "0")),
            retry=env.get(pods.RETRY, ""),
        )

    def study(self) -> FineTuneStudy:
        """The study as mounted now; live edits of the budget arrive through this file."""
        return parse_study(json.loads(self.study_file.read_text()))


@dataclass(frozen=True)
class SlotResources:
    """What one worker slot may use."""

    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Threads for tensor operations."""
        return max(1, int(self.cpus))

    def check(self) -> None:
        """Raises SpecError for more than one GPU per trial: it would use one, and be charged for all."""
        if self.gpus > 1:
            raise SpecError(
                "spec.cluster.resourcesPerWorker",
                "must not have more GPUs than trialsPerWorker: a trial uses at most one "
                f"(got {self.gpus:g} GPUs per trial)",
            )


@dataclass(frozen=True)
class WorkerResources:
    """What one worker pod declares to Ray."""

    cpus: int
    gpus: int
    memory_bytes: int | None

    @classmethod
    def of(cls, cluster: ClusterSpec) -> "WorkerResources":
        """Whole CPUs (rounded up), devices and memory of `cluster.resourcesPerWorker`."""
        resources = cluster.resources_per_worker
        memory = resources.get("memory")
        return cls(
            cpus=max(1, ceil(parse_quantity(resources.get("cpu", 1)))),
            gpus=int(gpus_in(resources)),
            memory_bytes=int(parse_quantity(memory)) if memory is not None else None,
        )

    def slot(self, trials_per_worker: int) -> SlotResources:
        """One of `trials_per_worker` equal shares."""
        return SlotResources(self.cpus / trials_per_worker, self.gpus / trials_per_worker)
