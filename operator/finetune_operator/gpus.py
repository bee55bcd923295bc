"""GPUs that studies hold: from when a pod has a node until it has ended or is gone, whether it uses them or not."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_operator.observe import Key, PodView

Allocation: TypeAlias = Mapping[tuple[str, str], int]
"""GPUs by namespace and class; the class is empty for studies without one."""


def allocated(pods: Iterable[tuple[Key, PodView]], class_of: Callable[[Key], str]) -> Allocation:
    """What these pods hold; those that no attempt has made do not count."""
    found: dict[tuple[str, str], int] = defaultdict(int)
    for key, pod in pods:
        if pod.gpus and pod.controller_name:
            found[key[0], class_of(key)] += pod.gpus
    return dict(found)


class GpusAllocated(Collector):
    """The series `finetune_gpus_allocated`, as its source has them when they are asked for."""

    def __init__(self) -> None:
        self.source: Callable[[], Allocation] = dict

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family, empty while nobody holds a GPU."""
        what = "GPUs of the nodes that pods of studies are bound to"
        family = GaugeMetricFamily("finetune_gpus_allocated", what, labels=("namespace", "class"))
        for labels, gpus in self.source().items():
            family.add_metric(labels, gpus)
        yield family


GPUS_ALLOCATED = GpusAllocated()
REGISTRY.register(GPUS_ALLOCATED)
