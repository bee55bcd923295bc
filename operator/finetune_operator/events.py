"""The Events of a study in the form of Kubernetes."""

import hashlib
from datetime import datetime
from typing import Any

from finetune_api.status import MAX_MESSAGE
from finetune_api.study import API_VERSION, KIND, FineTuneStudy
from finetune_operator.decision import StudyEvent
from finetune_operator.names import MANAGER


def event_manifest(study: FineTuneStudy, event: StudyEvent, now: datetime) -> dict[str, Any]:
    """The Event; posted twice in the same second it has the same name, and counts once."""
    meta = study.metadata
    moment = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    said = f"{meta.uid}{event.reason}{event.message}{moment}"
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta.name}.{digest}", "namespace": meta.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:MAX_MESSAGE],
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }
