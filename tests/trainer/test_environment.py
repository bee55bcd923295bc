"""What a pod is told about itself, and what Ray is told of it."""

import pytest

from finetune_api.cluster import ClusterSpec
from finetune_trainer.environment import WorkerResources
from finetune_trainer.errors import SpecError


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
    slot.check()
    assert (slot.cpus, slot.gpus, slot.threads) == (1.0, 0.25, 1)


@pytest.mark.parametrize(("gpus", "trials"), [(2, 1), (8, 4), (3, 2)])
def test_no_trial_is_given_more_gpus_than_it_uses(gpus: int, trials: int) -> None:
    resources = {"resources_per_worker": {"nvidia.com/gpu": gpus}, "trials_per_worker": trials}
    slot = WorkerResources.of(ClusterSpec.model_validate(resources)).slot(trials)
    with pytest.raises(
        SpecError, match=rf"more GPUs than .*\(got {gpus / trials:g} GPUs per trial\)"
    ) as error:
        slot.check()
    assert error.value.field == "spec.cluster.resourcesPerWorker"
