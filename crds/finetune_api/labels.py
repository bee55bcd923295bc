"""How a study's objects in a cluster are marked: what the operator writes and clients look for.

Objects of other versions carry these words: none may change.
"""

from collections.abc import Mapping
from typing import Final

from finetune_api.status import MAX_RETRY
from finetune_api.study import GROUP

STUDY_LABEL: Final = f"{GROUP}/study"
"""Of every child: the study's name."""

UID_LABEL: Final = f"{GROUP}/study-uid"
"""Of every child: the study's UID, which an earlier study of that name did not have."""

ATTEMPT_LABEL: Final = f"{GROUP}/attempt"
"""Of an attempt's objects and pods: its number."""

RETRY: Final = f"{GROUP}/retry"
"""Annotation of a study: a new value lets one go on that is stalled or has ended."""

CONTAINER: Final = "trainer"
"""The container of a study's pods."""

_INDEX = "batch.kubernetes.io/job-completion-index"
_RAY_NODE = "ray.io/node-type"


def asked_retry(annotations: Mapping[str, str]) -> str | None:
    """The value of the annotation with which the study's user asks for a retry, as the status repeats it."""
    asked = annotations.get(RETRY)
    return None if asked is None else asked[:MAX_RETRY]


def is_head(labels: Mapping[str, str], annotations: Mapping[str, str]) -> bool:
    """Whether the driver runs in the pod that has these: pod 0 of a Job, or the head of KubeRay's cluster."""
    return annotations.get(_INDEX) == "0" or labels.get(_RAY_NODE) == "head"
