"""What a pod is told about itself, and what Ray is told of it."""

import pytest

from finetune_api.study import ClusterSpec
from finetune_trainer.environment import WorkerResources


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ({"cpu": 4}, 0),
        ({"nvidia.com/gpu": 2}, 2),
        ({"amd.com/gpu": "1"}, 1),
        ({"gpu.intel.com/i915": 1}, 0),  # as KubeRay counts: the name must end in gpu
        ({"nvidia.com/mig-1g.10gb": 3}, 3),
        ({"nvidia.com/mig-1g.10gb": 1, "nvidia.com/gpu": 1}, 2),
    ],
)
def test_devices_are_counted_whoever_makes_them(resources: dict[str, int], gpus: int) -> None:
    cluster = ClusterSpec.model_validate({"resources_per_worker": resources})
    assert WorkerResources.of(cluster).gpus == gpus


def test_trials_share_a_workers_devices() -> None:
    cluster = ClusterSpec.model_validate(
        {"resources_per_worker": {"nvidia.com/gpu": 1, "cpu": "3500m", "memory": "16Gi"}}
    )
    worker = WorkerResources.of(cluster)
    assert (worker.cpus, worker.memory_bytes) == (4, 16 << 30)
    slot = worker.slot(4)
    assert (slot.cpus, slot.gpus, slot.threads) == (1.0, 0.25, 1)
