"""What a driver has found, and statuses with it, as the operator's own code writes them."""

from typing import Any

from finetune_api.conditions import status_of
from finetune_api.status import Findings, StudyProgress
from finetune_client.view import StudyView
from tests.api.wrong_manifests import VALID, changed
from tests.cluster.operator_process import Studies
from tests.operator.studies import NOW, progress, study

PARAMS = {"learningRate": 2.5e-05, "optimizer": "AdamW"}
FOUND: dict[str, Any] = {
    "trials": {"planned": 4, "completed": 3, "stopped": 1, "summary": "4/4"},
    "best": {
        "trial": 1,
        "value": 0.91234,
        "standardError": 0.004,
        "epoch": 3,
        "params": PARAMS,
        "metrics": {"f1_macro": 0.91234, "accuracy": 0.93},
    },
    "topTrials": [
        {"trial": 1, "value": 0.91234, "epoch": 3, "params": PARAMS},
        {"trial": 0, "value": 0.5, "epoch": 2, "params": {"learningRate": 0.001}},
    ],
    "resultsUri": "/storage/nlp/tickets/results",
    "gpuSeconds": 1800,
    "spending": {"epochs": 6, "seconds": 720, "price": 1.5, "priceLeft": 2.5},
    "warnings": ["3 rows without a label were dropped"],
}
"""Of four trials."""


def ended(**more: Any) -> StudyProgress:
    """The last word of a driver."""
    found = Findings.model_validate(FOUND)
    facts: dict[str, Any] = {"reason": "SearchFinished", "message": "all 4 trials ended"}
    return progress(**{"phase": "Finished", **facts, "findings": found, **more})


def status(**more: Any) -> dict[str, Any]:
    """The status that follows from it."""
    return status_of(study(), ended(**more), NOW).to_json()


def failed() -> dict[str, Any]:
    """The status of a study whose data cannot be used."""
    return status(phase="Failed", reason="DataError", message="spec.dataset: no such column")


def write(studies: Studies, name: str, new: dict[str, Any]) -> None:
    """Write the whole status of a study, as the operator does."""
    studies.done("PATCH", "fts", name, {"status": new}, subresource="status")


def view(new: dict[str, Any], **changes: Any) -> StudyView:
    """A study with that status, as the API server would serve it."""
    known = {
        "metadata.uid": "uid",
        "metadata.generation": 1,
        "metadata.creationTimestamp": "2026-11-23T12:00:00Z",
    }
    return StudyView(changed(VALID, {**known, **changes, "status": new}))
