"""Before an operator may act: whether the API server takes what the platform team has put into every pod.

A typo in `study.podTemplate` would let every new attempt wait. So a process with one ends before it stands for
election, and an upgrade that brings one leaves the replicas before it at work.
"""

import asyncio
import logging
from typing import Any

from finetune_api.manifest import parse_study
from finetune_api.study import API_VERSION, KIND
from finetune_operator import engines
from finetune_operator.kube import Kube, KubeError, Malformed
from finetune_operator.settings import Settings

log = logging.getLogger("finetune.preflight")

_PAUSE_SECONDS = 2.0
_ANSWERS = range(400, 500)
"""Status codes of an answer; without one, the request is made again."""

_TRY_AGAIN = 429

_STUDY: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "preflight", "uid": "00000000-0000-0000-0000-000000000000"},
    "spec": {
        "task": "SingleLabel",
        "model": {"name": "bert-base-uncased"},
        "dataset": {
            "files": {"train": "data.csv"},
            "textColumns": ["text"],
            "labelColumn": "label",
        },
        "objective": {"metric": "accuracy"},
        "storage": {"persistentVolumeClaim": {"claimName": "studies"}},
        "searchSpaces": [{"learningRate": {"min": 1e-5, "max": 1e-4}}],
        "budget": {"maxTrials": 1},
    },
}


def namespace_of(settings: Settings) -> str:
    """A namespace in which the operator may create what a study needs."""
    if settings.namespaces:
        return settings.namespaces[0]
    return settings.lease.partition("/")[0] or "default"


async def wrong_template(kube: Kube, settings: Settings) -> str:
    """What the API server says is wrong with the pods of every study; empty if nothing is, or if it cannot say.

    It is asked to create an attempt and not to keep it (a dry run); it answers about the form of an object before
    any policy is asked. Without an answer, it is asked again.
    """
    meta = {**_STUDY["metadata"], "namespace": namespace_of(settings)}
    study = parse_study({**_STUDY, "metadata": meta})
    engine = "Job" if settings.engine == "Auto" else settings.engine
    attempt = engines.manifests(study, 1, settings.model_copy(update={"engine": engine}))[-1]
    while True:
        try:
            await kube.create(attempt, dry_run=True)
        except Malformed as error:
            return error.message
        except KubeError as error:
            if error.status in _ANSWERS and error.status != _TRY_AGAIN:
                # A policy's denial too comes after the look at the form.
                log.debug("the dry run of an attempt was refused: %s", error)
                return ""
            log.warning("asking again whether the pods of studies are right: %s", error)
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            return ""
