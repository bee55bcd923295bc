"""The data of a study, prepared once on the driver's node, in a process that ends: its memory stays free of torch."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from finetune_api.study import StudySpec
from finetune_trainer.errors import DataError, StorageUnavailable, StudyError
from finetune_trainer.records import events as ev
from finetune_trainer.runtime.ray_tune import this_node
from finetune_trainer.search.problem import Recommended


@dataclass(frozen=True)
class Preparation:
    """What the driver needs to know about the prepared data."""

    warnings: tuple[str, ...]
    report: bytes
    """The report on what was done to the rows (JSON)."""

    fingerprint: str
    recommended: Recommended | None = None
    """What the study tries first."""


def _prepare(
    spec: StudySpec, base: Path, threads: int
) -> tuple[Preparation | StudyError | StorageUnavailable, Any]:
    """A summary and the prepared data, or the error that prevented them; a Ray task."""
    import torch  # the driver itself imports neither it nor the data libraries

    from finetune_trainer.data import prepare
    from finetune_trainer.data.report import report
    from finetune_trainer.runtime.first_trial import first_trial

    torch.set_num_threads(threads)  # Ray gives a task that reserves no CPU a single thread
    try:
        data = prepare(spec, base)
        first = first_trial(spec, data)
    except (StudyError, StorageUnavailable) as error:
        return error, None
    document = json.dumps(report(data), indent=1, ensure_ascii=False)
    return Preparation(data.warnings, document.encode(), data.fingerprint, first), data


def prepare_here(spec: StudySpec, base: Path, threads: int) -> tuple[Preparation, Any]:
    """The same on this node. Raises StudyError, or StorageUnavailable for files that cannot be reached now."""
    task = ray.remote(_prepare).options(num_cpus=0, num_returns=2, scheduling_strategy=this_node())
    told, data = task.remote(spec, base, threads)
    result: Preparation | StudyError | StorageUnavailable = ray.get(told)
    if isinstance(result, Exception):
        raise result
    return result, data


def check_same_data(events: Iterable[ev.Event], fingerprint: str) -> None:
    """Raises DataError if the study with the records `events` began with rows other than those with
    `fingerprint`: results on different rows cannot be compared."""
    first = next((event.data for event in events if isinstance(event, ev.SlotReady)), fingerprint)
    if first != fingerprint:
        raise DataError(
            "spec.dataset",
            f"must give the rows that the study began with (their fingerprint was {first}, now it is "
            f"{fingerprint}): restore the data, or start a study with another name and a folder of its own",
        )
