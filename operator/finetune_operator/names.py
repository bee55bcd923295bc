"""Names and labels of a study's children."""

import hashlib
import json
import re
import secrets
from typing import Any

from finetune_api import labels as marks
from finetune_api.labels import ATTEMPT_LABEL as ATTEMPT_LABEL
from finetune_api.labels import CONTAINER as CONTAINER
from finetune_api.labels import RETRY as RETRY
from finetune_api.labels import STUDY_LABEL as STUDY_LABEL
from finetune_api.labels import UID_LABEL as UID_LABEL
from finetune_api.study import API_VERSION, GROUP, KIND, FineTuneStudy, StudySpec
from finetune_operator.settings import Settings

WINNER_LABEL = f"{GROUP}/winner"
SPEC_HASH = f"{GROUP}/spec-hash"
DATA_HASH = f"{GROUP}/data-hash"
MADE_FOR = f"{GROUP}/made-for"

KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
MANAGER = "finetune-operator"


def asked_retry(study: FineTuneStudy) -> str | None:
    """The value of the annotation with which the study's user asks for a retry."""
    return marks.asked_retry(study.metadata.annotations)


def attempt_name(study: str, attempt: int) -> str:
    """Name of the engine's objects of one attempt."""
    return f"{study}-{attempt}"


def token(study: str, attempt: int) -> str:
    """A name for the Secret with the token of one attempt's Ray cluster; another one each time.

    The operator may not read Secrets, so it could not tell somebody else's from its own. Nobody can guess this
    name, so a Secret that has it was created here.
    """
    return f"{study}-{attempt}-{secrets.token_hex(8)}"


def is_attempt(study: str, name: str) -> bool:
    """Whether a Job, RayJob or RayCluster of that name can be one of the study's. (KubeRay appends to it.)"""
    return re.fullmatch(rf"{re.escape(study)}-[0-9]+(-[a-z0-9]+)?", name) is not None


def run_id(study_uid: str, attempt: int) -> str:
    """Identifies an attempt to its pods and driver where its object does not give them its UID."""
    return f"{study_uid}/{attempt}"


def spec_config(study: str) -> str:
    """Name of the ConfigMap with the spec that the driver runs."""
    return f"{study}-spec"


def progress_config(study: str) -> str:
    """Name of the ConfigMap that the driver writes."""
    return f"{study}-progress"


def winner_config(study: str, last: str | None = None) -> str:
    """Name of the ConfigMap that a finished study leaves for pipelines, after the one with the name `last`."""
    first = f"{study}-winner"
    if last is None:
        return first
    number = re.fullmatch(rf"{re.escape(first)}-([0-9]{{1,9}})", last)
    return f"{first}-{int(number[1]) + 1 if number else 2}"


def account(study: str) -> str:
    """Name of the ServiceAccount, Role, RoleBinding, NetworkPolicy and Service of a study's pods."""
    return f"{study}-trainer"


def labels(study: FineTuneStudy) -> dict[str, str]:
    """Labels of every child. The study's own labels are not copied: Argo CD would prune the children."""
    return {
        STUDY_LABEL: study.metadata.name,
        UID_LABEL: study.metadata.uid or "",
        "app.kubernetes.io/managed-by": MANAGER,
        "app.kubernetes.io/name": "finetune-study",
    }


def metadata(study: FineTuneStudy, name: str, **more: Any) -> dict[str, Any]:
    """Metadata of a child: name, labels, and the study as its owner."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": study.metadata.name,
        "uid": study.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name,
        "namespace": study.metadata.namespace,
        "labels": labels(study),
        "ownerReferences": [owner],
        **more,
    }


def made_for(study: FineTuneStudy) -> str:
    """What an attempt of the study is made for: the generation, and a hash of what only a new attempt can follow."""
    shape = [part.to_short_json() for part in (study.spec.cluster, study.spec.compute)]
    return f"{study.metadata.generation}/{digest(json.dumps(shape, sort_keys=True))}"


def is_outdated(made: str, study: FineTuneStudy) -> bool:
    """Whether an attempt `made` for the study as it was cannot follow it as it is.

    Only an edit makes it so: another version of the operator may write the same study in other words.
    """
    then, now = made.partition("/"), made_for(study).partition("/")
    return bool(made) and then[0] != now[0] and then[2] != now[2]


def digest(text: str) -> str:
    """16 hexadecimal digits that change with the text."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def inherited(study: FineTuneStudy, settings: Settings) -> dict[str, str]:
    """The study's own labels that its class wants on the engine's object and the pods."""
    wanted = settings.given.labels if settings.given is not None else []
    return {name: value for name, value in study.metadata.labels.items() if name in wanted}


def attempt_metadata(
    study: FineTuneStudy, spec: StudySpec, attempt: int, settings: Settings
) -> dict[str, Any]:
    """Metadata of the engine's object of one attempt: also its number and, for Kueue, its queue."""
    name, annotations = attempt_name(study.metadata.name, attempt), {MADE_FOR: made_for(study)}
    made = metadata(study, name, annotations=annotations)
    made["labels"] = {**inherited(study, settings), **made["labels"], ATTEMPT_LABEL: str(attempt)}
    queue = spec.cluster.queue_name
    if queue is not None and settings.queueing == "Kueue":
        made["labels"][KUEUE_QUEUE] = queue
    return made
